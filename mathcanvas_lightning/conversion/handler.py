"""Writes an example source format and its test, from templates, as a start for a new data set."""

import keyword
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from mathcanvas_lightning.common.atomic import written_whole
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import ConfigError, OutputError

HANDLER_TEMPLATE = "source_format.py.j2"
TEST_TEMPLATE = "test_source_format.py.j2"
TEMPLATE_NAMES = frozenset(
    {"Any", "Draft", "Image", "ImageSegment", "Mapping", "Part", "Path", "Picture"}
    | {"RejectError", "SourceFiles", "SourceFormat", "TextSegment"}
)
"""Names that the templates import."""


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
    class_name = _class_name(name)
    if not _is_importable(path):
        raise ConfigError(
            "--output",
            found=repr(output),
            wanted="a .py file that can be imported and hides no module of Python",
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
    values = {"name": name, "module": path.stem, "cls": class_name}
    for file, template in ((path, HANDLER_TEMPLATE), (test_path, TEST_TEMPLATE)):
        with written_whole(file) as temporary:
            temporary.write_text(_render(template, values), encoding="utf-8")
    return Handler(path=path, test_path=test_path, import_path=f"{path.stem}.{class_name}")


def _class_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise ConfigError(
            "--name",
            found=repr(name),
            wanted="letters, digits, dashes and underscores, starting with a letter",
            remedy="Write for instance my_data.",
        )
    words = [word for word in re.split(r"[-_]+", name) if word]
    class_name = "".join(word[0].upper() + word[1:] for word in words)
    if keyword.iskeyword(class_name) or class_name in TEMPLATE_NAMES:
        raise ConfigError(
            "--name",
            found=f"{name!r}, whose class {class_name} would hide another name of Python",
            wanted="the name of a data set",
            remedy=f"Write for instance {name}_data.",
        )
    return class_name


def _is_importable(path: Path) -> bool:
    stem = path.stem
    is_name = stem.isidentifier() and not keyword.iskeyword(stem)
    return path.suffix == ".py" and is_name and stem not in sys.stdlib_module_names


def _render(template: str, values: Mapping[str, str]) -> str:
    environment = Environment(
        loader=PackageLoader("mathcanvas_lightning.conversion"),
        autoescape=select_autoescape(),
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    return environment.get_template(template).render(values)
