"""A LightningCLI whose errors of configuration are one line: where, what, and the nearest name."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from mathcanvas_lightning.cli.command_parser import WRONG_OPTION, PrintingParser
from mathcanvas_lightning.cli.help import missing_settings
from mathcanvas_lightning.cli.settings.check import check_fields, fields_of
from mathcanvas_lightning.common.keys import did_you_mean, merged, nearest
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import MathCanvasError, cause_of_kind

MAX_LENGTH = 300


@dataclass(frozen=True, slots=True)
class Given:
    """Settings of one place."""

    place: str
    """The file or the option."""
    values: Mapping[str, Any]
    """Nested settings."""


class SettingsError(Exception):
    """A file of settings that can't be read; its text is complete."""


class OneLineParser(PrintingParser, LightningArgumentParser):
    """Explains an error in one line, without usage."""

    words: Sequence[str] = ()
    """The command and its options."""
    fields: Mapping[str, Any] = {}
    """Top-level keys -> annotation, for the explanation."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the error and exits with status 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        if (ours := cause_of_kind(ex, MathCanvasError)) is not None:
            raise ours
        sys.stderr.write(f"error: {explain(self.words, self.fields, message, ex)}\n")
        self.exit(WRONG_OPTION)


class OneLineCLI(LightningCLI):
    """Makes parsers that explain errors in one line and take no abbreviations."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._words = list(kwargs.get("args") or ())
        self._parsers: list[OneLineParser] = []
        super().__init__(*args, **{**kwargs, "parser_class": OneLineParser})

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Makes a parser.

        Args:
            kwargs: Arguments of the parser.
        """
        parser = super().init_parser(**{**kwargs, "allow_abbrev": False})
        assert isinstance(parser, OneLineParser)
        self._parsers.append(parser)
        return parser

    def _parse_ckpt_path(self) -> None:
        """Takes no settings from a checkpoint; Lightning would load it whole to look for them."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Reads the configuration.

        Args:
            parser: The parser.
            args: The words of the command line.
        """
        subparser = self._subcommand_parsers.get(self._words[0]) if self._words else None
        fields = {} if subparser is None else self._fields(subparser)
        for one in self._parsers:
            one.words, one.fields = self._words, fields
        super().parse_arguments(parser, args)

    def _fields(self, parser: LightningArgumentParser) -> dict[str, Any]:
        names = {action.dest.partition(".")[0] for action in parser._actions}
        kinds: dict[str, Any] = dict.fromkeys(names, Any)
        kinds |= {"model": self._model_class, "data": self._datamodule_class}
        return kinds | {"trainer": self.trainer_class}


def explain(
    words: Sequence[str], fields: Mapping[str, Any], message: str, error: Exception | None
) -> str:
    """Says in one line what is wrong with the settings of a command.

    Args:
        words: The command and its options.
        fields: Top-level keys -> annotation.
        message: The parser's message.
        error: Its cause.

    Returns:
        Place, key, and the nearest right one; or the most specific part of the parser's message.
    """
    try:
        given = list(_given(words))
    except SettingsError as problem:
        return str(problem)
    nothing: dict[str, Any] = {}
    together = reduce(merged, (one.values for one in given), nothing)
    for one in given if fields else ():
        for fault in _faults(one, fields, together):
            return f"{one.place}: {fault}"
    if (missing := missing_module(error, message)) is not None:
        return (
            f"a class of the settings needs the package {missing}, which is not installed: "
            f"pip install {missing}"
        )
    if not any("model" in one.values or "data" in one.values for one in given):
        return missing_settings(words[0])
    return _shortened(message)


def _faults(one: Given, fields: Mapping[str, Any], merged: Mapping[str, Any]) -> Iterator[str]:
    for key, value in one.values.items():
        name, _, rest = key.partition(".")
        if name not in fields:
            yield f"there is no key {key}. {did_you_mean(name, fields)}"
        elif name == "trainer":
            inner = {rest: value} if rest else value
            if isinstance(inner, Mapping):
                found = check_fields(inner, fields_of(fields[name]), name, merged.get(name) or {})
                yield from map(str, found)
        else:
            yield from map(str, check_fields({key: value}, fields, "", merged))


def _given(words: Sequence[str]) -> Iterator[Given]:
    """The settings of the files and options of a command, in order."""
    remaining = iter(words[1:])
    for word in remaining:
        if not word.startswith("-"):
            continue
        name, has_value, value = word.partition("=")
        if not has_value:
            value = next(remaining, "")
        if name in ("--config", "-c"):
            yield from _file(value)
        elif name.startswith("--"):
            yield Given(name, _nested(name.removeprefix("--").removesuffix("+"), value))


def _file(path: str) -> Iterator[Given]:
    place = local_path(path)
    is_file = _is_file(place)
    if not is_file and place.suffix in (".yaml", ".yml", ".json"):
        beside = place.parent.iterdir() if place.parent.is_dir() else ()
        near = nearest(place.name, [found.name for found in beside])
        hint = f" Did you mean {place.with_name(near)}?" if near else ""
        raise SettingsError(f"{path}: no such file.{hint}")
    text = place.read_text(encoding="utf-8", errors="replace") if is_file else path
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = "" if where is None else f":{where.line + 1}:{where.column + 1}"
        raise SettingsError(
            f"{path}{line}: no valid YAML: {getattr(error, 'problem', None) or error}"
        ) from None
    if isinstance(content, Mapping):
        yield Given(path if is_file else "--config", content)


def _is_file(place: Path) -> bool:
    try:
        return place.is_file()
    except OSError:  # a text of settings may be too long for a name
        return False


def _nested(key: str, text: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    for name in reversed(key.split(".")):
        value = {name: value}
    return dict(value)


def missing_module(error: BaseException | None, message: str = "") -> str | None:
    """Name of the package whose absence caused an error."""
    found = cause_of_kind(error, ModuleNotFoundError)
    text = message if found is None else str(found)
    named = re.search(r"No module named '(\w+)|Requirement '(\w+)", text)
    return None if named is None else named[1] or named[2]


def _shortened(message: str) -> str:
    """The most specific line of a message: the deepest key, or what was expected."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    wanted = [line for line in lines if re.search(r"Expected|is required|unrecognized", line)]
    keys = re.findall(r'[Pp]arser key "([\w.]+)"', message)
    text = wanted[0] if wanted else lines[0]
    where = f"{keys[0]}: " if keys and keys[0] not in text else ""
    text = " ".join(f"{where}{text}".split())
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]}..."
