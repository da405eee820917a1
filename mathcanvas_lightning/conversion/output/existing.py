"""Finds the shards of earlier runs that this conversion keeps."""

import logging
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mathcanvas_lightning.conversion.input.scan import Scan
from mathcanvas_lightning.conversion.output.folder import OutputFolder
from mathcanvas_lightning.conversion.output.manifest import Owned, series
from mathcanvas_lightning.conversion.output.writer import (
    Footer,
    Shard,
    ShardLayout,
    read_footer,
    read_shard,
)
from mathcanvas_lightning.errors import OutputError

logger = logging.getLogger(__name__)


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
    folders: Sequence[str],
    owned: Owned,
    layout: ShardLayout,
    settings: str,
    scan: Scan,
) -> Existing:
    """Finds the shards that this conversion has already finished.

    A shard is kept if it was written with the same settings and the input is unchanged up to
    its last record; so records may be appended to the input. The last shard of a split is
    rewritten if it is not full. A damaged shard, and those after it, are rewritten.

    Args:
        output: The output folder.
        folders: Names of the splits' folders.
        owned: The files of conversions in the output folder.
        layout: Names and sizes of the shards.
        settings: Hash of the settings.
        scan: Scan of the input.

    Returns:
        The finished work to keep.

    Raises:
        OutputError: If the folder holds shards of another conversion.
        InputError: If malformed JSON comes before the end of the converted records.
    """
    for folder, file in owned.shards:
        if folder not in folders or file not in series(output, folder, layout):
            raise _other(output.path(posixpath.join(folder, file)), "a shard of another data set")
    shards: dict[str, list[Shard]] = {folder: [] for folder in folders}
    uids: set[str] = set()
    records: set[int] = set()
    for folder in folders:
        is_kept = True
        for number, file in enumerate(series(output, folder, layout)):
            path = posixpath.join(folder, file)
            full = owned.checksum(folder, file, layout.samples_per_file)
            found = read_shard(output, path, checksum=full) if is_kept else None
            if is_kept and found is None:
                logger.warning("%s: damaged; it is written again", output.path(path))
            footer = found[0].footer if found is not None else read_footer(output, path)
            if footer is not None:  # of all shards, before anything is written
                _check_origin(output.path(path), footer, settings, scan)
            is_full = found is not None and len(found[1]) == layout.samples_per_file
            is_kept = is_kept and is_full and file == layout.shard_name(number)
            if found is not None and is_kept:
                shards[folder].append(found[0])
                uids.update(found[1])
                records.update(found[0].footer.records)
    return Existing(shards=shards, uids=frozenset(uids), records=frozenset(records))


def tidy(output: OutputFolder, layout: ShardLayout, shards: Mapping[str, Sequence[Shard]]) -> None:
    """Deletes shards of this conversion that are numbered after the last one of their folder."""
    for folder, finished in shards.items():
        for file in series(output, folder, layout):
            if file not in {shard.name for shard in finished}:
                output.remove(posixpath.join(folder, file))


def _check_origin(path: str, footer: Footer, settings: str, scan: Scan) -> None:
    if footer.settings != settings:
        raise _other(path, "a shard made with other settings, or with other columns")
    last = footer.records[-1]
    if scan.error is not None and last >= scan.num_records:
        raise scan.error
    if scan.chain(last) != footer.chain:
        raise _other(path, f"a shard of an input that differs before its record {last}")


def _other(path: str, found: str) -> OutputError:
    return OutputError(
        path,
        found=found,
        wanted="an output folder that is empty or holds shards of this conversion",
        remedy="Choose another --output, or use --overwrite to replace these files.",
    )
