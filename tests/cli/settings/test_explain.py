"""Explanations of wrong settings: none for the shipped ones, the right key for a misspelt one."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from mathcanvas_lightning.cli.settings.errors import explain, missing_module
from tests.conftest import ROOT

CONFIGS = ROOT / "configs"
FITS = sorted(CONFIGS.glob("fit/*.yaml"))
PREDICTS = sorted(CONFIGS.glob("predict*.yaml"))
OVERLAYS = sorted([*CONFIGS.glob("trainer/*.yaml"), *CONFIGS.glob("logger/*.yaml")])
FIELDS: dict[str, Any] = {
    "model": LightningModule,
    "data": LightningDataModule,
    "trainer": Trainer,
    "folders": Any,
    "writer": Any,
}
FREE = ("dict_kwargs", "engine_options", "class_path", "init_args")
"""Keys that hold any names, or that no other key resembles."""


def explained(*files: Path) -> str:
    words = [word for path in files for word in ("--config", str(path))]
    return explain(["fit", *words], FIELDS, "nothing is wrong", None)


@pytest.mark.parametrize("path", [*FITS, *PREDICTS], ids=lambda path: path.stem)
def test_shipped_settings_are_right(path: Path) -> None:
    assert explained(path) == "nothing is wrong"
    for overlay in OVERLAYS if path in FITS else ():
        assert explained(path, overlay) == "nothing is wrong"


@pytest.mark.parametrize("path", [FITS[0], PREDICTS[-1]], ids=lambda path: path.stem)
def test_each_misspelt_key_is_found(path: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    for keys in key_paths(content):
        name = keys[-1]
        if not isinstance(name, str) or len(name) < 4 or set(keys) & set(FREE[:2]) or name in FREE:
            continue
        if keys[0] in ("folders", "writer"):
            continue
        wrong = f"{name[:2]}x{name[2:]}"
        changed = copy.deepcopy(content)
        holder = changed
        for key in keys[:-1]:
            holder = holder[key]
        holder[wrong] = holder.pop(name)
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(changed))
        shown = explained(tmp_path / "wrong.yaml")
        assert f"key {wrong}. Did you mean {name}?" in shown, (keys, shown)


def key_paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        if isinstance(value, dict):
            yield (*above, key)
        if isinstance(inner, dict | list):
            yield from key_paths(inner, (*above, key))


def test_missing_module() -> None:
    inner = ModuleNotFoundError("No module named 'wandb.sdk'")
    outer = ValueError("x")
    outer.__cause__ = inner
    assert missing_module(outer) == "wandb"
    assert missing_module(None, "Requirement 'tensorboard>=2' not met") == "tensorboard"
    assert missing_module(ValueError("x")) is None
