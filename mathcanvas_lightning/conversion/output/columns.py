"""The Arrow schema of a conversion's shards, with a column for each scalar field carried along."""

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import pyarrow as pa

from mathcanvas_lightning.data.rows.schema import CORE_COLUMNS, InterleaveEncoding, Scalar

_IMAGES = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
_STRUCT_INTERLEAVE = pa.list_(
    pa.struct([("type", pa.string()), ("content", pa.string()), ("index", pa.int64())])
)
_INT64_BITS = 63


class ExtraColumns:
    """Collects the names and types of the scalar fields that records carry along.

    A field that is an integer here and a float there becomes a float column; any other mixture
    becomes a column of strings.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, set[str]] = {}

    def add(self, extras: Mapping[str, Scalar]) -> None:
        """Takes note of one record's fields."""
        for name, value in extras.items():
            self._kinds.setdefault(name, set()).update(_kind(value))

    def types(self) -> dict[str, pa.DataType]:
        """Column name -> type, by name."""
        return {name: _column_type(kinds) for name, kinds in sorted(self._kinds.items())}


def shard_schema(encoding: InterleaveEncoding, extras: Mapping[str, pa.DataType]) -> pa.Schema:
    """The schema of all shards of a conversion.

    Args:
        encoding: How interleaves stand: "json" or "struct".
        extras: Further columns.

    Returns:
        Core columns, then the extras; images are Hugging Face's struct of bytes and path, and
        marked as such, so that `datasets` shows them as pictures.
    """
    interleave = pa.string() if encoding == "json" else _STRUCT_INTERLEAVE
    types = dict(
        zip(CORE_COLUMNS, [pa.string()] * 2 + [interleave] * 2 + [_IMAGES] * 2, strict=True)
    )
    schema = pa.schema([*types.items(), *extras.items()])
    features = {field.name: _hugging_face_feature(field.type) for field in schema}
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _hugging_face_feature(kind: pa.DataType) -> Any:
    if kind == _IMAGES:
        return [{"_type": "Image"}]
    if pa.types.is_list(kind):
        return [{field.name: _hugging_face_feature(field.type) for field in kind.value_type}]
    names = {pa.float64(): "float64", pa.bool_(): "bool"}
    return {"dtype": names.get(kind, str(kind)), "_type": "Value"}


def to_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table; extras of another type than their column's are written out as text."""
    return pa.Table.from_arrays([_array(rows, field) for field in schema], schema=schema)


def _array(rows: Sequence[Mapping[str, Any]], field: pa.Field) -> pa.Array:
    if field.type == _IMAGES:
        return _images_array([row[field.name] for row in rows])
    values = [row.get(field.name) for row in rows]
    if field.name not in CORE_COLUMNS and pa.types.is_string(field.type):
        values = [_as_text(value) for value in values]
    return pa.array(values, field.type)


def _images_array(lists: Sequence[Sequence[Mapping[str, Any]]]) -> pa.Array:
    # pa.array does the same twenty times slower: it grows its buffer as it meets the bytes.
    images = [image for images in lists for image in images]
    offsets = [0, *accumulate(map(len, lists))]
    members = [
        pa.array([image[member.name] for image in images], member.type)
        for member in _IMAGES.value_type
    ]
    structs = pa.StructArray.from_arrays(members, fields=list(_IMAGES.value_type))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs, type=_IMAGES)


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


def _as_text(value: Scalar) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)
