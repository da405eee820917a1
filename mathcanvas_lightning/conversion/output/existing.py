"""Finds the shards of earlier runs that this conversion keeps."""

import logging
import posixpath
from collections.abc import Collection, Mapping, Sequence
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

DAMAGED_SUFFIX = ".damaged"
"""End of the name of a damaged shard whose records could not be converted again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Existing:
    """Finished work of earlier runs, which is kept."""

    shards: Mapping[str, Mapping[int, Shard]]
    """Folder -> number -> its full, undamaged shards."""
    uids: frozenset[str]
    """Ids of all rows in the shards."""
    records: frozenset[int]
    """Positions in the input of all records in the shards."""
    rewritten: frozenset[int]
    """Positions of all records in undamaged shards that are not full: these are written again."""
    damaged: frozenset[tuple[str, str]]
    """Folder and name of each damaged shard."""


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
    rewritten if it is not full, and so is a damaged or missing one.

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
    files = {folder: series(output, folder, layout) for folder in folders}
    _check_all_expected(output, owned, files)
    shards: dict[str, dict[int, Shard]] = {folder: {} for folder in folders}
    damaged: set[tuple[str, str]] = set()
    uids: set[str] = set()
    rewritten: set[int] = set()
    for folder in folders:
        for number, file in files[folder].items():
            path = posixpath.join(folder, file)
            full = owned.checksum(folder, file, layout.samples_per_file)
            found = read_shard(output, path, checksum=full)
            footer = found[0].footer if found is not None else read_footer(output, path)
            if footer is not None:
                _check_origin(output.path(path), footer, settings, scan)
            if found is None:
                logger.warning("%s: damaged; it is written again", output.path(path))
                damaged.add((folder, file))
            elif len(found[1]) == layout.samples_per_file:
                shards[folder][number] = found[0]
                uids.update(found[1])
            else:
                rewritten.update(found[0].footer.records)
    records = {r for of in shards.values() for shard in of.values() for r in shard.footer.records}
    return Existing(
        shards=shards,
        uids=frozenset(uids),
        records=frozenset(records),
        rewritten=frozenset(rewritten),
        damaged=frozenset(damaged),
    )


def tidy(
    output: OutputFolder,
    layout: ShardLayout,
    shards: Mapping[str, Collection[Shard]],
    existing: Existing,
) -> None:
    """Deletes shards whose rows are now in others; renames damaged ones that were not replaced."""
    for folder, finished in shards.items():
        names = {shard.name for shard in finished}
        for file in series(output, folder, layout).values():
            if file in names:
                continue
            path = posixpath.join(folder, file)
            if (folder, file) in existing.damaged:
                logger.warning("%s: its records were rejected this time", output.path(path))
                output.copy(path, f"{path}{DAMAGED_SUFFIX}")
            output.remove(path)


def _check_all_expected(
    output: OutputFolder, owned: Owned, files: Mapping[str, Mapping[int, str]]
) -> None:
    expected = {(folder, file) for folder, shards in files.items() for file in shards.values()}
    for folder, file in owned.shards:
        if (folder, file) not in expected:
            raise _other(output.path(posixpath.join(folder, file)), "a shard of another data set")


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
