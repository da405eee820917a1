"""ResponseWriter: the journal of a run, and at its end the files with the answers in them."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from mathcanvas_lightning.errors import ConfigError, OutputError
from mathcanvas_lightning.generation.requests import Exchange, Sampling
from mathcanvas_lightning.generation.run.datamodule import RecordDataModule
from mathcanvas_lightning.generation.run.journal import (
    Entry,
    JournalWriter,
    journal_folder,
    line_of,
    maker_of,
    note_end,
    wait_for_ends,
)
from mathcanvas_lightning.generation.run.module import GenerationModule, ResponseCallback
from mathcanvas_lightning.generation.run.outputs import NOT_ASKED, write_output
from mathcanvas_lightning.generation.run.post_processors import PostProcessor
from mathcanvas_lightning.generation.run.report import PredictionReport

log = logging.getLogger(__name__)


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

    comes_last = True  # what others write of an answer is there before its line says so

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

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, and compares model and sampling with those of earlier answers.

        Args:
            trainer: The Trainer.
            pl_module: A GenerationModule.

        Raises:
            OutputError: If earlier answers were made by another model or sampling.
        """
        self.report = None
        self._maker_is_known = False
        self._started_at = time.monotonic()
        assert isinstance(pl_module, GenerationModule)
        if pl_module.sampling is not None and pl_module.backend.model_name:
            self._require_same_maker(pl_module, pl_module.sampling, data_of(trainer).answered)

    def on_responses(
        self, trainer: Trainer, pl_module: GenerationModule, exchanges: Sequence[Exchange]
    ) -> None:
        """Appends responses to their journals.

        Args:
            trainer: The Trainer.
            pl_module: The module.
            exchanges: What was asked and said.

        Raises:
            OutputError: If earlier answers were made by another model or sampling.
        """
        data, backend = data_of(trainer), pl_module.backend
        lines: dict[str, list[dict[str, Any]]] = {}
        for exchange in exchanges:
            if exchange.request is not None and not self._maker_is_known:
                self._require_same_maker(pl_module, exchange.request.sampling, data.answered)
            key = data.pending[exchange.response.uid]
            line = line_of(
                exchange, model=backend.model_name, settings=backend.settings, digest=key.digest
            )
            lines.setdefault(key.label, []).append(line)
        for label, some in lines.items():
            self._journal(label, data, trainer.global_rank).append(some)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Waits for all ranks; rank 0 writes the outputs."""
        self._close()
        data = data_of(trainer)
        folder = journal_folder(data.inputs[0].output_path)
        note_end(folder, trainer.global_rank)
        if trainer.is_global_zero:
            wait_for_ends(folder, trainer.world_size)
            seconds = time.monotonic() - self._started_at
            inputs = [write_output(one, data.wanted, self.post_processors) for one in data.inputs]
            num_left = sum(one.failures[NOT_ASKED] for one in inputs)
            self.report = PredictionReport(
                inputs=tuple(inputs), num_asked=len(data.pending) - num_left, seconds=seconds
            )

    def on_exception(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        exception: BaseException,  # noqa: ARG002
    ) -> None:
        """Keeps what there is."""
        try:
            self._close()
        except OSError as error:  # the disk is full, most likely: others must still be told
            log.warning("the journal could not be closed in order: %s", error)

    def _journal(self, label: str, data: RecordDataModule, rank: int) -> JournalWriter:
        if label not in self._journals:
            (source,) = (one for one in data.inputs if one.label == label)
            folder = journal_folder(source.output_path)
            self._journals[label] = JournalWriter(folder, rank, self.sync_every_s)
        return self._journals[label]

    def _close(self) -> None:
        while self._journals:
            self._journals.popitem()[1].close()

    def _require_same_maker(
        self, module: GenerationModule, sampling: Sampling, answered: Mapping[str, Entry]
    ) -> None:
        backend = module.backend
        maker = maker_of(backend.model_name, backend.settings, asdict(sampling))
        other = next((entry for entry in answered.values() if entry.maker != maker), None)
        if other is not None:
            raise OutputError(
                str(other.path.parent),
                found=f"answers made by {other.maker}",
                wanted=f"answers made by {maker}",
                remedy="Set rerun: true to ask all again, or name another output.",
            )
        self._maker_is_known = True


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
