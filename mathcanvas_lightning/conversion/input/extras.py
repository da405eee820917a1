"""Collects the names and types of the extra columns: scalar fields that the format doesn't use."""

from collections.abc import Mapping

import pyarrow as pa

from mathcanvas_lightning.data.rows.schema import CORE_COLUMNS, Scalar

RENAMED_PREFIX = "source_"
_INT64_BITS = 63
_MAX_EXACT_FLOAT = 2**53


class ExtraColumns:
    """Collects the names and types of the scalar fields in all records.

    A field with integers and floats becomes a float column if floats hold all its integers
    exactly; any other mixture of types becomes a string column.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, set[str]] = {}

    def add(self, extras: Mapping[str, Scalar]) -> None:
        """Adds the fields of one record."""
        for name, value in extras.items():
            self._kinds.setdefault(name, set()).update(_kind(value))

    def renamed(self) -> dict[str, str]:
        """Returns field -> column for fields whose names can't be those of extra columns.

        A core column has its own values, so a field `answer` becomes `source_answer`. Half of
        a surrogate pair, which Parquet can't store, becomes its escape sequence.
        """
        taken = {*self._kinds, *CORE_COLUMNS}
        renamed = {}
        for name in sorted(self._kinds):
            column = name.encode(errors="backslashreplace").decode()
            if name in CORE_COLUMNS or column != name:
                while column in taken:
                    column = RENAMED_PREFIX + column
                taken.add(column)
                renamed[name] = column
        return renamed

    def types(self) -> dict[str, pa.DataType]:
        """Returns column name -> Arrow type, sorted by name."""
        renamed = self.renamed()
        types = {renamed.get(name, name): _column_type(k) for name, k in self._kinds.items()}
        return dict(sorted(types.items()))


def _kind(value: Scalar) -> set[str]:
    if value is None:
        return set()
    if isinstance(value, int) and not isinstance(value, bool):
        if value.bit_length() > _INT64_BITS:
            return {"str"}
        return {"int"} if abs(value) <= _MAX_EXACT_FLOAT else {"int", "long"}
    return {type(value).__name__}


def _column_type(kinds: set[str]) -> pa.DataType:
    if kinds == {"bool"}:
        return pa.bool_()
    if kinds and kinds <= {"int", "long"}:
        return pa.int64()
    if kinds and kinds <= {"int", "float"}:
        return pa.float64()
    return pa.string()
