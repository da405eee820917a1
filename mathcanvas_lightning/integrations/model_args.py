"""Settings of a model as other programs pass them: names and plain values, no nesting."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from mathcanvas_lightning.common.paths import import_from_here, local_path
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.generation.bagel.backend import BagelBackend
from mathcanvas_lightning.generation.requests import Sampling
from mathcanvas_lightning.generation.run.module import GenerationModule

SAMPLING = frozenset(one.name for one in fields(Sampling))
BACKEND = f"{BagelBackend.__module__}.{BagelBackend.__qualname__}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelArgs:
    """A model, its sampling, and where its answers are kept."""

    backend: Mapping[str, Any]
    """class_path and init_args of the backend."""
    sampling: Mapping[str, Any]
    """Fields of `Sampling` that are set; they override those of a benchmark."""
    output: Path
    """Folder for questions, answers and drawings."""
    rerun: bool = False
    """Whether to answer all questions again."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Sampling` of the configuration file, which a benchmark overrides."""

    def module(self, sampling: Mapping[str, Any]) -> GenerationModule:
        """Builds the model, without loading it.

        Args:
            sampling: Fields of `Sampling` that a benchmark sets.

        Raises:
            ConfigError: If a setting is unknown or has a wrong value.
        """
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(GenerationModule, "model")
        merged = {**self.defaults, **sampling, **self.sampling}
        given = {"backend": dict(self.backend), "sampling": merged}
        try:
            parsed = parser.parse_object({"model": given})
            module: GenerationModule = parser.instantiate(parsed).model
        except ConfigError:
            raise
        except Exception as error:  # jsonargparse raises many kinds
            raise ConfigError(
                "the model's arguments",
                found=" ".join(str(error).split()) or type(error).__name__,
                wanted="parameters of the backend, fields of Sampling, config, output or rerun",
                remedy="Correct them, or put them into a YAML file of mathcanvas predict, and name "
                "it with config.",
            ) from None
        return module


def read_model_args(given: Mapping[str, Any]) -> ModelArgs:
    """Sorts the arguments of a model.

    Args:
        given: `checkpoint` or `config` (a YAML file of `mathcanvas predict`, of which the section
            `model` counts), `output` (a folder, by default `answers/benchmarks`), `rerun`, fields
            of `Sampling`, and parameters of the backend. A text that begins with a brace is YAML.

    Raises:
        ConfigError: If there is neither a checkpoint nor a configuration, or it can't be read.
    """
    values = {name: _value(value) for name, value in given.items() if value is not None}
    config, output = values.pop("config", None), values.pop("output", "answers/benchmarks")
    rerun = bool(values.pop("rerun", False))
    sampling = {name: values.pop(name) for name in SAMPLING & values.keys()}
    model = {} if config is None else _model_section(str(config))
    backend = model.get("backend", {"class_path": BACKEND})
    init_args = {**backend.get("init_args", {}), **values}
    if config is None and "checkpoint" not in init_args:
        raise ConfigError(
            "the model's arguments",
            found=", ".join(given) or "none",
            wanted="checkpoint=FOLDER, or config=FILE.yaml of mathcanvas predict",
            remedy="Add one.",
        )
    return ModelArgs(
        backend={"class_path": backend["class_path"], "init_args": init_args},
        sampling=sampling,
        output=local_path(str(output)),
        rerun=rerun,
        defaults=model.get("sampling") or {},
    )


def _value(value: Any) -> Any:
    is_nested = isinstance(value, str) and value.lstrip().startswith(("{", "["))
    return yaml.safe_load(value) if is_nested else value


def _model_section(path: str) -> Mapping[str, Any]:
    import_from_here([path])
    try:
        content = yaml.safe_load(local_path(path).read_text(encoding="utf-8"))
        section: Mapping[str, Any] = content["model"]["init_args"]
        _ = section["backend"]["class_path"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"config {path}",
            found=" ".join(f"{type(error).__name__}: {error}".split()),
            wanted="a YAML file of mathcanvas predict, with model.init_args.backend",
            remedy="Name such a file, as configs/predict_bagel.yaml.",
        ) from None
    return section
