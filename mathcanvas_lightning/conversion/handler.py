"""Writes a working source format, with its test, for a data set of one's own to start from."""

import re
from dataclasses import dataclass
from pathlib import Path
from string import Template

from mathcanvas_lightning.errors import ConfigError, OutputError

_HANDLER = Template('''"""The source format $name: from records to samples.

Use it from the folder that holds this file:
    python tools/convert_cot_to_parquet.py --source $module.$cls --input FILE --output DIR
"""

from collections.abc import Mapping
from typing import Any

from mathcanvas_lightning.conversion.input.images import SourceFiles
from mathcanvas_lightning.conversion.rejection import Reject
from mathcanvas_lightning.conversion.sources import Draft, Part, Picture, SourceFormat, text_field


class $cls(SourceFormat):
    """Problems with figures, solved in steps that may each have a figure.

    A record is an object such as
        {"id": "p1", "problem": "How large is the angle?", "figures": ["p1/question.png"],
         "steps": [{"text": "Draw the height.", "figure": "p1/step.png"}, {"text": "It is 60."}],
         "answer": "60", "level": 2, "verified": true}
    """

    # The default name of the shards.
    name = "$name"
    # Names the record in rejects.jsonl.
    id_field = "id"
    # What parse uses. All other fields that are text or numbers ("level") become columns.
    fields = frozenset({"id", "problem", "figures", "steps", "answer", "verified"})
    # Only the built-in formats are found by --source auto; this names what an object must have.
    recognised_by = frozenset({"problem", "steps"})

    def parse(self, record: Mapping[str, Any], files: SourceFiles) -> Draft:
        """Turns one record into texts and pictures, in the order in which they are read.

        Pictures are named by their paths relative to --image_dir; they are read, checked and
        counted for you, and texts are stripped. Raise Reject(reason, message) for a record that
        must not be trained on: it becomes a line of rejects.jsonl, as does anything that breaks.
        Should a sample need further files of that folder, files.read(path, max_bytes=...) has them.
        """
        if record.get("verified") is False:
            raise Reject("not_verified", "field 'verified' is false")
        question: list[Part] = [text_field(record, "problem")]
        question += [Picture(path) for path in record.get("figures", [])]
        solution: list[Part] = []
        for step in record.get("steps", []):
            solution.append(step.get("text", ""))
            if "figure" in step:
                solution.append(Picture(step["figure"]))
        return Draft(
            uid=text_field(record, "id"),
            question=question,
            solution=solution,
            answer=text_field(record, "answer"),
        )
''')

_TEST = Template('''"""Converts two records, one of them to be refused, and reads the shard."""

import json
from pathlib import Path

from PIL import Image

from mathcanvas_lightning import ImageSegment, TextSegment, convert_cot, iter_examples


def test_$module(tmp_path: Path) -> None:
    for picture in ("question.png", "step_1.png"):
        Image.new("RGB", (32, 24), "white").save(tmp_path / picture)
    record = {
        "id": "p1",
        "problem": "How large is the angle?",
        "figures": ["question.png"],
        "steps": [{"text": "Draw the height.", "figure": "step_1.png"}, {"text": "So it is 60."}],
        "answer": "60",
        "level": 2,
    }
    source = tmp_path / "records.json"
    source.write_text(json.dumps([record, {**record, "id": "p2", "verified": False}]))

    report = convert_cot(
        str(source), str(tmp_path / "shards"), source="$module.$cls", num_workers=0
    )

    assert report.problem is None
    assert report.rejects == {"not_verified": 1}
    (example,) = iter_examples(tmp_path / "shards")
    assert example.uid == "p1"
    assert example.answer == "60"
    assert example.extras == {"level": 2}
    kinds = [type(segment) for segment in (*example.question, *example.solution)]
    assert kinds == [TextSegment, ImageSegment, TextSegment, ImageSegment, TextSegment]
''')


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """What was written."""

    path: Path
    """The source format."""
    test_path: Path
    """Its test, beside it."""
    import_path: str
    """What `--source` takes, from the folder that holds it."""


def generate_dataset_handler(name: str, output: str, *, overwrite: bool = False) -> Handler:
    """Writes a small, working, commented source format with a test beside it.

    Args:
        name: Name of the data set, such as my_data; the class is named after it.
        output: Python file to write.
        overwrite: Replace the file and its test if they are there.

    Returns:
        The files written.

    Raises:
        ConfigError: If the name or the file name can't be used in Python.
        OutputError: If a file is there already.
    """
    path = Path(output)
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise ConfigError(
            "--name",
            found=repr(name),
            wanted="letters, digits, dashes and underscores, a letter first",
            remedy="Write for instance my_data.",
        )
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise ConfigError(
            "--output",
            found=repr(output),
            wanted="a .py file whose name can be imported",
            remedy="Write for instance my_data.py.",
        )
    test_path = path.with_name(f"test_{path.name}")
    for file in (path, test_path):
        if file.exists() and not overwrite:
            raise OutputError(
                str(file),
                found="a file",
                wanted="nothing",
                remedy="Choose another --output, or replace it with --overwrite.",
            )
    words = {
        "name": name,
        "module": path.stem,
        "cls": "".join(word[0].upper() + word[1:] for word in re.split(r"[-_]+", name) if word),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_HANDLER.substitute(words), encoding="utf-8")
    test_path.write_text(_TEST.substitute(words), encoding="utf-8")
    return Handler(path=path, test_path=test_path, import_path=f"{words['module']}.{words['cls']}")
