"""Replays terminal transcripts: commands, their output, and their exit statuses."""

import fnmatch
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mathcanvas_lightning.cli.main import main

FOLDER = Path(__file__).parent / "transcripts"
ANY_LINES = "..."


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a transcript."""

    words: list[str]
    status: int
    lines: list[str]
    """Expected lines: `*` stands for any text, a line `...` for any lines."""


def read_transcript(name: str) -> Iterator[Command]:
    """Reads the commands of a transcript; `[exit N]` ends one whose status is not 0."""
    words: list[str] | None = None
    status, lines = 0, []
    for line in (FOLDER / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("$ mathcanvas"):
            if words is not None:
                yield Command(words, status, lines)
            words, status, lines = shlex.split(line)[2:], 0, []
        elif found := re.fullmatch(r"\[exit (\d+)\]", line):
            status = int(found[1])
        elif words is not None and line:
            lines.append(line)
    if words is not None:
        yield Command(words, status, lines)


def replay(name: str, capsys: Any, values: Mapping[str, str]) -> None:
    """Runs the commands of a transcript in this process, and compares what they print.

    Args:
        name: The transcript.
        capsys: pytest's fixture.
        values: Word -> what it stands for in the commands.
    """
    for command in read_transcript(name):
        words = [values.get(word, word) for word in command.words]
        capsys.readouterr()
        status = run(words)
        out, err = capsys.readouterr()
        shown = [line.rstrip() for line in (*err.splitlines(), *out.splitlines()) if line.strip()]
        problem = mismatch(command.lines, shown)
        assert problem is None, f"$ mathcanvas {shlex.join(words)}\n{problem}\n" + "\n".join(shown)
        assert status == command.status, (words, shown)


def run(words: list[str]) -> int:
    """Runs a command and returns its exit status, also if it ends by exiting."""
    try:
        return main(words)
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else 1


def mismatch(expected: list[str], shown: list[str]) -> str | None:
    """Describes the first expected line that was not shown; None if all were, in order."""
    position, is_loose = 0, False
    for pattern in expected:
        if pattern == ANY_LINES:
            is_loose = True
            continue
        rest = shown[position:] if is_loose else shown[position : position + 1]
        found = next((n for n, line in enumerate(rest) if matches(pattern, line)), None)
        if found is None:
            return f"not shown: {pattern}"
        position, is_loose = position + found + 1, False
    return None if is_loose or position == len(shown) else f"not expected: {shown[position]}"


def matches(pattern: str, line: str) -> bool:
    """Whether a line has the form of a pattern with `*`."""
    return fnmatch.fnmatchcase(line, pattern.rstrip().replace("[", "[[]"))
