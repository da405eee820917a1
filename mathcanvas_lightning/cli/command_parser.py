"""The parser of a command: errors are one line with the nearest right option."""

import argparse
import re
import sys
from typing import TYPE_CHECKING, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from mathcanvas_lightning.common.keys import did_you_mean, nearest

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

WRONG_OPTION = 2
"""Exit status after a wrong option."""


class HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the example."""


class PrintingParser(argparse.ArgumentParser):
    """Raises if its help can't be written; argparse would end as if it were."""

    def _print_message(self, message: str, file: "SupportsWrite[str] | None" = None) -> None:
        stream = file or sys.stderr
        if message and stream is not None:
            stream.write(message)


class CommandParser(PrintingParser, ArgumentParser):
    """Explains an error in one line, without usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the error and exits with status 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        options = [name for name in self._option_string_actions if name.startswith("--")]
        command = self.prog.rpartition(" ")[2]
        sys.stderr.write(f"error: {explain_option(message, command, options)}\n")
        self.exit(WRONG_OPTION)


def explain_option(message: str, command: str, options: list[str]) -> str:
    """Says in one line what is wrong with the options of a command.

    Args:
        message: The parser's message.
        command: Name of the command.
        options: Its options, with dashes.

    Returns:
        The option, what was found, and the nearest right one.
    """
    names = {option.removeprefix("--") for option in options}
    if found := re.match(r"unrecognized arguments: (\S+)", message):
        word = found[1].partition("=")[0]
        if not word.startswith("-"):
            return f"{command} takes no further argument: {word}"
        return f"{command} has no option {word}. {_hint(word, options, command)}"
    if found := re.match(r"Option '([\w.]+)' is not accepted", message):
        return f"--config: {command} has no option {found[1]}. {did_you_mean(found[1], names)}"
    if found := re.match(r"the following arguments are required: (.+)", message):
        needed = [f"--{n}" if n in names else n.upper() for n in found[1].split(", ")]
        return f"{command} needs {', '.join(needed)}. {_help(command)}"
    if found := re.match(r"argument (--\w+): expected", message):
        return f"{found[1]} needs a value. {_help(command)}"
    if found := re.match(r"(Problems parsing config|Unexpected config): ?(.*)", message, re.DOTALL):
        what = " ".join(found[2].split()) or "an empty file"
        return f"--config: found {what}; wanted a YAML file with a line such as input: FILE"
    if found := re.match(r"Parser key \"(\w+)\":", message):
        return f"--{found[1]}: {_value(message)}"
    return " ".join(message.split())


def _value(message: str) -> str:
    if found := re.search(r"File does not exist: '(.+)'", message):
        return f"there is no file {found[1]}"
    given = re.search(r"(?:Got value|Given value): (.*)", message)
    value = "" if given is None else given[1]
    if found := re.search(r"Literal\[(.+)\]", message):
        known = re.findall(r"'([^']+)'", found[1])
        return f"found {value}; wanted one of {', '.join(known)}. {_close(value, known)}".rstrip()
    kinds = [k for k in re.findall(r"Expected an? <class '(\w+)'>", message) if k != "NoneType"]
    wanted = " or ".join(dict.fromkeys(kinds)) or "another value"
    return f"found {value}; wanted {wanted}"


def _close(value: str, known: list[str]) -> str:
    near = nearest(value, known)
    return f"Did you mean {near}?" if near else ""


def _hint(word: str, options: list[str], command: str) -> str:
    return _close(word, options) or _help(command)


def _help(command: str) -> str:
    return f"mathcanvas {command} --help lists the options."
