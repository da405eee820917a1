"""Settings for remote files, and what is known of a file before it is read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mathcanvas_lightning.common.paths import user_cache
from mathcanvas_lightning.errors import check_settings


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class StorageConfig:
    """Settings for reading remote files; local files need none of them."""

    cache_dir: str | None = None
    """Folder for parts of remote shards, shared by all processes of this machine; by default
    mathcanvas_lightning/shards in $XDG_CACHE_HOME or ~/.cache."""
    max_cache_bytes: int = 32 * 2**30
    """Maximum size of the cache; the least recently used entries are evicted first."""
    max_retries: int = 5
    """Number of further tries after a failed request."""
    backoff_s: float = 0.5
    """Wait before the first retry; it doubles each time, up to 30 s."""
    timeout_s: float = 60.0
    """A request fails if the server sends nothing for this long."""
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    """Options for fsspec, such as credentials and endpoint."""

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            ConfigError: If one is out of its range.
        """
        numbers = {n: getattr(self, n) for n in ("max_cache_bytes", "max_retries", "backoff_s")}
        check_settings(
            *((f"storage, {name}", n, n >= 0, "0 or more") for name, n in numbers.items()),
            ("storage, timeout_s", self.timeout_s, self.timeout_s > 0, "a positive number"),
            remedy="Leave it out for the default.",
        )

    @property
    def cache_folder(self) -> Path:
        """The folder of the cache, with the default resolved."""
        if self.cache_dir is not None:
            return Path(self.cache_dir).expanduser()
        return user_cache() / "shards"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStatus:
    """Size and version of a file, known without reading it."""

    size_bytes: int
    """Length of the file."""
    version: str
    """Changes when the file does: the ETag, else a time of change; "" if neither is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file or a folder found in a folder."""

    path: str
    """Path or URL."""
    is_folder: bool
    """Whether it can be listed."""
    status: FileStatus | None
    """Size and version of a file; None where the listing does not give them."""
