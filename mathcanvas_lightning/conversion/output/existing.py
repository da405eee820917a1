"""Finds the shards of earlier runs: keeps them, refuses them, or deletes them."""

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mathcanvas_lightning.conversion.input.scan import Scan
from mathcanvas_lightning.conversion.output.folder import OutputFolder
from mathcanvas_lightning.conversion.output.writer import Shard, ShardLayout, read_finished
from mathcanvas_lightning.data.rows.shards import INFO_FILE
from mathcanvas_lightning.errors import OutputError

REJECTS_FILE = "rejects.jsonl"
SUMMARY_FILE = "conversion.json"
_SHARD = re.compile(r"(?P<name>.+)_\d{3,}\.parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Existing:
    """Finished work of earlier runs, which is kept."""

    shards: Mapping[str, Sequence[Shard]]
    """Folder -> its full shards, numbered from 0 without a gap."""
    uids: frozenset[str]
    """Ids of all rows in the shards."""
    records: frozenset[int]
    """Positions in the input of all records in the shards."""


def find_existing(
    output: OutputFolder,
    *,
    folders: Iterable[str],
    layout: ShardLayout,
    settings: str,
    scan: Scan,
) -> Existing:
    """Finds the shards that this conversion has already finished.

    A shard is kept if it was written with the same settings and the input is unchanged up to
    its last record; so records may be appended to the input. The last shard of a split is
    rewritten if it is not full.

    Args:
        output: The output folder.
        folders: Names of the splits' folders.
        layout: Names and sizes of the shards.
        settings: Hash of the settings.
        scan: Scan of the input.

    Returns:
        The finished work to keep.

    Raises:
        OutputError: If the folder holds shards of another conversion.
        InputError: If malformed JSON comes before the end of the converted records.
    """
    folders = list(folders)
    for folder, file in _parquet_files(output):
        match = _SHARD.fullmatch(file)
        if folder not in folders or match is None or match["name"] != layout.name:
            raise _other(output.path(posixpath.join(folder, file)), "a file of another data set")
    shards: dict[str, list[Shard]] = {folder: [] for folder in folders}
    uids: set[str] = set()
    records: set[int] = set()
    for folder in folders:
        for shard, ids in read_finished(output, folder, layout):
            _check_origin(output.path(posixpath.join(folder, shard.name)), shard, settings, scan)
            if len(ids) < layout.samples_per_file:
                break
            shards[folder].append(shard)
            uids.update(ids)
            records.update(shard.footer.records)
    return Existing(shards=shards, uids=frozenset(uids), records=frozenset(records))


def clear(output: OutputFolder) -> None:
    """Deletes the files of a conversion in the output folder and the splits' folders."""
    for folder, file in _parquet_files(output):
        if _SHARD.fullmatch(file):
            output.remove(posixpath.join(folder, file))
    for folder in ("", *output.folders()):
        output.remove(posixpath.join(folder, INFO_FILE))
    output.remove(REJECTS_FILE)
    output.remove(SUMMARY_FILE)


def tidy(output: OutputFolder, shards: Mapping[str, Sequence[Shard]]) -> None:
    """Deletes shards numbered after the last one of their folder."""
    for folder, file in _parquet_files(output):
        if file not in {shard.name for shard in shards[folder]}:
            output.remove(posixpath.join(folder, file))


def _parquet_files(output: OutputFolder) -> Iterator[tuple[str, str]]:
    for folder in ("", *output.folders()):
        for file in output.files(folder):
            if file.endswith(".parquet") and not file.startswith("."):
                yield folder, file


def _check_origin(path: str, shard: Shard, settings: str, scan: Scan) -> None:
    if shard.footer.settings != settings:
        raise _other(path, "a shard made with other settings, or with other columns")
    last = shard.footer.records[-1]
    if scan.error is not None and last >= scan.num_records:
        raise scan.error
    if scan.chain(last) != shard.footer.chain:
        raise _other(path, f"a shard of an input that differs before its record {last}")


def _other(path: str, found: str) -> OutputError:
    return OutputError(
        path,
        found=found,
        wanted="an output folder that is empty or holds shards of this conversion",
        remedy="Choose another --output, or use --overwrite to replace these files.",
    )
