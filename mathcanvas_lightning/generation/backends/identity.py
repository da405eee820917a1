"""Fingerprints of models: they change if the files of a model change under the same name."""

import contextlib
import json
import logging
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

FILES = (
    *("*.safetensors", "*.bin", "*.gguf", "*.pt", "*.pth", "*.index.json"),
    *("*config.json", "tokenizer*", "vocab.*", "merges.txt", "*.model", "*.jinja"),
    *("chat_template.json", "special_tokens_map.json", "added_tokens.json"),
)
"""Names of the files of a model that decide about its answers."""
WHOLE_BYTES = 64 * 2**20
"""Files up to this size are hashed completely, of larger ones samples."""
SAMPLE_BYTES = 4096
MAX_HEADER_BYTES = 100 * 2**20
"""Limit of the safetensors library."""
NUM_SAMPLES = 1024
"""Number of samples of a large file that is not in the format safetensors."""
Stamp = tuple[str, int, int]


def fingerprint(path: str, revision: str | None = None) -> str | None:
    """Hash of the files of a model or an adapter.

    Names, sizes, configuration and tokenizer count completely. Of large files of weights, the
    header and three samples of each tensor are read, so this takes seconds for any size, and copies
    of a model have the same fingerprint. It is computed again if size or time of a file change.

    Args:
        path: A folder, a file, or a hub name. Of a hub name, the commit in the local cache counts.
        revision: Branch, tag or commit of a hub name; by default the main branch.

    Returns:
        16 hexadecimal digits; None if there is no such folder and no such model in the cache.
    """
    found = Path(path).expanduser()
    if not found.exists():
        return _hub_commit(path, revision)
    files = [found]
    if found.is_dir():
        names = (file for file in sorted(found.iterdir()) if file.is_file())
        files = [file for file in names if any(fnmatchcase(file.name, kind) for kind in FILES)]
    stamps = tuple((str(file), (at := file.stat()).st_size, at.st_mtime_ns) for file in files)
    return _hashed(stamps) if stamps else None


@lru_cache(maxsize=64)
def _hashed(stamps: tuple[Stamp, ...]) -> str | None:
    digest = blake2b(digest_size=8)
    try:
        for path, size, _ in stamps:
            digest.update(f"{Path(path).name}\0{size}\0".encode(errors="surrogatepass"))
            with Path(path).open("rb") as file:
                for piece in _pieces(file, size):
                    digest.update(piece)
    except OSError as error:
        log.warning("the fingerprint of the model can't be computed: %s", error)
        return None
    return digest.hexdigest()


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    if size <= WHOLE_BYTES:
        yield file.read()
        return
    for start in _sampled_offsets(file, size):
        file.seek(start)
        yield file.read(SAMPLE_BYTES)


def _sampled_offsets(file: BinaryIO, size: int) -> list[int]:
    """Header, and start, middle and end of each tensor of a safetensors file.

    For other formats, offsets at equal distances.
    Source: https://huggingface.co/docs/safetensors (8 bytes with the length of a JSON header).
    """
    length = int.from_bytes(file.read(8), "little")
    spans: list[list[int]] = []
    if length < size:
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            header = json.loads(file.read(min(length, MAX_HEADER_BYTES)))
            spans = [entry["data_offsets"] for n, entry in header.items() if n != "__metadata__"]
    if not spans:
        return [*range(0, size, max(1, size // NUM_SAMPLES))]
    offsets = [*range(0, 8 + length, SAMPLE_BYTES)]
    for start, end in spans:
        inside = (start, (start + end) // 2, max(start, end - SAMPLE_BYTES))
        offsets += [8 + length + offset for offset in inside]
    return offsets


def _hub_commit(name: str, revision: str | None) -> str | None:
    """The commit of a model in the local cache of the Hugging Face hub."""
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except (ImportError, ValueError, OSError):  # ValueError: not a name of a model
        return None
    return Path(found).parent.name if isinstance(found, str) else None
