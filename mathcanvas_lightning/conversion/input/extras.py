"""Collects the names and types of the extra columns: scalar fields that the format doesn't use."""

from collections.abc import Mapping

import pyarrow as pa

from mathcanvas_lightning.data.rows.schema import Scalar

_INT64_BITS = 63


class ExtraColumns:
    """Collects the names and types of the scalar fields in all records.

    A field with integers and floats becomes a float column; any other mixture of types becomes
    a string column.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, set[str]] = {}

    def add(self, extras: Mapping[str, Scalar]) -> None:
        """Adds the fields of one record."""
        for name, value in extras.items():
            self._kinds.setdefault(name, set()).update(_kind(value))

    def types(self) -> dict[str, pa.DataType]:
        """Returns column name -> Arrow type, sorted by name."""
        return {name: _column_type(kinds) for name, kinds in sorted(self._kinds.items())}


def _kind(value: Scalar) -> set[str]:
    if value is None:
        return set()
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > _INT64_BITS:
        return {"str"}
    return {type(value).__name__}


def _column_type(kinds: set[str]) -> pa.DataType:
    if kinds == {"bool"}:
        return pa.bool_()
    if kinds == {"int"}:
        return pa.int64()
    if kinds and kinds <= {"int", "float"}:
        return pa.float64()
    return pa.string()
