"""Which files of the output folder this conversion, or an earlier one in the same folder, wrote.

`conversion.json` names the splits and the prefix of the shards, and the info file of each split
lists its shards. A conversion that was killed has left shards that are not listed yet: they have
the names of a split of this run and the footer of a conversion.
"""

import json
import posixpath
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mathcanvas_lightning.common.atomic import TEMPORARY_PREFIX
from mathcanvas_lightning.conversion.output.folder import OutputFolder
from mathcanvas_lightning.conversion.output.splits import is_folder_name
from mathcanvas_lightning.conversion.output.writer import FOOTER_KEY, ShardLayout
from mathcanvas_lightning.data.rows.shards import INFO_FILE
from mathcanvas_lightning.errors import OutputError
from mathcanvas_lightning.storage.files import PARQUET_SUFFIXES

REJECTS_FILE = "rejects.jsonl"
SUMMARY_FILE = "conversion.json"
_SHARD = re.compile(r"(?P<name>.+)_(?P<number>\d{3}|[1-9]\d{3,})\.parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The files that an earlier conversion in the folder has finished."""

    name: str
    """Prefix of the shards."""
    shards: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """Folder of a split -> name of a shard -> its entry in the info file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """The files of conversions in the output folder; all other files there are neighbours."""

    manifest: Manifest | None
    """The finished conversion, if there is one."""
    folders: tuple[str, ...]
    """Folders of this run's splits, and of those in the manifest."""
    names: frozenset[str]
    """Prefixes of the shards of this run and of the manifest."""
    shards: tuple[tuple[str, str], ...]
    """Folder and name of each shard."""

    def checksum(self, folder: str, name: str, rows: int) -> str | None:
        """The recorded SHA-256 of a shard with this many rows; None if it is not listed."""
        shards = self.manifest.shards if self.manifest is not None else {}
        entry = shards.get(folder, {}).get(name, {})
        return str(entry["sha256"]) if entry.get("num_samples") == rows else None


def find_owned(output: OutputFolder, layout: ShardLayout, splits: Collection[str]) -> Owned:
    """Finds the files of conversions in the output folder, and checks that all others are safe.

    Folders that hold other data sets, and hidden ones, are left alone.

    Args:
        output: The output folder.
        layout: Names of this run's shards.
        splits: Folders of this run's splits.

    Returns:
        The files that belong to the output folder.

    Raises:
        OutputError: If this run would mix its files with others, or replace others.
    """
    _check_parent(output)
    manifest = read_manifest(output)
    listed = manifest.shards if manifest is not None else {}
    folders = tuple(dict.fromkeys([*splits, *listed]))
    names = frozenset({layout.name} | ({manifest.name} if manifest is not None else set()))
    shards: list[tuple[str, str]] = []
    for folder in dict.fromkeys(["", *folders, *output.folders()]):
        if folder not in folders and folder != "":
            _check_neighbour(output, folder)
            continue
        if folder != "" and read_manifest(output, folder) is not None:
            raise _foreign(output.path(folder), "the output of another conversion")
        for file in _parquet_files(output, folder):
            match = _SHARD.fullmatch(file)
            path = posixpath.join(folder, file)
            if folder not in folders or match is None or match["name"] not in names:
                raise _foreign(output.path(path), "a file of another data set")
            if file not in listed.get(folder, {}) and not _is_shard(output, path):
                raise _foreign(output.path(path), "a file that no conversion wrote")
            shards.append((folder, file))
        if folder in folders and folder not in listed:
            _check_file(output, posixpath.join(folder, INFO_FILE), _is_info)
    if manifest is None:
        _check_file(output, REJECTS_FILE, _is_rejects)
    return Owned(manifest=manifest, folders=folders, names=names, shards=tuple(shards))


def read_manifest(output: OutputFolder, folder: str = "") -> Manifest | None:
    """Reads `conversion.json` and the info files that it names.

    Args:
        output: The output folder.
        folder: A folder in it.

    Returns:
        The manifest, or None if there is no such file.

    Raises:
        OutputError: If `conversion.json` is a file of another program.
    """
    path = posixpath.join(folder, SUMMARY_FILE)
    content = output.read(path)
    if content is None:
        return None
    try:
        settings = json.loads(content)
        name, splits = str(settings["layout"]["name"]), list(settings["split"])
    except (ValueError, KeyError, TypeError):
        name, splits = "", []
    if not splits or not all(split == "" or is_folder_name(split) for split in splits):
        raise _foreign(output.path(path), "a file that no conversion wrote")
    return Manifest(
        name=name,
        shards={split: _listed(output, posixpath.join(folder, split)) for split in splits},
    )


def remove_owned(output: OutputFolder, owned: Owned) -> None:
    """Deletes the files of conversions in the output folder, the manifest last."""
    for folder, file in owned.shards:
        output.remove(posixpath.join(folder, file))
    for folder in owned.folders:
        output.remove(posixpath.join(folder, INFO_FILE))
    output.remove(REJECTS_FILE)
    output.remove(SUMMARY_FILE)


def remove_leftovers(output: OutputFolder, owned: Owned) -> None:
    """Deletes the temporary files of a killed conversion."""

    def is_ours(file: str) -> bool:
        target = file.removeprefix(TEMPORARY_PREFIX)
        match = _SHARD.fullmatch(target)
        is_shard = match is not None and match["name"] in owned.names
        return target != file and (is_shard or target in (INFO_FILE, REJECTS_FILE, SUMMARY_FILE))

    for folder in dict.fromkeys(["", *owned.folders]):
        output.remove_temporaries(folder, is_ours)


def series(output: OutputFolder, folder: str, layout: ShardLayout) -> dict[int, str]:
    """Returns number -> name of a split's shards, in order."""
    files = {
        int(match["number"]): file
        for file in _parquet_files(output, folder)
        if (match := _SHARD.fullmatch(file)) and match["name"] == layout.name
    }
    return dict(sorted(files.items()))


def _check_parent(output: OutputFolder) -> None:
    parent, name = output.parent()
    if parent is None:
        return
    try:
        manifest = read_manifest(parent)
    except OutputError:  # its conversion.json is a file of another program
        return
    if manifest is not None and name in manifest.shards:
        raise _foreign(output.root, f"the split {name} of the conversion in {parent.root}")


def _check_neighbour(output: OutputFolder, folder: str) -> None:
    """Raises for a folder that is a split of an older conversion, not a separate data set."""
    files = _parquet_files(output, folder)
    first = next(files, None)
    if first is None or output.read(posixpath.join(folder, SUMMARY_FILE)) is not None:
        return
    path = posixpath.join(folder, first)
    if _is_shard(output, path):
        raise _foreign(output.path(path), "a split of an unfinished conversion")


def _check_file(output: OutputFolder, path: str, is_ours: Callable[[bytes], bool]) -> None:
    content = output.read(path)
    if content is not None and not is_ours(content):
        raise _foreign(output.path(path), "a file that no conversion wrote")


def _is_info(content: bytes) -> bool:
    return _info_entries(content) is not None


def _is_rejects(content: bytes) -> bool:
    try:
        return not content or {"record", "reason"} <= set(json.loads(content.split(b"\n")[0]))
    except (ValueError, TypeError):
        return False


def _listed(output: OutputFolder, folder: str) -> Mapping[str, Mapping[str, Any]]:
    content = output.read(posixpath.join(folder, INFO_FILE))
    return (_info_entries(content) if content is not None else None) or {}


def _info_entries(content: bytes) -> dict[str, Mapping[str, Any]] | None:
    try:
        files = json.loads(content)["files"]
        return {entry["path"]: {"sha256": entry["sha256"], **entry} for entry in files}
    except (ValueError, KeyError, TypeError):
        return None


def _is_shard(output: OutputFolder, path: str) -> bool:
    return FOOTER_KEY in output.parquet_metadata(path)


def _parquet_files(output: OutputFolder, folder: str) -> Iterator[str]:
    return (f for f in output.files(folder) if f.lower().endswith(PARQUET_SUFFIXES))


def _foreign(path: str, found: str) -> OutputError:
    return OutputError(
        path,
        found=found,
        wanted="an output folder that is empty or holds only shards of this conversion",
        remedy="Choose another --output or --name, or move the file away; nothing was deleted.",
    )
