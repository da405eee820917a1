"""The Arrow schema of the shards: core columns, and an extra column for each other scalar field."""

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import pyarrow as pa

from mathcanvas_lightning.conversion.sources.base import is_nan
from mathcanvas_lightning.data.rows.schema import CORE_COLUMNS, InterleaveEncoding, Scalar

_IMAGES = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
_STRUCT_INTERLEAVE = pa.list_(
    pa.struct([("type", pa.string()), ("content", pa.string()), ("index", pa.int64())])
)


def shard_schema(encoding: InterleaveEncoding, extras: Mapping[str, pa.DataType]) -> pa.Schema:
    """Builds the schema that all shards of a conversion share.

    Args:
        encoding: Encoding of the interleave columns: "json" or "struct".
        extras: Name -> type of the extra columns.

    Returns:
        Core columns, then the extra columns. Images are structs of bytes and path; the schema's
        metadata marks them as images for Hugging Face `datasets`.
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
    """Builds a table; values of an extra column of strings are converted to text."""
    return pa.Table.from_arrays([_array(rows, field) for field in schema], schema=schema)


def _array(rows: Sequence[Mapping[str, Any]], field: pa.Field) -> pa.Array:
    if field.type == _IMAGES:
        return _images_array([row[field.name] for row in rows])
    values = [row.get(field.name) for row in rows]
    if field.name not in CORE_COLUMNS and pa.types.is_string(field.type):
        values = [_as_text(value) for value in values]
    return pa.array(values, field.type)


def _images_array(lists: Sequence[Sequence[Mapping[str, Any]]]) -> pa.Array:
    # Twenty times faster than pa.array on nested rows, which grows its buffer image by image.
    images = [image for images in lists for image in images]
    offsets = [0, *accumulate(map(len, lists))]
    members = [
        pa.array([image[member.name] for image in images], member.type)
        for member in _IMAGES.value_type
    ]
    structs = pa.StructArray.from_arrays(members, fields=list(_IMAGES.value_type))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs, type=_IMAGES)


def _as_text(value: Scalar) -> str | None:
    if value is None or is_nan(value):
        return None
    return value if isinstance(value, str) else json.dumps(value)
