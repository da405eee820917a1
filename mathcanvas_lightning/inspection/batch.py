"""One pack of a training run's plan, as a table and a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from mathcanvas_lightning.batch import MicroBatch
from mathcanvas_lightning.common.keys import merged
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.data.datamodule import MathCanvasDataModule
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.inspection.pack_drawing import draw_pack
from mathcanvas_lightning.inspection.pack_table import Block, describe_pack
from mathcanvas_lightning.model.config import BagelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReport:
    """A pack, and numbers of its epoch."""

    batch: MicroBatch
    blocks: tuple[Block, ...]
    """The splits of the pack."""
    num_steps: int
    """Optimizer steps of the epoch."""
    num_packs: int
    """Packs of the epoch."""
    num_fillers: int
    """Empty packs that complete the last step."""
    num_samples: int
    """Samples of the epoch."""
    fill: float
    """Share of the tokens of the epoch's packs that are used, 0 to 1."""
    capacity: int
    """Maximum length of a pack, in tokens."""
    png: str | None
    """Path of the picture, if one was drawn."""


def inspect_batch(
    config: Sequence[str],
    *,
    step: int = 0,
    epoch: int = 0,
    slot: int = 0,
    packs_per_step: int | None = None,
    png: str | None = None,
) -> BatchReport:
    """Shows one pack of a training run: blocks, losses, positions, attention mask.

    Args:
        config: YAML files of the run; later files override earlier ones. Only the section `data`
            and the model's checkpoint are used.
        step: Optimizer step within the epoch, from 0.
        epoch: Number of the epoch, from 0.
        slot: Number of the pack within the step, from 0.
        packs_per_step: Packs of an optimizer step; by default as in the configuration, else 1.
        png: PNG file to draw the packed layout and its attention mask to.

    Returns:
        The pack, and numbers of its epoch.

    Raises:
        ConfigError: If the configuration can't be read, or there is no such step or slot.
        DataError: If the data can't be read.
    """
    data = load_datamodule(config, {"packs_per_step": packs_per_step} if packs_per_step else {})
    return inspect_pack(data, step=step, epoch=epoch, slot=slot, png=png)


def inspect_pack(
    data: MathCanvasDataModule,
    *,
    step: int = 0,
    epoch: int = 0,
    slot: int = 0,
    png: str | None = None,
) -> BatchReport:
    """Shows one pack of a data module, exactly as a training gets it.

    Args:
        data: The data module; it is set up if needed.
        step: Optimizer step within the epoch, from 0.
        epoch: Number of the epoch, from 0.
        slot: Number of the pack within the step, from 0.
        png: PNG file to draw the packed layout and its attention mask to.

    Returns:
        The pack, and numbers of its epoch.

    Raises:
        ConfigError: If there is no such step or slot.
        DataError: If the data can't be read.
    """
    data.prepare_data()
    data.setup("fit")
    plan = data.plan
    schedule = data.schedule(epoch)
    _check_range(step, schedule.num_steps, "step")
    _check_range(slot, schedule.packs_per_step, "slot")
    batch = data.micro_batch(epoch, schedule, step, slot)
    blocks = describe_pack(batch.pack, data.tokenizer.decode)
    if png is not None:
        names = [sample.uid for sample in batch.samples]
        draw_pack(batch.pack, local_path(png), blocks, sample_names=names)
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
    """Makes the data module of a run from its YAML files.

    Args:
        config: YAML files; later files override earlier ones.
        overrides: Arguments of the data module that override the files.

    Returns:
        The data module, not set up yet. Like in a run, it takes its geometry from the checkpoint
        of the section `model`, or else from the directory of the tokenizer.

    Raises:
        ConfigError: If a file can't be read, or its section `data` has invalid arguments.
    """
    arguments = read_sections(config, "data")
    model = read_sections(config, "model")
    arguments |= overrides or {}
    if arguments.get("seed") is None:
        arguments["seed"] = _run_seed(config)
    made, checked = instantiate_section(MathCanvasDataModule, arguments, "data", config)
    data: MathCanvasDataModule = made
    checkpoint = model.get("source", {}).get("checkpoint") or checked.tokenizer
    if checkpoint is not None and (local_path(checkpoint) / "llm_config.json").is_file():
        data.use_model(BagelConfig.from_directory(checkpoint).geometry, checkpoint)
    return data


def instantiate_section(
    kind: type, arguments: Mapping[str, Any], name: str, config: Sequence[str]
) -> tuple[Any, Any]:
    """Makes an object of a section of a run's YAML files.

    Args:
        kind: Its class.
        arguments: Arguments of the class, as in YAML.
        name: Name of the section.
        config: The files, for errors.

    Returns:
        The object, and its arguments with their defaults.

    Raises:
        ConfigError: If an argument is invalid.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, name)
    try:
        parsed = parser.parse_object({name: dict(arguments)})
    except Exception as error:  # jsonargparse raises many kinds
        raise ConfigError(
            f"section {name} of {', '.join(config)}",
            found=str(error).strip(),
            wanted=f"arguments of {kind.__name__}",
            remedy="mathcanvas fit --help lists them.",
        ) from None
    made: Namespace = parser.instantiate(parsed)
    return made[name], parsed[name]


def read_sections(config: Sequence[str], name: str) -> dict[str, Any]:
    """Reads one section of a run's YAML files.

    Args:
        config: YAML files; later files override earlier ones.
        name: Name of the section: data, model or trainer.

    Returns:
        The section, or its `init_args`; empty if no file has it.

    Raises:
        ConfigError: If there is no file, or one can't be read.
    """
    if not config:
        raise ConfigError(
            "--config", found="no file", wanted="YAML files of a run", remedy="Name one or more."
        )
    sections = (_section(path, _read(path), name) for path in config)
    return reduce(merged, sections, {})


def _run_seed(config: Sequence[str]) -> int | None:
    """Returns the seed of the run, which its data follow as in mathcanvas fit."""
    seed: int | bool | None = None
    for path in config:
        seed = _read(path).get("seed_everything", seed)
    return None if isinstance(seed, bool) else seed


def _read(path: str) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(local_path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(
            path, found=str(error), wanted="a YAML file", remedy="Check the path and its syntax."
        ) from None
    return content if isinstance(content, Mapping) else {"data": content, "model": content}


def _section(path: str, content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = content.get(name, {})
    if not isinstance(section, Mapping):
        raise ConfigError(
            path,
            found=f"no section {name}",
            wanted="sections data and model, as for mathcanvas fit",
            remedy="See configs/fit/demo_cpu.yaml.",
        )
    found: Mapping[str, Any] = section.get("init_args", section)
    return found


def _check_range(found: int, count: int, name: str) -> None:
    if not 0 <= found < count:
        raise ConfigError(
            f"--{name}",
            found=str(found),
            wanted=f"0 to {count - 1}",
            remedy=f"There are {count} of them.",
        )
