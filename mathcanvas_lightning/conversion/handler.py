"""Writes an example source format and its test, from templates, as a start for a new data set."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import ConfigError, OutputError

HANDLER_TEMPLATE = "source_format.py.j2"
TEST_TEMPLATE = "test_source_format.py.j2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """The files of a generated source format."""

    path: Path
    """Path of the source format."""
    test_path: Path
    """Path of its test, in the same folder."""
    import_path: str
    """Value for `--source`, when run from the folder of the file."""


def generate_dataset_handler(name: str, output: str, *, overwrite: bool = False) -> Handler:
    """Writes a small, working, commented source format and its test.

    Args:
        name: Name of the data set, such as my_data; the class is named after it.
        output: Python file to write.
        overwrite: Replace the file and its test if they exist.

    Returns:
        The written files.

    Raises:
        ConfigError: If the name or the file name is not valid in Python.
        OutputError: If a file exists already.
    """
    path = local_path(output)
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise ConfigError(
            "--name",
            found=repr(name),
            wanted="letters, digits, dashes and underscores, starting with a letter",
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
                found="an existing file",
                wanted="a new file",
                remedy="Choose another --output, or replace it with --overwrite.",
            )
    words = {
        "name": name,
        "module": path.stem,
        "cls": "".join(word[0].upper() + word[1:] for word in re.split(r"[-_]+", name) if word),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_render(HANDLER_TEMPLATE, words), encoding="utf-8")
    test_path.write_text(_render(TEST_TEMPLATE, words), encoding="utf-8")
    return Handler(path=path, test_path=test_path, import_path=f"{words['module']}.{words['cls']}")


def _render(template: str, words: Mapping[str, str]) -> str:
    environment = Environment(
        loader=PackageLoader("mathcanvas_lightning.conversion"),
        autoescape=select_autoescape(),
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    return environment.get_template(template).render(words)
