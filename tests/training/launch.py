"""Runs `mathcanvas fit` on one or several processes over gloo, and journals what it does."""

import errno
import faulthandler
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from safetensors import safe_open

from mathcanvas_lightning.errors import MathCanvasError
from mathcanvas_lightning.model import parallelize
from tests.conftest import QUIET, read_jsonl
from tests.ranks import (
    TIMEOUT_S,
    GlooCrashError,
    become_rank,
    end_at_an_error,
    new_process,
    reserved_port,
    wait_for_ranks,
)
from tests.training.runs import SMALL

STRATEGY = "mathcanvas_lightning.training.strategy.ShardedStrategy"
TRANSFORMS = {
    "vae_transform": {"max_image_size": 64, "min_image_size": 32},
    "vit_transform": {"max_image_size": 56, "min_image_size": 28, "image_stride": 14},
}
SAVE = torch.save


class Journal(Callback):
    """Records each micro-batch and each step, and the weights at the end.

    Args:
        folder: Folder of the records.
        pauses: For each attempt, the point where it waits for the file "go": "step 3" in the step
            after 3, "save 4" while the checkpoint of step 4 is written. Later attempts don't wait.
        full_at: Step whose checkpoint fails on the last rank, because the disk is full.
        watch_reads: Count the bytes of weights that are read.
    """

    def __init__(
        self,
        folder: str,
        pauses: tuple[str, ...] = (),
        full_at: int | None = None,
        watch_reads: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.pauses = pauses
        self.full_at = full_at
        self.watch_reads = watch_reads
        self.step = self.attempt = 0

    def setup(self, trainer: Trainer, module: Any, stage: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.save = SAVE  # an earlier run of this process may have replaced it
        self.attempt = len(list(self.folder.glob(f"start.*.{trainer.global_rank}.jsonl")))
        self.write(trainer, "start", {"pid": os.getpid()})
        if self.watch_reads:
            parallelize.safe_open = lambda *a: _Watched(safe_open(*a), self, trainer)

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, number: int) -> None:
        self.step = trainer.global_step
        pause = self.pauses[self.attempt] if self.attempt < len(self.pauses) else None
        if pause == f"step {self.step}":
            self._pause(trainer)
        if pause == f"save {self.step + 1}":
            save = torch.save
            torch.save = lambda *a, **k: (save(*a, **k), self._pause(trainer))
        if self.full_at == self.step + 1 and trainer.global_rank == trainer.world_size - 1:
            _finish_earlier_save(trainer)
            torch.save = _full_disk
        self.write(
            trainer,
            "batches",
            {
                "step": self.step,
                "uids": [sample.uid for sample in batch.samples],
                "ce": len(batch.pack.ce_indexes),
                "mse": len(batch.pack.mse_indexes),
                "vit": len(batch.pack.vit_indexes),
            },
        )

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        trained = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        lacking = [name for name, parameter in trained if parameter.grad is None]
        self.write(trainer, "gradients", {"lacking": lacking, "trained": len(trained)})

    def on_train_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, number: int
    ) -> None:
        share = float(outputs["loss"]) / trainer.world_size
        unfinished = trainer.fit_loop._should_accumulate()
        logged = None if unfinished else float(trainer.callback_metrics["train/loss"])
        self.write(trainer, "losses", {"step": self.step, "loss": share, "logged": logged})

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        found = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("val/")}
        self.write(trainer, "validations", found)

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        state = module.network.state_dict()
        whole = {n: getattr(t, "full_tensor", lambda t=t: t)() for n, t in state.items()}
        if trainer.is_global_zero:
            torch.save(whole, self.folder / "weights.pt")

    def _pause(self, trainer: Trainer) -> None:
        self.write(trainer, "paused", {"step": self.step})
        deadline = time.monotonic() + TIMEOUT_S
        while not (self.folder / "go").exists() and time.monotonic() < deadline:
            time.sleep(0.02)

    def write(self, trainer: Trainer, kind: str, line: dict[str, Any]) -> None:
        path = self.folder / f"{kind}.{self.attempt}.{trainer.global_rank}.jsonl"
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _finish_earlier_save(trainer: Trainer) -> None:
    """Waits for a checkpoint that is written in the background."""
    saver = getattr(trainer.strategy, "saver", None)
    if saver is not None and saver.completed is not None:
        saver.completed.result()


def _full_disk(*args: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


class _Watched:
    """A safetensors file that counts the bytes read."""

    def __init__(self, opened: Any, journal: Journal, trainer: Trainer) -> None:
        self._opened, self._journal, self._trainer = opened, journal, trainer

    def __enter__(self) -> "_Watched":
        self._file = self._opened.__enter__()
        return self

    def __exit__(self, *args: object) -> None:
        self._opened.__exit__(*args)

    def get_slice(self, name: str) -> "_WatchedSlice":
        return _WatchedSlice(self._file.get_slice(name), self)

    def note(self, num_bytes: int) -> None:
        self._journal.write(self._trainer, "reads", {"bytes": num_bytes})


class _WatchedSlice:
    def __init__(self, found: Any, file: _Watched) -> None:
        self._found, self._file = found, file

    def __getitem__(self, key: Any) -> torch.Tensor:
        tensor: torch.Tensor = self._found[key]
        self._file.note(tensor.nbytes)
        return tensor


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of `mathcanvas fit`: journal in `folder/journal`, checkpoints in `folder/saved`."""

    folder: Path
    shards: Sequence[Path]
    packs_per_step: int = 4
    ranks: int = 1
    replicas: int | None = None
    """Number of replicas; None runs without a strategy."""
    async_save: bool = False
    """Write checkpoints in the background."""
    steps: int = 20
    save_every: int | None = None
    resume: Path | None = None
    saver: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    journal: dict[str, Any] = field(default_factory=dict)

    def words(self) -> list[str]:
        """Returns the command line, and writes its config."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"given{self.ranks}.yaml"
        path.write_text(yaml.safe_dump(self._config()))
        return ["fit", "--config", str(path)]

    def _config(self) -> dict[str, Any]:
        train = [
            {"path": str(path), "name": path.name, **TRANSFORMS}
            | ({"format": "t2i"} if path.name.startswith("t2i") else {})
            for path in self.shards
        ]
        model = {
            "source": {"preset": "tiny", "overrides": SMALL},
            "optimizer": {"lr": 1e-3},
            "schedule": {"warmup_steps": 3, "total_steps": 40},
            **self.model,
        }
        data = {
            "train": train,
            "max_num_tokens": 400,
            "max_num_tokens_per_sample": 400,
            "workers": {"num_workers": 0},
            "index_workers": 0,
            "dropout": {"text": 0.1, "vit": 0.1, "vae": 0.1},
            "packs_per_step": self.packs_per_step,
            **self.data,
        }
        return {
            **({"ckpt_path": str(self.resume)} if self.resume else {}),
            "data": {"class_path": "mathcanvas_lightning.MathCanvasDataModule", "init_args": data},
            "model": {"class_path": "mathcanvas_lightning.BagelModule", "init_args": model},
            "trainer": {**self._trainer(), **self.trainer},
        }

    def _trainer(self) -> dict[str, Any]:
        journal = {"folder": str(self.folder / "journal"), **self.journal}
        callbacks = [{"class_path": "tests.training.launch.Journal", "init_args": journal}]
        if self.save_every is not None:
            saver = {
                "dirpath": str(self.folder / "saved"),
                "filename": "step{step}",
                "every_n_train_steps": self.save_every,
                "save_top_k": -1,
                "save_last": "link",
                "save_on_train_epoch_end": False,
                "enable_version_counter": False,
                "auto_insert_metric_name": False,
                **self.saver,
            }
            path = "lightning.pytorch.callbacks.ModelCheckpoint"
            callbacks.append({"class_path": path, "init_args": saver})
        options: dict[str, Any] = {
            **QUIET,
            "devices": self.ranks,
            "max_steps": self.steps,
            "gradient_clip_val": 0.05,
            "enable_checkpointing": self.save_every is not None,
            "default_root_dir": str(self.folder),
            "callbacks": callbacks,
        }
        if self.replicas is not None:
            shards = self.ranks // self.replicas
            init: dict[str, Any] = {"replicas": self.replicas, "shards": shards}
            init["async_save"] = self.async_save
            options["strategy"] = {"class_path": STRATEGY, "init_args": init}
        return options

    def losses(self) -> dict[int, float]:
        """Step -> loss, summed over its micro-batches and ranks."""
        return {step: sum(x["loss"] for x in lines) for step, lines in self._steps("losses")}

    def batches(self) -> dict[int, list[list[str]]]:
        """Step -> sample ids of each micro-batch, over all ranks."""
        return {step: sorted(x["uids"] for x in lines) for step, lines in self._steps("batches")}

    def lines(self, kind: str, rank: int, attempt: int = 0) -> list[dict[str, Any]]:
        """Reads the records of a rank, if there are any."""
        path = self.folder / "journal" / f"{kind}.{attempt}.{rank}.jsonl"
        return read_jsonl(path) if path.is_file() else []

    def attempts(self) -> int:
        """Counts the starts of the run."""
        return len(list((self.folder / "journal").glob("start.*.0.jsonl")))

    def _steps(self, kind: str) -> list[tuple[int, list[dict[str, Any]]]]:
        """Reads the records of each step; those of a later attempt replace earlier ones."""
        steps: dict[int, list[dict[str, Any]]] = {}
        for attempt in range(self.attempts()):
            again: dict[int, list[dict[str, Any]]] = {}
            for rank in range(8):
                for line in self.lines(kind, rank, attempt):
                    again.setdefault(line["step"], []).append(line)
            steps |= again
        return sorted(steps.items())

    def weights(self) -> dict[str, torch.Tensor]:
        """Loads the gathered weights at the end of the run."""
        found: dict[str, torch.Tensor] = torch.load(self.folder / "journal" / "weights.pt")
        return found

    def saved(self, step: int) -> Path:
        """Path of the checkpoint of a step."""
        return self.folder / "saved" / f"step{step}.ckpt"

    def wait_for_pause(self, attempt: int, processes: "Sequence[Rank]") -> None:
        """Waits until each rank has reached the pause of an attempt."""
        deadline = time.monotonic() + TIMEOUT_S
        while not all(self.lines("paused", rank, attempt) for rank in range(self.ranks)):
            if any(p.ended() for p in processes) or time.monotonic() > deadline:
                finish(processes)
                raise AssertionError("the run ended without pausing")
            time.sleep(0.02)

    def error(self, rank: int = 0) -> str:
        """Reads the error that ended the run."""
        return (self.folder / f"error.{rank}.txt").read_text()


@dataclass(frozen=True)
class Rank:
    """A process, and the file of its standard error."""

    process: Any
    log: Path

    @property
    def pid(self) -> int:
        """Id of the process and of its process group."""
        found: int = self.process.pid
        return found

    def ended(self) -> bool:
        """Whether the process has ended."""
        return not self.process.is_alive()


def start(ranks: int, runs: Sequence[Run]) -> list[Rank]:
    """Starts processes that do some runs one after the other, each in a separate session."""
    port = reserved_port()
    work = [(str(run.folder), run.words()) for run in runs]
    started = []
    for rank in range(ranks):
        log = runs[0].folder / f"log.{port}.{rank}.txt"
        process = new_process(_work, rank, ranks, port, log, work)
        process.start()
        started.append(Rank(process, log))
    return started


def finish(ranks: Sequence[Rank], status: int = 0, num_runs: int = 1) -> str:
    """Waits for processes; kills all of them if one fails or hangs.

    Returns:
        Their standard error.
    """
    timeout_s = TIMEOUT_S + 60 * num_runs
    wait_for_ranks([(rank.process, rank.log) for rank in ranks], status, timeout_s)
    return "\n".join(rank.log.read_text() for rank in ranks)


def launch(ranks: int, *runs: Run, status: int = 0) -> str:
    """Starts processes and waits for them."""
    are_new = not any(run.folder.exists() for run in runs)
    try:
        return finish(start(ranks, runs), status, len(runs))
    except GlooCrashError:
        if not are_new:
            raise
        for run in runs:
            shutil.rmtree(run.folder)
        return finish(start(ranks, runs), status, len(runs))


def _work(
    rank: int, ranks: int, port: int, log: Path, work: Sequence[tuple[str, Sequence[str]]]
) -> None:
    """Does the runs. An error of the library ends its run, any other error ends the process."""
    become_rank(rank, ranks, port, log)
    end_at_an_error(lambda: [_fit(rank, Path(folder), words) for folder, words in work])


def _fit(rank: int, folder: Path, words: Sequence[str]) -> None:
    from mathcanvas_lightning.cli.fit import run_cli

    faulthandler.disable()  # Lightning has restored older handlers after the run before
    faulthandler.enable()
    try:
        run_cli(words)
    except MathCanvasError as error:
        (folder / f"error.{rank}.txt").write_text(f"{type(error).__name__}: {error}")


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Largest absolute difference of two sets of weights."""
    assert first.keys() == second.keys()
    return max(float((first[n] - second[n]).abs().max()) for n in first if first[n].numel())
