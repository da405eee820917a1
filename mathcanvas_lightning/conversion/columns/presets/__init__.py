"""Finds the columns of a data set: a preset by name, a YAML file, and single keys over it.

In: `zebra_cot`, a path, or keys. Out: a `ColumnsConfig`. Each YAML file here is the preset of one
public data set; a file with the key `columns` is also a configuration of `mathcanvas convert`.
"""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from mathcanvas_lightning.common.keys import did_you_mean
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.conversion.columns.config import ColumnsConfig, columns_from
from mathcanvas_lightning.errors import ConfigError

YAML_SUFFIXES = (".yaml", ".yml")


@cache
def preset_names() -> tuple[str, ...]:
    """The names of all presets, sorted."""
    names = (file.name for file in files(__name__).iterdir())
    return tuple(sorted(n.removesuffix(".yaml") for n in names if n.endswith(".yaml")))


def find_columns(preset: str | None, keys: Mapping[str, Any] | None = None) -> ColumnsConfig:
    """Finds the columns of a data set.

    Args:
        preset: Name of a preset, or a YAML file; None for only the keys.
        keys: Keys of `ColumnsConfig` that replace those of the preset.

    Raises:
        ConfigError: If there is no such preset or file, or a key can't be used.
    """
    values = {} if preset is None else _read(preset)
    if preset is None and not keys:
        raise ConfigError(
            "--source columns",
            found="neither a preset nor columns",
            wanted="--preset NAME, or the key columns in the file of --config",
            remedy=f"Presets: {', '.join(preset_names())}.",
        )
    place = "columns" if preset is None or keys else f"--preset {preset}"
    return columns_from({**values, **(keys or {})}, place)


def _read(preset: str) -> dict[str, Any]:
    if preset in preset_names():
        text = files(__name__).joinpath(f"{preset}.yaml").read_text(encoding="utf-8")
        return dict(yaml.safe_load(text)["columns"])
    if not preset.endswith(YAML_SUFFIXES):
        wanted = "the name of a preset, or a YAML file"
        remedy = did_you_mean(preset, preset_names())
        raise ConfigError("--preset", found=repr(preset), wanted=wanted, remedy=remedy)
    try:
        values = yaml.safe_load(local_path(preset).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        found = " ".join(str(error).split())
        wanted, remedy = "a YAML file with the key columns", "Check the path and the file."
        raise ConfigError(f"--preset {preset}", found=found, wanted=wanted, remedy=remedy) from None
    if not isinstance(values, dict) or not isinstance(values.get("columns"), dict):
        raise ConfigError(
            f"--preset {preset}",
            found=f"{values!r:.80}",
            wanted="the key columns with keys such as id, question, solution",
            remedy="Write one with mathcanvas generate-handler --input FILE --output X.yaml.",
        )
    base = _read(str(values["preset"])) if "preset" in values else {}
    return {**base, **values["columns"]}
