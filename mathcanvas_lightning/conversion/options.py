"""Options of a conversion, grouped, and how they select the source and the image folder."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mathcanvas_lightning.common.paths import is_remote, local_path, parent_folder, without_query
from mathcanvas_lightning.conversion.columns import Columns, find_columns, preset_names
from mathcanvas_lightning.conversion.files import SourceFiles
from mathcanvas_lightning.conversion.sources import BLOCKMOVING_PROMPT, BlockMoving, SourceFormat
from mathcanvas_lightning.data.rows.schema import InterleaveEncoding
from mathcanvas_lightning.errors import ConfigError, check_settings
from mathcanvas_lightning.storage.files import Storage

MAX_PATH_CHARACTERS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class InputConfig:
    """Where records and images are read from, and in which format."""

    input: str
    """Path or URL of the JSON or JSONL file."""
    image_dir: str | None
    """Folder that image paths are relative to; None for the folder of the input."""
    source: str
    """Name or import path of the source format; "auto" recognises it by its fields."""
    question_prompt: str
    """Text or file for the questions of BlockMoving, "builtin" or "none"."""
    link_root: str | None
    """Folder into which links in the image folder may lead; None for the image folder itself."""
    preset: str | None
    """Preset of a public data set, or a YAML file, for the source `columns`."""
    columns: Mapping[str, Any] | None
    """Keys of `ColumnsConfig` that replace those of the preset."""

    @property
    def has_columns(self) -> bool:
        """Whether records are read by the names of their columns."""
        return self.preset is not None or bool(self.columns)

    @property
    def shard_name(self) -> str | None:
        """Default prefix of the shards' names; None for that of the source format."""
        return self.preset if self.preset in preset_names() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputConfig:
    """Where and how shards are written."""

    output: str
    """Path or URL of the output folder."""
    name: str | None
    """Prefix of the shards' file names; None for the name of the source format."""
    interleave_encoding: InterleaveEncoding
    """Encoding of the interleave columns."""
    overwrite: bool
    """Whether to delete the files of an earlier conversion first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSize:
    """Sizes of shards and row groups."""

    samples_per_file: int
    """Rows per shard."""
    row_group_rows: int
    """Rows per row group; fewer if their images are large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitConfig:
    """How rows are assigned to splits."""

    split: str | None
    """Names and fractions, such as "train=0.9,test=0.1"; None for no splits."""
    seed: int
    """Seed of the assignment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleConfig:
    """Which samples become rows."""

    allow_no_solution: bool
    """Whether a sample without a solution becomes a row."""
    max_image_pixels: int
    """A sample with a larger image is rejected."""
    apply_exif_orientation: bool
    """Whether images with an EXIF orientation are turned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Settings that don't change the output."""

    num_workers: int | None
    """Worker processes; 0 uses the main process, None one per usable core."""
    max_reject_fraction: float
    """The largest fraction of rejects with which the conversion still succeeds."""
    max_image_reject_fraction: float
    """The largest fraction of rejects for images with which the conversion still succeeds."""
    progress: bool
    """Whether to show progress bars."""
    part: str | None = None
    """The part of the input that is converted, such as 3/8; None for all."""

    def __post_init__(self) -> None:
        """Checks the fractions.

        Raises:
            ConfigError: If one is not within 0..1.
        """
        every, of_images = self.max_reject_fraction, self.max_image_reject_fraction
        wanted = "a fraction from 0 to 1"
        check_settings(
            ("--max_reject_fraction", every, 0 <= every <= 1, wanted),
            ("--max_image_reject_fraction", of_images, 0 <= of_images <= 1, wanted),
            remedy="Write 0.1 for ten percent.",
        )


GROUPS = (InputConfig, OutputConfig, ShardSize, SplitConfig, SampleConfig, RunConfig)


def select_options(options: Mapping[str, Any]) -> tuple[Any, ...]:
    """Builds the groups above, in this order, from the options by name."""
    return tuple(
        group(**{field.name: options[field.name] for field in fields(group)}) for group in GROUPS
    )


def make_source(format_class: type[SourceFormat], config: InputConfig) -> SourceFormat:
    """Creates a source format, with its prompt or its columns.

    Raises:
        ConfigError: If the format has no prompt or no columns, but they are given; or if they
            can't be read.
    """
    if config.has_columns and format_class is not Columns:
        raise ConfigError(
            "--preset" if config.preset is not None else "columns",
            found=f"columns for the source {format_class.name}",
            wanted="the source columns",
            remedy="Remove --source, or the columns.",
        )
    if issubclass(format_class, BlockMoving):
        return format_class(prompt=_read_prompt(config.question_prompt))
    if config.question_prompt != "builtin":
        raise ConfigError(
            "--question_prompt",
            found=f"a prompt for the source {format_class.name}",
            wanted="the source blockmoving",
            remedy="Remove the option, and put the text into the questions of the input.",
        )
    if format_class is Columns:
        return Columns(find_columns(config.preset, config.columns))
    return format_class()


def _read_prompt(value: str) -> str | None:
    if value in ("builtin", "none"):
        return BLOCKMOVING_PROMPT if value == "builtin" else None
    path = local_path(value)
    if len(value) < MAX_PATH_CHARACTERS and path.is_file():
        try:
            return path.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                "--question_prompt",
                found=f"{value!r}, which can't be read as text ({error})",
                wanted="a text file in UTF-8",
                remedy="Save it as UTF-8.",
            ) from None
    if path.suffix in (".txt", ".md") and not re.search(r"\s", value):
        raise ConfigError(
            "--question_prompt",
            found=f"{value!r}, which looks like a file but does not exist",
            wanted="a text, a file, builtin or none",
            remedy="Check the path.",
        )
    return value


def make_files(source: InputConfig) -> SourceFiles:
    """Creates the reader of the images.

    Raises:
        ConfigError: If a folder is local and does not exist.
    """
    _check_folder("--image_dir", source.image_dir, "the folder that image paths are relative to")
    _check_folder("--link_root", source.link_root, "a folder that links may lead into")
    root = source.image_dir or folder_of(source.input)
    return SourceFiles(root, link_root=source.link_root)


def _check_folder(option: str, folder: str | None, wanted: str) -> None:
    if folder is not None and not is_remote(folder) and not local_path(folder).is_dir():
        raise ConfigError(
            option,
            found=f"{folder!r}, which is not a folder",
            wanted=wanted,
            remedy="Check the path, or remove the option.",
        )


def folder_of(source: str) -> str:
    """Returns the folder or URL that holds an input; of a folder, the folder itself."""
    if Storage().is_folder(source):
        return source.rstrip("/") if is_remote(source) else str(local_path(source).resolve())
    if is_remote(source):
        return parent_folder(source)
    return str(local_path(source).resolve().parent)


def relative_folder(folder: str | None, source: str) -> str:
    """Returns a folder relative to the input's folder, so that data can be moved."""
    if folder is None:
        return "."
    if is_remote(folder) or is_remote(source):
        return without_query(folder)
    return os.path.relpath(local_path(folder).resolve(), folder_of(source))
