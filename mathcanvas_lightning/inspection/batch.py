"""What a training run would be given: one pack of its plan, as a table and a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from mathcanvas_lightning.batch import MicroBatch
from mathcanvas_lightning.data.datamodule import MathCanvasDataModule
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.inspection.pack_drawing import draw_pack
from mathcanvas_lightning.inspection.pack_table import Block, describe_pack
from mathcanvas_lightning.model.config import BagelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReport:
    """A pack, and the plan it is from."""

    batch: MicroBatch
    blocks: tuple[Block, ...]
    """Its splits."""
    num_steps: int
    """Of the epoch."""
    num_packs: int
    """Of the epoch."""
    num_fillers: int
    """Packs without a sample in the last step."""
    num_samples: int
    """Of the epoch."""
    fill: float
    """How full the epoch's packs are, 0 to 1."""
    capacity: int
    """Tokens a pack may hold."""
    png: str | None
    """The picture, if one was drawn."""


def inspect_batch(
    config: Sequence[str],
    *,
    step: int = 0,
    epoch: int = 0,
    slot: int = 0,
    packs_per_step: int | None = None,
    png: str | None = None,
) -> BatchReport:
    """Shows what is in a pack of a training run: blocks, losses, positions, attention.

    Args:
        config: YAML files of the run, later ones over earlier ones; only the section `data` and
            the model's checkpoint count.
        step: Optimizer step within the epoch, from 0.
        epoch: From 0.
        slot: Which pack of the step, from 0.
        packs_per_step: Packs of an optimizer step; what the configuration says, or 1.
        png: Draw the packed layout and its attention mask to this file.

    Returns:
        The pack.

    Raises:
        ConfigError: If the configuration can't be read, or there is no such step or slot.
        DataError: If the data can't be read.
    """
    data = load_datamodule(config, {"packs_per_step": packs_per_step} if packs_per_step else {})
    data.prepare_data()
    data.setup("fit")
    plan = data.plan
    schedule = plan.schedule(epoch, data.position.packs_per_step)
    _check_place(step, schedule.num_steps, "step")
    _check_place(slot, schedule.packs_per_step, "slot")
    batch = data.micro_batch(epoch, schedule, step, slot)
    blocks = describe_pack(batch.pack, data.tokenizer.decode)
    if png is not None:
        names = [sample.uid for sample in batch.samples]
        draw_pack(batch.pack, Path(png), blocks, sample_names=names)
    planned = plan.epoch(epoch)
    return BatchReport(
        batch=batch,
        blocks=blocks,
        num_steps=schedule.num_steps,
        num_packs=planned.num_packs,
        num_fillers=schedule.num_fillers,
        num_samples=len(planned.rows),
        fill=planned.fill,
        capacity=planned.capacity,
        png=png,
    )


def load_datamodule(
    config: Sequence[str], overrides: Mapping[str, Any] | None = None
) -> MathCanvasDataModule:
    """The data module of a run's YAML files.

    Args:
        config: Files, later ones over earlier ones.
        overrides: Arguments that win over them.

    Returns:
        The data module, not set up yet, linked to the checkpoint of the section `model` as a run
        links it; without one, to that of the tokenizer.

    Raises:
        ConfigError: If a file can't be read, or its section `data` is none of this data module.
    """
    if not config:
        raise ConfigError(
            "--config", found="no file", wanted="a run's YAML file", remedy="Name one or more."
        )
    arguments: dict[str, Any] = {}
    model: dict[str, Any] = {}
    for path in config:
        arguments = _merged(arguments, _section(path, "data"))
        model = _merged(model, _section(path, "model"))
    arguments |= overrides or {}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(MathCanvasDataModule, "data")
    try:
        parsed = parser.parse_object({"data": arguments})
    except Exception as error:  # jsonargparse raises many kinds
        raise ConfigError(
            f"section data of {', '.join(config)}",
            found=str(error).strip(),
            wanted="arguments of MathCanvasDataModule",
            remedy="mathcanvas_lightning/data/datamodule.py tells them.",
        ) from None
    made: Namespace = parser.instantiate(parsed)
    data: MathCanvasDataModule = made.data
    checkpoint = model.get("source", {}).get("checkpoint") or parsed.data.tokenizer
    if checkpoint is not None and (Path(checkpoint) / "llm_config.json").is_file():
        data.use_model(BagelConfig.from_directory(checkpoint).geometry, checkpoint)
    return data


def _section(path: str, name: str) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(
            path, found=str(error), wanted="a YAML file", remedy="Check the path and its syntax."
        ) from None
    section = content.get(name, {}) if isinstance(content, Mapping) else None
    if not isinstance(section, Mapping):
        raise ConfigError(
            path,
            found=f"no section {name}",
            wanted="sections data and model, as mathcanvas fit takes them",
            remedy="See configs/fit/demo_cpu.yaml.",
        )
    found: Mapping[str, Any] = section.get("init_args", section)
    return found


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _check_place(found: int, count: int, name: str) -> None:
    if not 0 <= found < count:
        raise ConfigError(
            f"--{name}",
            found=str(found),
            wanted=f"0 to {count - 1}",
            remedy=f"There are {count} of them.",
        )
