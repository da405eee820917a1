"""ResponseWriter: the journal of a run, and at its end the files with the answers in them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from mathcanvas_lightning.errors import ConfigError, OutputError
from mathcanvas_lightning.generation.datamodule import RecordDataModule
from mathcanvas_lightning.generation.journal import (
    Entry,
    JournalWriter,
    journal_folder,
    line_of,
    maker_of,
)
from mathcanvas_lightning.generation.module import GenerationModule, ResponseCallback
from mathcanvas_lightning.generation.outputs import write_output
from mathcanvas_lightning.generation.post_processors import PostProcessor
from mathcanvas_lightning.generation.report import PredictionReport
from mathcanvas_lightning.generation.requests import Exchange


class ResponseWriter(ResponseCallback):
    """Appends each response to its journal as it comes; when all are there, writes the outputs.

    An output is the input, in its order and format (or the format that its name asks for), with
    the answer in the response field. A record that failed has none, but `<response field>_error`.

    Args:
        post_processors: Change an answer's text on its way into the output, one after the other.
            Journals keep what the model said, so changing these needs no new answers.
        sync_every_s: How much of the journal a power cut may cost, in seconds. (A killed process
            costs none.)
    """

    def __init__(
        self, post_processors: list[PostProcessor] | None = None, sync_every_s: float = 1.0
    ) -> None:
        self.post_processors = post_processors or []
        self.sync_every_s = sync_every_s
        self.report: PredictionReport | None = None
        """What became of the run, on rank 0, when it has ended well."""
        self._journals: dict[str, JournalWriter] = {}
        self._maker_is_known = False
        self._started_at = 0.0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Starts the clock."""
        self.report = None
        self._maker_is_known = False
        self._started_at = time.monotonic()

    def on_responses(
        self, trainer: Trainer, pl_module: GenerationModule, exchanges: Sequence[Exchange]
    ) -> None:
        """Appends responses to their journals.

        Args:
            trainer: The Trainer.
            pl_module: The module.
            exchanges: What was asked and said.

        Raises:
            OutputError: If the answers of earlier runs were made by another model or sampling.
        """
        data = data_of(trainer)
        model = pl_module.backend.model_name
        lines: dict[str, list[dict[str, Any]]] = {}
        for exchange in exchanges:
            self._require_same_maker(exchange, model, data.answered)
            key = data.pending[exchange.response.uid]
            line = line_of(exchange, model=model, digest=key.digest)
            lines.setdefault(key.label, []).append(line)
        for label, some in lines.items():
            self._journal(label, data, trainer.global_rank).append(some)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Waits for all ranks; rank 0 writes the outputs."""
        seconds = time.monotonic() - self._started_at
        self._close()
        trainer.strategy.barrier("responses")
        if trainer.is_global_zero:
            data = data_of(trainer)
            self.report = PredictionReport(
                inputs=tuple(
                    write_output(one, self.post_processors, keep_old_responses=not data.rerun)
                    for one in data.inputs
                ),
                num_asked=len(data.pending),
                seconds=seconds,
            )

    def on_exception(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        exception: BaseException,  # noqa: ARG002
    ) -> None:
        """Keeps what there is."""
        self._close()

    def _journal(self, label: str, data: RecordDataModule, rank: int) -> JournalWriter:
        if label not in self._journals:
            (source,) = (one for one in data.inputs if one.label == label)
            folder = journal_folder(source.output_path)
            self._journals[label] = JournalWriter(folder, rank, self.sync_every_s)
        return self._journals[label]

    def _close(self) -> None:
        for journal in self._journals.values():
            journal.close()
        self._journals = {}

    def _require_same_maker(
        self, exchange: Exchange, model: str, answered: Mapping[str, Entry]
    ) -> None:
        """Compares the first request with the earlier answers, before it is written down."""
        if self._maker_is_known or exchange.request is None:
            return
        self._maker_is_known = True
        maker = maker_of(model, asdict(exchange.request.sampling))
        other = next((entry for entry in answered.values() if entry.maker != maker), None)
        if other is not None:
            raise OutputError(
                str(other.path.parent),
                found=f"answers made by {other.maker}",
                wanted=f"answers made by {maker}",
                remedy="Set rerun: true to ask all again, or name another output.",
            )


def data_of(trainer: Trainer) -> RecordDataModule:
    """The data of a run.

    Raises:
        ConfigError: If it is no RecordDataModule.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, RecordDataModule):
        raise ConfigError(
            "data",
            found=type(data).__name__,
            wanted="a RecordDataModule, whose inputs and outputs writers join",
            remedy="Use one, or take responses in a ResponseCallback of your own.",
        )
    return data
