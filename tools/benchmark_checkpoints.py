"""Measures checkpoints: their size, the time that the training stands still, and host memory.

A network with its Adam moments and moving average is saved as a file (one device), as a sharded
folder, and as a sharded folder in the background (`async_save`), with all parameters or LoRA. Each
way has its own process. It saves twice; the figures are those of the second time, when buffers
exist. Memory is the growth of the process during the first save, and what stays after it.

Example:
  python tools/benchmark_checkpoints.py --preset tiny small
"""

import argparse
import logging
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
from lightning.pytorch import Callback, Trainer, seed_everything
from rich.console import Console
from rich.table import Table

from mathcanvas_lightning.data.datamodule import MathCanvasDataModule
from mathcanvas_lightning.data.loading.config import DatasetConfig, WorkerConfig
from mathcanvas_lightning.model.adapters import LoRASettings
from mathcanvas_lightning.training.callbacks.ema import EMAConfig
from mathcanvas_lightning.training.module import BagelModule
from mathcanvas_lightning.training.optim import ScheduleConfig
from mathcanvas_lightning.training.source import ModelSource
from mathcanvas_lightning.training.strategy import ShardedStrategy, save_atomically

WAYS = ("file", "sharded", "in the background")
MIB = 2**20


@dataclass(kw_only=True)
class Figures:
    """Figures of one way to save."""

    size_mib: float
    still_s: float
    """Seconds that the training stands still."""
    complete_s: float
    """Seconds until the checkpoint is complete."""
    peak_mib: float
    """Growth of the process during the first save."""
    kept_mib: float
    """Growth that stays after it."""


class Saves(Callback):
    """Saves after the first step, and measures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.figures: Figures | None = None

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Saves twice."""
        with peak_growth() as growth:
            save(trainer, self.folder / "first.ckpt")
        still_s, complete_s = save(trainer, self.folder / "second.ckpt")
        self.figures = Figures(
            size_mib=size(self.folder / "second.ckpt") / MIB,
            still_s=still_s,
            complete_s=complete_s,
            peak_mib=growth["peak"] / MIB,
            kept_mib=growth["kept"] / MIB,
        )


def save(trainer: Trainer, path: Path) -> tuple[float, float]:
    """Returns the seconds until the training may continue, and until the checkpoint is complete."""
    started = time.perf_counter()
    trainer.save_checkpoint(path)
    still_s = time.perf_counter() - started
    while not path.exists():
        time.sleep(0.002)
    return still_s, time.perf_counter() - started


def size(path: Path) -> int:
    """Bytes of a file or folder."""
    return sum(one.stat().st_size for one in [path, *path.rglob("*")] if one.is_file())


@contextmanager
def peak_growth() -> Iterator[dict[str, int]]:
    """Measures how much the resident memory grows inside the block."""
    process, ended = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    growth = {"peak": 0, "kept": 0}

    def watch() -> None:
        while not ended.wait(0.005):
            growth["peak"] = max(growth["peak"], process.memory_info().rss - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield growth
    finally:
        ended.set()
        thread.join()
        growth["kept"] = max(0, process.memory_info().rss - before)


def measure(preset: str, lora: bool, way: str) -> Figures:
    """Trains one step, saves and measures; in a new process."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    seed_everything(0, verbose=False)
    source = ModelSource(preset=preset)
    module = BagelModule(
        source=source,
        lora=LoRASettings(parts=["und", "gen"], rank=16) if lora else None,
        ema=EMAConfig(decay=0.99),
        schedule=ScheduleConfig(name="constant"),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "texts.jsonl").write_text(
            '{"conversations": [{"from": "human", "value": "One?"}, '
            '{"from": "gpt", "value": "One."}]}\n'
        )
        data = MathCanvasDataModule(
            train=[DatasetConfig(path=str(folder / "texts.jsonl"), format="vlm")],
            max_num_tokens=64,
            max_num_tokens_per_sample=64,
            geometry=source.config().geometry,
            workers=WorkerConfig(num_workers=0),
            index_workers=0,
            progress=False,
        )
        saves = Saves(folder)
        strategy: Any = "auto"
        if way != "file":
            strategy = ShardedStrategy(async_save=way == "in the background")
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            strategy=strategy,
            max_steps=1,
            callbacks=[saves],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        save_atomically(trainer.strategy)
        trainer.fit(module, data)
    assert saves.figures is not None
    return saves.figures


def main() -> None:
    """Measures all ways and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", nargs="+", default=["tiny"], help="(default: tiny)")
    options = parser.parse_args()
    names = ("size MiB", "still s", "complete s", "peak MiB", "kept MiB")
    table = Table("network", "trained", "way", *names)
    for preset, lora, way in product(options.preset, (False, True), WAYS):
        # A fork of this process, which only imports.
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
            found = pool.submit(measure, preset, lora, way).result()
        figures = (found.size_mib, found.still_s, found.complete_s, found.peak_mib, found.kept_mib)
        values = [f"{figure:,.2f}" for figure in figures]
        row = (preset, "LoRA" if lora else "all", way, *values)
        print(*row, sep="\t", flush=True)  # small networks take minutes
        table.add_row(*row)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
