"""Scans the input before the conversion: format, number of records, extra columns, hashes."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa

from mathcanvas_lightning.common.paths import import_from_here
from mathcanvas_lightning.common.progress import progress_bar
from mathcanvas_lightning.common.similar import nearest
from mathcanvas_lightning.conversion.input.extras import ExtraColumns
from mathcanvas_lightning.conversion.input.records import read_records
from mathcanvas_lightning.conversion.sources import BUILT_IN, SourceFormat
from mathcanvas_lightning.errors import ConfigError, InputError

CHAIN_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """Result of reading all records once, without their images."""

    num_records: int
    """Number of records up to the end, or up to the first JSON error."""
    extras: Mapping[str, pa.DataType]
    """Name -> type of the extra columns."""
    renamed: Mapping[str, str]
    """Field -> extra column, for fields that can't keep their names."""
    chains: bytes
    """Chained hashes, `CHAIN_BYTES` for each record: the hash covers all records up to it."""
    error: InputError | None
    """The first JSON error, or None."""

    def chain(self, record: int) -> str:
        """Returns the hash of all records up to `record`, in hexadecimal; "" beyond the last."""
        return self.chains[record * CHAIN_BYTES : (record + 1) * CHAIN_BYTES].hex()


def scan_input(path: Path, place: str, source: SourceFormat, *, progress: bool) -> Scan:
    """Reads all records once.

    Args:
        path: Local file.
        place: Name of the file in errors.
        source: The source format; decides which fields become extra columns.
        progress: Whether to show a progress bar.

    Returns:
        The scan. It ends at the first JSON error, and keeps that error.
    """
    extras = ExtraColumns()
    chains = bytearray()
    digest = hashlib.blake2b(digest_size=CHAIN_BYTES)
    error = None
    with progress_bar("Scanning records", None, show=progress) as advance:
        try:
            for record in read_records(path, place):
                digest.update(_canonical(record, len(chains) // CHAIN_BYTES, place))
                chains += digest.digest()
                if isinstance(record, dict):
                    with contextlib.suppress(Exception):  # reported as a rejection later
                        extras.add(source.extras(record))
                advance(1, "")
        except InputError as broken:
            error = broken
    return Scan(
        num_records=len(chains) // CHAIN_BYTES,
        extras=extras.types(),
        renamed=extras.renamed(),
        chains=bytes(chains),
        error=error,
    )


def recognise_source(path: Path, place: str) -> type[SourceFormat]:
    """Returns the built-in format whose fields the first recognisable object has.

    Raises:
        InputError: If no object has the fields of a built-in format, or malformed JSON comes first.
    """
    fields: set[str] = set()
    has_arrays = False
    for record in read_records(path, place):
        has_arrays |= isinstance(record, list)
        if isinstance(record, dict):
            fields = fields or set(record)
            for source in BUILT_IN:
                if source.recognised_by <= set(record):
                    return source
    known = "; ".join(f"{s.name}: {', '.join(sorted(s.recognised_by))}" for s in BUILT_IN)
    remedy = "Name the format with --source, or write one with mathcanvas generate-handler."
    if "conversations" in fields:
        remedy = "Conversations are trained on as they are, with the row format vlm."
    if has_arrays and not fields:
        remedy = "If the file is one JSON array, let its name end in .json."
    found = "arrays instead of objects" if has_arrays else "no objects"
    raise InputError(
        place,
        found=f"objects with the fields {sorted(fields)}" if fields else found,
        wanted=f"the fields of a known format ({known})",
        remedy=remedy,
    )


def find_source(name: str) -> type[SourceFormat]:
    """Returns the format class for a built-in name or an import path such as `my_data.MyData`.

    Raises:
        ConfigError: If the class does not exist, or is not a `SourceFormat`.
    """
    for source in BUILT_IN:
        if source.name == name:
            return source
    module_name, _, class_name = name.rpartition(".")
    import_from_here([name])
    try:
        found = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        found = f"nothing to import ({error})" if module_name else "no such format"
        raise _bad_source(name, found) from None
    if not (isinstance(found, type) and issubclass(found, SourceFormat)):
        raise _bad_source(name, f"{found!r}")
    return found


def _canonical(record: Any, number: int, place: str) -> bytes:
    try:
        return json.dumps(record).encode()
    except RecursionError:
        raise InputError(
            f"{place}, record {number}",
            found="arrays or objects nested hundreds of levels deep",
            wanted="a record of a few levels",
            remedy="Remove it from the input.",
        ) from None


def _bad_source(name: str, found: str) -> ConfigError:
    names = ", ".join(source.name for source in BUILT_IN)
    near = nearest(name, ["auto", *(source.name for source in BUILT_IN)])
    return ConfigError(
        f"--source {name}",
        found=found,
        wanted=f"auto, {names}, or the import path of a SourceFormat subclass",
        remedy=f"Did you mean {near}?"
        if near
        else "Run from the folder that holds your module, or install it.",
    )
