"""The text of a record that its hashes are made of."""

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any


def canonical(record: Any) -> bytes:
    """The record as JSON; bytes are replaced by their hash.

    Args:
        record: A JSON value, which may also hold bytes.

    Raises:
        RecursionError: If it is nested hundreds of levels deep.
    """
    return json.dumps(record, default=_hashed).encode()


def record_id(record: Mapping[str, Any]) -> str:
    """An id for a record that has none: equal records have the same one."""
    return blake2b(canonical(record), digest_size=8).hexdigest()


def _hashed(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"blake2b": blake2b(value, digest_size=16).hexdigest()}
    return str(value)
