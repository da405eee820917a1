"""Compares settings with the signatures of classes, to say what is wrong with a key or a value."""

import dataclasses
import inspect
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NotRequired, Required, Union, get_args, get_origin

from jsonargparse._parameter_resolvers import get_signature_parameters

from mathcanvas_lightning.common.keys import did_you_mean, nearest

NUMBERS = (bool, int, float)
CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
_MISSING = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class SettingFault:
    """Something wrong with a setting."""

    path: str
    """Dotted key of the setting that holds it."""
    text: str
    """What is wrong, and the nearest right name."""

    def __str__(self) -> str:
        return f"{self.path} {self.text}" if self.path else self.text


Fields = Mapping[str, Any]
"""Name of a parameter -> its annotation."""


def check_fields(
    values: Mapping[str, Any], fields: Fields, path: str, merged: Mapping[str, Any]
) -> Iterator[SettingFault]:
    """Checks nested settings.

    Args:
        values: The settings of one source: a file, or an option.
        fields: What may be set.
        path: Dotted key of the settings; "" at the top.
        merged: The settings of all sources at this key, for the classes that others name.

    Yields:
        Keys that don't exist, and values of choices that don't exist.
    """
    for key, value in values.items():
        name, _, rest = str(key).removesuffix("+").partition(".")
        if name not in fields:
            yield SettingFault(path, f"has no key {key}. {did_you_mean(name, fields)}")
            continue
        inner = {rest: value} if rest else value
        below = merged.get(name) if isinstance(merged, Mapping) else None
        yield from check_value(inner, fields[name], f"{path}.{name}" if path else name, below)


def check_value(value: Any, annotation: Any, path: str, merged: Any) -> Iterator[SettingFault]:
    """Checks one setting against its annotation; see `check_fields`."""
    options = list(_options(annotation))
    if isinstance(value, Mapping):
        kinds = [kind for kind in options if inspect.isclass(kind) and _has_fields(kind)]
        named = merged.get("class_path") if isinstance(merged, Mapping) else None
        if not kinds and ("class_path" in value or named):
            kinds = [object]  # a function, or a class of any kind
        if kinds and not any(get_origin(kind) in (dict, Mapping) for kind in options):
            yield from _check_class(value, kinds[0], path, merged)
    elif isinstance(value, list):
        for kind in options:
            if _is_sequence(kind):
                for number, entry in enumerate(value):
                    below = _entry(merged, number)
                    yield from check_value(entry, get_args(kind)[0], f"{path}[{number}]", below)
    elif isinstance(value, str):
        yield from _check_text(value, options, path, merged)


def _check_text(
    value: str, options: Sequence[Any], path: str, merged: Any
) -> Iterator[SettingFault]:
    """Checks a text: a choice, a number, or the name of a class."""
    if {get_origin(kind) for kind in options} == {Literal}:
        known = [str(choice) for kind in options for choice in get_args(kind)]
        if value not in known:
            yield SettingFault(path, f"has no choice {value!r}. {did_you_mean(value, known)}")
    elif options and all(kind in NUMBERS for kind in options):
        wanted = " or ".join(dict.fromkeys(kind.__name__ for kind in options))
        yield SettingFault(path, f"is {value!r}; wanted {wanted}")
    elif options and all(_is_sequence(kind) for kind in options) and not Path(value).is_file():
        yield SettingFault(path, f"is {value!r}; wanted a list in brackets, or a YAML file of one")
    elif str not in options and (bases := [kind for kind in options if _is_base(kind)]):
        kind = find_class(value, bases[0])
        if kind is None:
            yield _no_class(value, bases[0], path)
        elif missing := missing_fields(kind, _init_args(merged)):
            yield SettingFault(
                path, f"{value} needs {missing[0]}: --{path}.init_args.{missing[0]} VALUE"
            )


@cache
def fields_of(kind: Any) -> dict[str, Any]:
    """Parameters of a class or function, with those that its `**kwargs` pass on."""
    return {p.name: p.annotation for p in get_signature_parameters(kind, logger=False)}


def missing_fields(kind: Any, given: Mapping[str, Any]) -> list[str]:
    """Parameters without a default that are not given."""
    return [
        p.name
        for p in get_signature_parameters(kind, logger=False)
        if p.default is _MISSING
        and get_origin(p.annotation) is not NotRequired
        and p.name not in given
    ]


def _check_class(
    value: Mapping[str, Any], base: type, path: str, merged: Any
) -> Iterator[SettingFault]:
    merged = merged if isinstance(merged, Mapping) else value
    if dataclasses.is_dataclass(base) and "class_path" not in value:
        yield from check_fields(value, fields_of(base), path, merged)
        return
    class_path = value.get("class_path", merged.get("class_path"))
    kind = find_class(str(class_path), base) if class_path else base
    if kind is None:
        yield _no_class(str(class_path), base, path)
        return
    fields = fields_of(kind)
    for key, inner in value.items():
        if key == "init_args" and isinstance(inner, Mapping):
            below = merged.get("init_args") or {}
            yield from check_fields(inner, fields, f"{path}.init_args", below)
        elif key.partition(".")[0] not in CLASS_KEYS:  # options may leave init_args out
            below = merged.get("init_args") or {}
            yield from check_fields({key: inner}, {**fields, "help": str}, path, below)
        elif key.startswith("init_args."):
            below = merged.get("init_args") or {}
            inside = {key.removeprefix("init_args."): inner}
            yield from check_fields(inside, fields, f"{path}.init_args", below)


def _no_class(class_path: str, base: type, path: str) -> SettingFault:
    known = [*_short_names(base), *_members(class_path)]
    near = nearest(class_path.rpartition(".")[2], known)
    hint = f"Did you mean {near}?" if near else "Check its import path."
    return SettingFault(path, f"has no class {class_path}. {hint}")


def _init_args(merged: Any) -> Mapping[str, Any]:
    found = merged.get("init_args", merged) if isinstance(merged, Mapping) else {}
    return found if isinstance(found, Mapping) else {}


def _is_base(kind: Any) -> bool:
    """Whether settings name subclasses of an annotation."""
    return inspect.isclass(kind) and kind not in (*NUMBERS, Path) and not get_args(kind)


def find_class(class_path: str, base: Any) -> Any:
    """The class of an import path, or the subclass of a short name; None for unknown ones."""
    module, _, name = class_path.rpartition(".")
    if not module:
        return _short_names(base).get(name)
    try:
        return getattr(import_module(module), name, None)
    except ImportError:
        return None


def _short_names(base: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    waiting: list[Any] = [] if base is object else [base]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            if kind.__name__ not in found:
                found[kind.__name__] = kind
                waiting.append(kind)
    return found


def _members(class_path: str) -> list[str]:
    """Public names of the module of an import path."""
    try:
        module = import_module(class_path.rpartition(".")[0])
    except (ImportError, ValueError):
        return []
    return [name for name in dir(module) if not name.startswith("_")]


def _options(annotation: Any) -> Iterator[Any]:
    """The alternatives of an annotation, without None."""
    origin = get_origin(annotation)
    if origin in (NotRequired, Required):
        yield from _options(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for one in get_args(annotation):
            yield from _options(one)
    elif annotation not in (type(None), Any):
        yield annotation


def _is_sequence(kind: Any) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Sequence)


def _has_fields(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) or kind.__module__.split(".")[0] != "builtins"


def _entry(merged: Any, number: int) -> Any:
    return merged[number] if isinstance(merged, list) and number < len(merged) else None
