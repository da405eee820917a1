"""Starting points for a new data set: a source format and its test, or the YAML of its columns."""

import keyword
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from mathcanvas_lightning.common.atomic import written_whole
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.conversion.columns.guess import guess_columns
from mathcanvas_lightning.conversion.columns.presets import YAML_SUFFIXES
from mathcanvas_lightning.conversion.input.files import opened_input
from mathcanvas_lightning.errors import ConfigError, InputError, OutputError

HANDLER_TEMPLATE = "source_format.py.j2"
LOOKED_AT = 100
"""Number of records from which columns are guessed."""
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

    @property
    def summary(self) -> str:
        """What was written, and how to use it."""
        return (
            f"Wrote {self.path} and its test {self.test_path}.\n"
            f"Test it:  python -m pytest {self.test_path}\n"
            f"Use it:   mathcanvas convert --source {self.import_path} --input FILE --output DIR"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnsFile:
    """A YAML file of the source `columns`."""

    path: Path
    """Path of the file."""
    guesses: Mapping[str, str]
    """Key with its value -> why it was guessed."""
    unused: Sequence[str]
    """Columns that no key uses."""
    presets: Sequence[str]
    """Presets that the columns fit."""
    input: str
    """The file whose columns were guessed."""

    @property
    def summary(self) -> str:
        """What was guessed and why, and how to use the file."""
        lines = [f"Wrote {self.path}. Guessed:"]
        lines += [f"  {text}  ({reason})" for text, reason in self.guesses.items()]
        if self.unused:
            lines.append(f"Not used: {', '.join(self.unused)}.")
        if self.presets:
            lines.append(f"These columns also fit --preset {' and --preset '.join(self.presets)}.")
        command = f"mathcanvas convert --config {self.path} --input {self.input} --output DIR"
        return "\n".join([*lines, f"Correct what is wrong, then:  {command}"])


def generate_dataset_handler(
    name: str,
    output: str,
    *,
    input: str | None = None,  # noqa: A002 - the option's name
    overwrite: bool = False,
) -> Handler | ColumnsFile:
    """Writes a small, working source format and its test, or the YAML of columns.

    Args:
        name: Name of the data set, such as my_data; the class is named after it.
        output: Python file to write; with input, YAML file.
        input: Data to look at; its columns are guessed, and written for convert --config.
        overwrite: Replace the file and its test if they exist.

    Returns:
        The written files.

    Raises:
        ConfigError: If the name or the file name can't be used.
        InputError: If the input can't be read.
        OutputError: If a file exists already.
    """
    path = local_path(output)
    if input is not None or path.suffix in YAML_SUFFIXES:
        return _write_columns(name, path, input, overwrite=overwrite)
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
        _check_new(file, overwrite=overwrite)
    values = {"name": name, "module": path.stem, "cls": class_name}
    for file, template in ((path, HANDLER_TEMPLATE), (test_path, TEST_TEMPLATE)):
        with written_whole(file) as temporary:
            temporary.write_text(_render(template, values), encoding="utf-8")
    return Handler(path=path, test_path=test_path, import_path=f"{path.stem}.{class_name}")


def _write_columns(name: str, path: Path, source: str | None, *, overwrite: bool) -> ColumnsFile:
    if source is None or path.suffix not in YAML_SUFFIXES:
        raise ConfigError(
            "--input" if source is None else "--output",
            found="nothing to look at" if source is None else repr(str(path)),
            wanted="a file of records" if source is None else "a .yaml file for the columns",
            remedy="Columns are guessed from --input FILE, and written to --output X.yaml.",
        )
    _check_new(path, overwrite=overwrite)
    with opened_input(source) as files:
        records = [r for r in files.read(0, LOOKED_AT) if isinstance(r, Mapping)]
        if not records:
            raise InputError(
                files.place,
                found="no objects",
                wanted="records with columns",
                remedy="Check the file.",
            )
    guess = guess_columns(records)
    guesses = {f"{key}: {_flow(value)}": guess.reasons[key] for key, value in guess.values.items()}
    lines = [f"# {name}: columns guessed from {len(records)} records. Correct what is wrong, then:"]
    lines.append(f"#   mathcanvas convert --config {path.name} --input FILE --output DIR")
    if guess.presets:
        lines.append(f"# These columns also fit --preset {' and --preset '.join(guess.presets)}.")
    lines += ["source: columns", f"name: {_flow(name)}", "columns:"]
    lines += [f"  {text}  # {reason}" for text, reason in guesses.items()]
    if guess.unused:
        lines.append(f"# Not used: {', '.join(guess.unused)}.")
    with written_whole(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ColumnsFile(
        path=path,
        guesses=guesses,
        unused=guess.unused,
        presets=guess.presets,
        input=source,
    )


def _flow(value: object) -> str:
    """A value as YAML in one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _check_new(file: Path, *, overwrite: bool) -> None:
    if file.exists() and not overwrite:
        raise OutputError(
            str(file),
            found="an existing file",
            wanted="a new file",
            remedy="Choose another --output, or replace it with --overwrite.",
        )


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
