"""What is known of the answers in a file: model, settings, sampling, prompt, data set."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from mathcanvas_lightning.common.atomic import written_whole
from mathcanvas_lightning.generation.run.journal.folder import journal_folder, rank_files
from mathcanvas_lightning.generation.run.journal.lines import decode_line
from mathcanvas_lightning.records.files import json_text

_FILE = "about.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswersAbout:
    """Origin of the answers in a file; None for what is not known."""

    model: str | None = None
    """Name of the model."""
    dataset: str | None = None
    """Name of the records that were answered."""
    settings: Mapping[str, Any] | None = None
    """Settings of the backend that change answers."""
    sampling: Mapping[str, Any] | None = None
    """Fields of `Sampling`."""
    prompt: Mapping[str, Any] | None = None
    """How the conversation was built from a record."""
    data: Mapping[str, Any] | None = None
    """The records: path, number, fingerprint."""
    software: Mapping[str, Any] | None = None
    """Versions of the software that answered last."""
    command: str | None = None
    """The command that answered last."""

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Reads plain types; what is missing or has another type is unknown."""
        if not isinstance(value, Mapping):
            return cls()
        texts = ("model", "dataset", "command")
        kinds = {one.name: str if one.name in texts else dict for one in fields(cls)}
        known = {n: value[n] for n, kind in kinds.items() if isinstance(value.get(n), kind)}
        return cls(**known)


def describe_prompt(prompt: Any) -> dict[str, Any]:
    """Describes a prompt builder in plain types.

    Args:
        prompt: The builder; its attribute `description`, if it has one, is added.
    """
    named = prompt if hasattr(prompt, "__qualname__") else type(prompt)
    found = getattr(prompt, "description", None)
    name = f"{named.__module__}.{named.__qualname__}"
    return {"builder": name, **(found if isinstance(found, Mapping) else {})}


def write_about(output: Path, dataset: str, prompt: Any, **run: Any) -> None:
    """Notes what the lines of a journal do not say.

    Args:
        output: File of answers.
        dataset: Name of the records.
        prompt: Builder of the conversations.
        run: Further fields of `AnswersAbout`, see `run_facts`.
    """
    folder = journal_folder(output)
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / _FILE) as path:
        content = {"dataset": dataset, "prompt": describe_prompt(prompt), **run}
        text = json_text(content, indent=1)
        path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def read_about(output: Path) -> AnswersAbout:
    """Reads what the journal beside a file of answers says about them.

    Args:
        output: File of answers; without a journal, nothing is known.
    """
    folder = journal_folder(output)
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError, RecursionError):
        known |= json.loads((folder / _FILE).read_bytes())
    with suppress(OSError):
        known |= _first_origin(folder)
    return AnswersAbout.from_json(known)


def _first_origin(folder: Path) -> dict[str, Any]:
    """Origin of the first answer; those of a journal are all the same."""
    for path in rank_files(folder):
        with path.open("rb") as file:
            for data in file:
                with suppress(ValueError):
                    line, _ = decode_line(data)
                    if line["sampling"] is not None:
                        return {name: line[name] for name in ("model", "settings", "sampling")}
    return {}
