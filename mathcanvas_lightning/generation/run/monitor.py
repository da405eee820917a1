"""A progress bar for the predict loop, and a box with the figures of the run at its end."""

import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]
from lightning.pytorch import LightningModule, Trainer

from mathcanvas_lightning.common.display.box import duration, print_box
from mathcanvas_lightning.common.progress import Advance, progress_bar
from mathcanvas_lightning.generation.requests import Exchange
from mathcanvas_lightning.generation.run.datamodule import RecordDataModule
from mathcanvas_lightning.generation.run.module import GenerationModule, ResponseCallback
from mathcanvas_lightning.training.callbacks.monitor import peak_memory_gib

SAMPLE_S = 1.0
"""Minimum number of seconds between two measurements of the memory of child processes."""


class GenerationProgress(ResponseCallback):
    """Shows the progress of rank 0: requests/s, tokens/s and failures."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._advance: Advance | None = None
        self._started_at = 0.0
        self._num_tokens = 0
        self._num_failed = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Shows the bar."""
        self._started_at, self._num_tokens, self._num_failed = time.monotonic(), 0, 0
        data = getattr(trainer, "datamodule", None)
        total = len(data.share(trainer)) if isinstance(data, RecordDataModule) else None
        bar = progress_bar("answering", total, show=trainer.is_global_zero)
        self._advance = self._stack.enter_context(bar)

    def on_responses(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: GenerationModule,  # noqa: ARG002
        exchanges: Sequence[Exchange],
    ) -> None:
        """Updates the bar.

        Args:
            trainer: Not used.
            pl_module: Not used.
            exchanges: New responses.
        """
        responses = [exchange.response for exchange in exchanges]
        self._num_tokens += sum(response.usage.completion_tokens for response in responses)
        self._num_failed += sum(response.failure is not None for response in responses)
        rate = self._num_tokens / (time.monotonic() - self._started_at)
        failed = f", {self._num_failed} failed" if self._num_failed else ""
        if self._advance is not None:
            self._advance(len(responses), f"{rate:,.0f} tokens/s{failed}")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Closes the bar."""
        self._stack.close()

    def on_exception(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        exception: BaseException,  # noqa: ARG002
    ) -> None:
        """Closes the bar."""
        self._stack.close()


@dataclass(slots=True, kw_only=True)
class GenerationTotals:
    """Figures of a predict run on one rank."""

    num_answers: int = 0
    num_failed: int = 0
    """Records without an answer."""
    tokens: int = 0
    """Tokens of the answers."""
    seconds: float = 0.0
    """Time from the start of the loop to the last response."""
    start_s: float = 0.0
    """Seconds until the backend had started."""
    records_s: float = 0.0
    """Seconds of waiting for records and their pictures."""
    peak_gib: float = 0.0
    """Peak memory of this process, on the GPU if it uses one."""
    children_gib: float = 0.0
    """Largest measured memory of its child processes, such as vLLM's engine, on the host."""

    def rows(self) -> list[tuple[str, str]]:
        """Names and values to show."""
        answering_s = max(self.seconds - self.start_s, 1e-9)
        memory = f"{self.peak_gib:,.2f} GiB"
        if self.children_gib:
            memory += f", child processes {self.children_gib:,.2f} GiB"
        return [
            ("time", duration(self.seconds)),
            ("answers", f"{self.num_answers:,}"),
            ("failures", f"{self.num_failed:,}"),
            ("tokens", f"{self.tokens:,}"),
            ("tokens/s", f"{self.tokens / answering_s:,.1f}"),
            ("problems/s", f"{self.num_answers / answering_s:,.2f}"),
            ("peak memory", memory),
            ("waits", f"start {duration(self.start_s)}, records {duration(self.records_s)}"),
        ]


class GenerationSummary(ResponseCallback):
    """Prints a box with the figures of rank zero at the end, if it asked anything.

    Speeds leave out the start of the backend.
    """

    def __init__(self) -> None:
        self.totals = GenerationTotals()
        self._started = self._waiting_since = self._measured = 0.0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Starts the clock."""
        self.totals = GenerationTotals()
        self._started = self._waiting_since = time.monotonic()

    def on_predict_batch_start(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Adds the time of waiting for this batch."""
        self.totals.records_s += time.monotonic() - self._waiting_since

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Starts to wait for the next batch."""
        self._waiting_since = time.monotonic()

    def on_responses(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: GenerationModule,  # noqa: ARG002
        exchanges: Sequence[Exchange],
    ) -> None:
        """Counts responses.

        Args:
            trainer: Not used.
            pl_module: Not used.
            exchanges: New responses.
        """
        now, totals = time.monotonic(), self.totals
        for exchange in exchanges:
            totals.num_failed += exchange.response.failure is not None
            totals.num_answers += exchange.response.failure is None
            totals.tokens += exchange.response.usage.completion_tokens
        totals.seconds = now - self._started
        if now - self._measured >= SAMPLE_S:
            self._measured = now
            totals.children_gib = max(totals.children_gib, children_gib())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the box."""
        totals = self.totals
        totals.start_s = getattr(pl_module, "start_s", 0.0)
        totals.peak_gib = peak_memory_gib(pl_module.device)
        if trainer.is_global_zero and totals.num_answers + totals.num_failed:
            ranks = f", rank 0 of {trainer.world_size}" if trainer.world_size > 1 else ""
            print_box(f"This run{ranks}", totals.rows())


def children_gib() -> float:
    """Resident memory of all child processes, in GiB."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it may have ended
            total += process.memory_info().rss
    return total / 2**30
