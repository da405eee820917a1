"""What an earlier run left in the output folder: kept, refused, or cleared away."""

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
    """Finished work that stays."""

    shards: Mapping[str, Sequence[Shard]]
    """Folder -> its full shards, without a gap from the first."""
    uids: frozenset[str]
    """Ids of their rows."""
    records: frozenset[int]
    """Positions in the input of their rows' records."""


def find_existing(
    output: OutputFolder,
    *,
    folders: Iterable[str],
    layout: ShardLayout,
    settings: str,
    scan: Scan,
) -> Existing:
    """Finds the shards that this conversion has already finished.

    A shard stays if it was written with the same settings and nothing of the input has changed
    up to its last record: so an input may grow at its end. The last shard of a split, if it is
    not full, is written again.

    Args:
        output: Where.
        folders: The splits' folders.
        layout: Names and size of the shards.
        settings: Hash of the settings.
        scan: The input.

    Returns:
        What stays.

    Raises:
        OutputError: If the folder holds shards of another conversion.
        InputError: If the input breaks off before what is already converted.
    """
    folders = list(folders)
    for folder, file in _parquet_files(output):
        match = _SHARD.fullmatch(file)
        if folder not in folders or match is None or match["name"] != layout.name:
            raise _other(
                output.path(posixpath.join(folder, file)), "a file that is not of this set"
            )
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
    """Deletes what a conversion writes, in the folder and in those of its splits."""
    for folder, file in _parquet_files(output):
        if _SHARD.fullmatch(file):
            output.remove(posixpath.join(folder, file))
    for folder in ("", *output.folders()):
        output.remove(posixpath.join(folder, INFO_FILE))
    output.remove(REJECTS_FILE)
    output.remove(SUMMARY_FILE)


def tidy(output: OutputFolder, shards: Mapping[str, Sequence[Shard]]) -> None:
    """Deletes shards that lie beyond the last one of their folder."""
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
        raise _other(path, "a shard made with other settings, or from other columns")
    last = shard.footer.records[-1]
    if scan.error is not None and last >= scan.num_records:
        raise scan.error
    if scan.chain(last) != shard.footer.chain:
        raise _other(path, f"a shard of an input that differs before its record {last}")


def _other(path: str, found: str) -> OutputError:
    return OutputError(
        path,
        found=found,
        wanted="an output folder that is empty or holds shards of this very conversion",
        remedy="Choose another --output, or replace what is there with --overwrite.",
    )
