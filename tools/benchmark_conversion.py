"""Conversion speed and memory, beside a plain single-process loop over the same data.

The plain loop is the obvious first version: json.load, Pillow's verify (which checks no pixels),
one pyarrow write_table per file. Ours checks every image, writes checksums, hashes and syncs files.
Time is the median of runs that alternate in this process; memory is the largest process of one run
in a separate process tree.

Example:
  python tools/benchmark_conversion.py --num_records 2000 --json conversion.json
"""

import argparse
import json
import multiprocessing
import platform
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console
from rich.table import Table

from mathcanvas_lightning import convert_cot, generate_blockmoving
from mathcanvas_lightning.common.parallel import usable_cores

SOURCE = "enhanced_cot_cleaned.json"
TAG = re.compile(r"<image>(.*?)</image>")
MIB = 2**20


def plain_loop(source: Path, output: Path, samples_per_file: int = 100) -> int:
    """Converts in the most straightforward way; returns the number of rows."""
    records = json.loads(source.read_text(encoding="utf-8"))
    output.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    num_rows = num_files = 0
    for record in records:
        if record["pred"] != record["gt"] or "[render_result]" in record["cot_text"]:
            continue
        rows.append(_plain_row(record, source.parent))
        num_rows += 1
        if len(rows) == samples_per_file:
            pq.write_table(pa.Table.from_pylist(rows), output / f"x_{num_files:03d}.parquet")
            rows, num_files = [], num_files + 1
    if rows:
        pq.write_table(pa.Table.from_pylist(rows), output / f"x_{num_files:03d}.parquet")
    return num_rows


def _plain_row(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    sections: dict[str, Any] = {
        f"{section}_{kind}": []
        for section in ("question", "solution")
        for kind in ("interleave", "images")
    }
    for number, part in enumerate(TAG.split(record["cot_text"])):
        section = "question" if number < 2 else "solution"
        if number % 2 == 0:
            sections[f"{section}_interleave"].append({"type": "text", "content": part.strip()})
            continue
        data = (folder / part).read_bytes()
        Image.open(BytesIO(data)).verify()
        index = len(sections[f"{section}_images"])
        sections[f"{section}_interleave"].append({"type": "image", "index": index})
        sections[f"{section}_images"].append({"bytes": data})
    for section in ("question", "solution"):
        sections[f"{section}_interleave"] = json.dumps(sections[f"{section}_interleave"])
    return {"id": f"task_{record['task_id']}", "answer": record["gt"], **sections}


def ours(source: Path, output: Path, num_workers: int) -> int:
    """Converts with the library; returns the number of rows."""
    report = convert_cot(str(source), str(output), num_workers=num_workers, progress=False)
    return report.num_rows


def contenders(max_workers: int) -> dict[str, Callable[[Path, Path], int]]:
    """Name -> conversion."""
    workers = sorted({0, 1, max_workers})
    return {"plain loop": plain_loop} | {f"ours, {n} workers": _Ours(n) for n in workers}


class _Ours:
    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers

    def __call__(self, source: Path, output: Path) -> int:
        return ours(source, output, self.num_workers)


def make_source(folder: Path, num_records: int, num_tasks: int) -> Path:
    """A BlockMoving file of any number of records over the pictures of a few tasks."""
    report = generate_blockmoving(str(folder), num_tasks=num_tasks, progress=False)
    records = json.loads(Path(report.source_file).read_text(encoding="utf-8"))
    many = ({**records[i % num_tasks], "task_id": i} for i in range(num_records))
    path = folder / "many.json"
    with path.open("w", encoding="utf-8") as file:
        for i, record in enumerate(many):
            file.write(("[\n" if i == 0 else ",\n") + json.dumps(record))
        file.write("\n]\n")
    return path


def timed(convert: Callable[[Path, Path], int], source: Path) -> tuple[int, float]:
    """Rows and seconds of one run."""
    output = Path(tempfile.mkdtemp(dir=source.parent)) / "out"
    started = time.perf_counter()
    num_rows = convert(source, output)
    seconds = time.perf_counter() - started
    shutil.rmtree(output.parent)
    return num_rows, seconds


def _measure_memory(convert: Callable[[Path, Path], int], source: Path, result: Any) -> None:
    me, peak, done = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            for process in [me, *me.children(recursive=True)]:
                try:
                    peak[0] = max(peak[0], process.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    timed(convert, source)
    done.set()
    watcher.join()
    result.send(peak[0])


def peak_memory(convert: Callable[[Path, Path], int], source: Path) -> int:
    """Bytes of the largest process of one run in a fresh process tree."""
    context = multiprocessing.get_context("forkserver")  # it imports once for all runs
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_measure_memory, args=(convert, source, send))
    process.start()
    peak: int = receive.recv()
    process.join()
    return peak


def main() -> None:
    """Measures and shows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num_records", type=int, default=1000, help="records (default: 1000)")
    parser.add_argument("--num_tasks", type=int, default=100, help="pictures' tasks (default: 100)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--num_workers", type=int, default=usable_cores(), help="(default: cores)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = make_source(Path(folder), options.num_records, options.num_tasks)
        runs = contenders(options.num_workers)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        rows: dict[str, int] = {}
        for _ in range(options.repeats):
            for name, convert in runs.items():
                rows[name], took = timed(convert, source)
                seconds[name].append(took)
        assert len(set(rows.values())) == 1, f"they disagree on the rows: {rows}"
        figures = {
            name: {
                "rows": rows[name],
                "seconds": median(seconds[name]),
                "rows_per_s": rows[name] / median(seconds[name]),
                "peak_mib": peak_memory(convert, source) / MIB,
            }
            for name, convert in runs.items()
        }
    show(figures, options)


def show(figures: dict[str, dict[str, float]], options: argparse.Namespace) -> None:
    """A table on the screen, a file for machines."""
    title = f"{options.num_records:,} records, {usable_cores()} cores, {platform.machine()}"
    table = Table("conversion", "rows/s", "seconds", "largest process, MiB", title=title)
    for name, figure in figures.items():
        table.add_row(
            name,
            f"{figure['rows_per_s']:,.0f}",
            f"{figure['seconds']:.2f}",
            f"{figure['peak_mib']:,.0f}",
        )
    Console().print(table)
    if options.json:
        about = {
            "date": datetime.now(UTC).date().isoformat(),
            "cores": usable_cores(),
            "python": platform.python_version(),
            "pyarrow": pa.__version__,
            "num_records": options.num_records,
            "repeats": options.repeats,
        }
        options.json.write_text(json.dumps(about | {"figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
