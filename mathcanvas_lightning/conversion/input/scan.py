"""Scans the input before the conversion: format, number of records, extra columns, hashes."""

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pyarrow as pa

from mathcanvas_lightning.common.keys import nearest
from mathcanvas_lightning.common.paths import import_from_here
from mathcanvas_lightning.common.progress import progress_bar
from mathcanvas_lightning.conversion.columns import Columns, preset_names
from mathcanvas_lightning.conversion.columns.guess import fitting_presets
from mathcanvas_lightning.conversion.columns.identity import canonical
from mathcanvas_lightning.conversion.input.extras import ExtraColumns
from mathcanvas_lightning.conversion.sources import BUILT_IN, SourceFormat
from mathcanvas_lightning.data.rows.schema import IMAGE_COLUMNS
from mathcanvas_lightning.errors import ConfigError, InputError

CHAIN_BYTES = 16
KNOWN: tuple[type[SourceFormat], ...] = (*BUILT_IN, Columns)
"""Formats that have names."""


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


NO_SCAN = Scan(num_records=0, extras={}, renamed={}, chains=b"", error=None)
"""The scan of an input that was not read."""


class Scanner:
    """Collects what a scan finds, record by record.

    Args:
        source: The source format; decides which fields become extra columns.
    """

    def __init__(self, source: SourceFormat) -> None:
        self._source = source
        self._extras = ExtraColumns()
        self._chains = bytearray()
        self._digest = hashlib.blake2b(digest_size=CHAIN_BYTES)

    @property
    def num_records(self) -> int:
        """Number of records so far."""
        return len(self._chains) // CHAIN_BYTES

    def add(self, record: Any, text: bytes) -> None:
        """Adds a record and its canonical text."""
        self._digest.update(text)
        self._chains += self._digest.digest()
        if isinstance(record, dict):
            with contextlib.suppress(Exception):  # reported as a rejection later
                self._extras.add(self._source.extras(record))

    def result(self, error: InputError | None) -> Scan:
        """The scan of all records so far, which ended with an error or at the end."""
        return Scan(
            num_records=self.num_records,
            extras=self._extras.types(),
            renamed=self._extras.renamed(),
            chains=bytes(self._chains),
            error=error,
        )


def scan_input(records: Iterable[Any], place: str, source: SourceFormat, *, progress: bool) -> Scan:
    """Reads all records once.

    Args:
        records: The records of the input.
        place: Name of the input in errors.
        source: The source format; decides which fields become extra columns.
        progress: Whether to show a progress bar.

    Returns:
        The scan. It ends at the first JSON error, and keeps that error.
    """
    scanner = Scanner(source)
    error = None
    with progress_bar("Scanning records", None, show=progress) as advance:
        try:
            for record in records:
                scanner.add(record, _canonical(record, scanner.num_records, place))
                advance(1, "")
        except InputError as broken:
            error = broken
    return scanner.result(error)


def recognise_source(records: Iterable[Any], place: str) -> type[SourceFormat]:
    """Returns the built-in format whose fields the first recognisable object has.

    Raises:
        InputError: If no object has the fields of a built-in format, or malformed JSON comes first.
    """
    fields: set[str] = set()
    has_arrays, num_records, holds_records = False, 0, False
    for record in records:
        num_records += 1
        has_arrays |= isinstance(record, list)
        if isinstance(record, dict):
            fields = fields or set(record)
            is_alone = num_records == 1 and bool(record)
            holds_records = is_alone and all(map(_is_record_or_list, record.values()))
            fits = [s for s in BUILT_IN if s.recognised_by <= set(record)]
            if fits and not _holds_images(record):
                return fits[0]
    known = "; ".join(f"{s.name}: {', '.join(sorted(s.recognised_by))}" for s in BUILT_IN)
    remedy = "Name the format with --source, or write one with mathcanvas generate-handler."
    if holds_records:
        remedy = "If this object holds the records, write them as an array, or each on one line."
    if presets := fitting_presets(fields):
        remedy = f"Use --preset {' or --preset '.join(presets)}: it has columns of these names."
    if "conversations" in fields:
        remedy = (
            "Conversations are trained on as they are, with the row format vlm; --preset sharegpt "
            "converts those with one answer."
        )
    if has_arrays and not fields:
        remedy = "If the file is one JSON array, let its name end in .json."
    found = "arrays instead of objects" if has_arrays else "no objects"
    if not num_records:
        found, remedy = "no record", "Check the path: the file is empty."
    raise InputError(
        place,
        found=f"objects with the fields {sorted(fields)}" if fields else found,
        wanted=f"the fields of a known format ({known})",
        remedy=remedy,
    )


def _is_record_or_list(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(isinstance(item, dict) for item in items)


def _holds_images(record: Mapping[str, Any]) -> bool:
    """Whether a record is a published row: its images are in columns, which a preset reads."""
    firsts = (v[0] if isinstance(v, list) and v else v for v in record.values())
    holds = any(isinstance(v, bytes) or (isinstance(v, dict) and "bytes" in v) for v in firsts)
    return holds or isinstance(record.get(IMAGE_COLUMNS[0]), list)


def find_source(name: str) -> type[SourceFormat]:
    """Returns the format class for a built-in name or an import path such as `my_data.MyData`.

    Raises:
        ConfigError: If the class does not exist, or is not a `SourceFormat`.
    """
    for source in KNOWN:
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
        return canonical(record)
    except RecursionError:
        raise InputError(
            f"{place}, record {number}",
            found="arrays or objects nested hundreds of levels deep",
            wanted="a record of a few levels",
            remedy="Remove it from the input.",
        ) from None


def _bad_source(name: str, found: str) -> ConfigError:
    known = [source.name for source in KNOWN]
    names = ", ".join(known)
    near = nearest(name, ["auto", *known])
    if name in preset_names():
        remedy = f"Write --preset {name}."
    elif near:
        remedy = f"Did you mean {near}?"
    else:
        remedy = "Run from the folder that holds your module, or install it."
    return ConfigError(
        f"--source {name}",
        found=found,
        wanted=f"auto, {names}, or the import path of a SourceFormat subclass",
        remedy=remedy,
    )
