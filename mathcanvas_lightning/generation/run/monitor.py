"""GenerationProgress: a progress bar for the predict loop."""

import time
from collections.abc import Sequence
from contextlib import ExitStack

from lightning.pytorch import LightningModule, Trainer

from mathcanvas_lightning.common.progress import Advance, progress_bar
from mathcanvas_lightning.generation.requests import Exchange
from mathcanvas_lightning.generation.run.datamodule import RecordDataModule
from mathcanvas_lightning.generation.run.module import GenerationModule, ResponseCallback


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
