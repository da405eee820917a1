"""The files of an input: one file, all files of a folder, or those that a pattern names."""

import contextlib
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from mathcanvas_lightning.common.paths import (
    file_name,
    is_http,
    is_remote,
    local_path,
    natural_key,
    parent_folder,
    plain_path,
    without_query,
)
from mathcanvas_lightning.conversion.input.records import read_records
from mathcanvas_lightning.conversion.input.tables import (
    count_rows,
    input_error,
    read_csv,
    read_parquet,
)
from mathcanvas_lightning.conversion.input.tars import read_tar
from mathcanvas_lightning.errors import DataError, InputError, StorageError
from mathcanvas_lightning.storage.config import FileStatus
from mathcanvas_lightning.storage.files import Storage

Kind = Literal["parquet", "tar", "json", "csv"]
_ENDS: tuple[tuple[tuple[str, ...], Kind], ...] = (
    ((".parquet", ".pq"), "parquet"),
    ((".tar", ".tar.gz", ".tgz"), "tar"),
    ((".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz"), "json"),
    ((".json", ".json.gz"), "json"),
    ((".csv", ".csv.gz", ".tsv", ".tsv.gz"), "csv"),
)
"""Ends of names, and what they mean. Of a folder, the first kind that it holds is read."""


class InputFiles:
    """Records of one or several files, in order; see `opened_input`.

    Args:
        paths: Paths or URLs of the files.
        local: Path of a single file that is on this machine; None if there are several.
    """

    def __init__(self, paths: list[str], local: Path | None) -> None:
        self._paths = paths
        self._local = local
        self._storage = Storage()

    @property
    def place(self) -> str:
        """Name of the input in errors."""
        first = _shown(self._paths[0])
        return first if len(self._paths) == 1 else f"{first} and {len(self._paths) - 1} more"

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Any]:
        """Yields records [start, stop).

        Raises:
            InputError: At the first malformed byte, or if a storage fails.
        """
        position = 0
        for place in self._paths:
            if stop is not None and position >= stop:
                return
            first = max(start - position, 0)
            last = None if stop is None else stop - position
            if kind_of(place) == "parquet":
                num_rows = count_rows(place, self._storage)
                if first < num_rows:
                    yield from read_parquet(place, self._storage, first, last)
                position += num_rows
                continue
            for record in islice(self._stream(place), last):
                if first <= 0:
                    yield record
                first -= 1
                position += 1

    def versions(self) -> list[FileStatus]:
        """Size and time of change of each local file; of remote ones, one version is read.

        Raises:
            InputError: If a file is missing now.
        """
        try:
            return [self._storage.status(p) for p in self._paths if not is_remote(p)]
        except (DataError, StorageError) as error:
            raise input_error(error) from None

    def count(self) -> int:
        """The number of records: from the footers of Parquet files, by reading all others.

        Raises:
            InputError: At the first malformed byte, or if a storage fails.
        """
        total = 0
        for place in self._paths:
            if kind_of(place) == "parquet":
                total += count_rows(place, self._storage)
            else:
                total += sum(1 for _ in self._stream(place))
        return total

    def _stream(self, place: str) -> Iterator[Any]:
        with contextlib.ExitStack() as stack:
            path = self._local or stack.enter_context(fetched(place))
            kind = kind_of(place)
            if kind == "csv":
                yield from read_csv(path, _shown(place))
            elif kind == "tar":
                yield from read_tar(path, _shown(place))
            else:
                yield from read_records(path, _shown(place))


def kind_of(name: str) -> Kind:
    """How a file is read, by the end of its name; JSON by default."""
    name = without_query(name).lower()
    return next((kind for ends, kind in _ENDS if name.endswith(ends)), "json")


@contextlib.contextmanager
def opened_input(source: str, *, output: str | None = None) -> Iterator[InputFiles]:
    """Finds the files of an input; a single remote file is copied once, Parquet is not copied.

    Args:
        source: A file, a folder, or a pattern such as `data/train/*.parquet`: a path or an fsspec
            URL. Of a folder, all files below it of one kind are read, in natural order.
        output: Folder or URL of the conversion, whose files are no input.

    Yields:
        The records.

    Raises:
        InputError: If there is no such file, or it can't be read.
    """
    paths = find_inputs(source, output=output)
    if len(paths) > 1 or kind_of(paths[0]) == "parquet":
        yield InputFiles(paths, None)
        return
    with fetched(paths[0]) as path:
        yield InputFiles(paths, path)


def find_inputs(source: str, *, output: str | None = None) -> list[str]:
    """The files of an input, in natural order.

    Args:
        source: See `opened_input`.
        output: See `opened_input`.

    Raises:
        InputError: If there is no such file, or if the output's files would be among them.
    """
    if not source:
        raise _nothing("--input", "an empty path")
    storage = Storage()
    pattern = file_name(source)
    try:
        if _is_pattern(source):
            folder = parent_folder(source) or ("/" if source.startswith("/") else ".")
            _check_apart(folder, output)
            entries = storage.list_folder(plain_path(folder))
            names = [e.path for e in entries if fnmatchcase(file_name(e.path), pattern)]
            found = sorted(names, key=natural_key)
            if not found:
                raise _nothing(source, f"no file like {pattern!r}")
            return found
        if not storage.is_folder(source):
            return [source]
        _check_apart(source, output)
        for ends, _ in _ENDS:
            with contextlib.suppress(DataError):
                files = storage.list_files(source, suffix=ends)
                if found := _outside(files, output):
                    return found
    except (DataError, StorageError) as error:
        raise input_error(error) from None
    raise _nothing(source, "a folder without a Parquet, tar, JSON or CSV file")


def _check_apart(folder: str, output: str | None) -> None:
    """Raises for an input folder that is the output: its shards would be the next input."""
    if output is not None and _real(folder) == _real(output):
        raise InputError(
            without_query(folder),
            found="the folder of --output",
            wanted="a separate input folder",
            remedy="Choose another --output, such as a folder inside this one, or name one file.",
        )


def _outside(files: list[str], output: str | None) -> list[str]:
    """The files that do not lie below the folder of the output, links resolved."""
    if output is None:
        return files
    top = f"{_real(output)}/"
    inside = {f for f in {*map(parent_folder, files)} if f"{_real(f)}/".startswith(top)}
    return [file for file in files if parent_folder(file) not in inside]


def _real(folder: str) -> str:
    if is_remote(folder):
        return without_query(folder).rstrip("/")
    return str(local_path(folder or ".").resolve()).rstrip("/")


def _is_pattern(source: str) -> bool:
    has_star = re.search(r"[*?\[]", file_name(source)) is not None
    return has_star and not is_http(source) and not _is_local_file(source)


def _is_local_file(source: str) -> bool:
    return not is_remote(source) and local_path(source).exists()


@contextlib.contextmanager
def fetched(source: str) -> Iterator[Path]:
    """Yields a local path of the input; a remote file is copied to a temporary folder.

    Args:
        source: A path or an fsspec URL.

    Yields:
        A local path.

    Raises:
        InputError: If the file does not exist or can't be read.
    """
    with contextlib.ExitStack() as stack:
        try:
            path = stack.enter_context(Storage().fetched(source))
        except (DataError, StorageError) as error:
            raise input_error(error) from None
        yield path


def _shown(place: str) -> str:
    """Name of a file in errors: without a query, and as a local path if it is one."""
    return without_query(place) if is_remote(place) else str(local_path(place))


def _nothing(source: str, found: str) -> InputError:
    return InputError(
        without_query(source),
        found=found,
        wanted="a JSON, JSON lines, CSV, Parquet or tar file, or a folder with such files",
        remedy="Check the path.",
    )
