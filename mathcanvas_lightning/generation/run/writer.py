"""ResponseWriter: appends responses to the journal, and writes the output files at the end."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from mathcanvas_lightning.errors import ConfigError, OutputError
from mathcanvas_lightning.generation.requests import Exchange, Sampling
from mathcanvas_lightning.generation.run.datamodule import RecordDataModule
from mathcanvas_lightning.generation.run.journal.about import write_about
from mathcanvas_lightning.generation.run.journal.append import JournalWriter
from mathcanvas_lightning.generation.run.journal.drawings import store_drawings
from mathcanvas_lightning.generation.run.journal.folder import (
    finish_rerun,
    journal_folder,
    mark_finished,
    wait_until_finished,
)
from mathcanvas_lightning.generation.run.journal.lines import Entry, journal_line, origin_of
from mathcanvas_lightning.generation.run.journal.origin import require_same_origin
from mathcanvas_lightning.generation.run.module import (
    GenerationModule,
    ResponseCallback,
    callbacks_of,
)
from mathcanvas_lightning.generation.run.outputs import NOT_ASKED, write_output
from mathcanvas_lightning.generation.run.post_processors import PostProcessor
from mathcanvas_lightning.generation.run.provenance import run_facts
from mathcanvas_lightning.generation.run.summary import PredictionReport

log = logging.getLogger(__name__)


class ResponseWriter(ResponseCallback):
    """Appends each response to the journal at once, and writes the output files at the end.

    An output file has the records of the input in their order, with the answer in the response
    field; its format follows from its suffix. A record without an answer has the field
    `<response field>_error` instead.

    Args:
        post_processors: Functions that change the text of an answer in the output, applied in
            order. The journal keeps the original text, so they can be changed without new answers.
        sync_every_s: Interval of fsync in seconds: a power failure loses at most this much of the
            journal. If only the process is killed, nothing is lost.
    """

    comes_last = True  # files of other callbacks exist before the journal has the answer

    def __init__(
        self, post_processors: list[PostProcessor] | None = None, sync_every_s: float = 1.0
    ) -> None:
        self.post_processors = post_processors or []
        self.sync_every_s = sync_every_s
        self.report: PredictionReport | None = None
        """Counts of a successful run, on rank 0."""
        self.command: str | None = None
        """The command of the run, without secrets, if there is one."""
        self._journals: dict[str, JournalWriter] = {}
        self._is_checked = False
        self._started_at = 0.0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, and compares model and sampling with those of earlier answers.

        Args:
            trainer: The Trainer.
            pl_module: A GenerationModule.

        Raises:
            OutputError: If earlier answers were made with another model or other sampling.
        """
        self.report = None
        self._is_checked = False
        self._started_at = time.monotonic()
        assert isinstance(pl_module, GenerationModule)
        _require_same_origin(pl_module, pl_module.sampling, data_of(trainer).answered)

    def on_responses(
        self, trainer: Trainer, pl_module: GenerationModule, exchanges: Sequence[Exchange]
    ) -> None:
        """Appends responses to their journals.

        Args:
            trainer: The Trainer.
            pl_module: The module.
            exchanges: New responses with their requests.

        Raises:
            OutputError: If earlier answers were made with another model or other sampling.
        """
        data, backend = data_of(trainer), pl_module.backend
        lines: dict[str, list[dict[str, Any]]] = {}
        are_kept = any(getattr(c, "keeps_drawings", False) for c in callbacks_of(trainer))
        for exchange in exchanges:
            if exchange.request is not None and not self._is_checked:
                _require_same_origin(pl_module, exchange.request.sampling, data.answered)
                self._is_checked = True
            key = data.pending[exchange.response.uid]
            line = journal_line(
                exchange,
                model=backend.model_name,
                settings=backend.settings,
                digest=key.digest,
                stamp=key.stamp,
            )
            if not are_kept:
                folder = self._folder(key.label, data)
                line["steps"] = store_drawings(folder, exchange.response.outputs)
            lines.setdefault(key.label, []).append(line)
        for label, some in lines.items():
            self._journal(label, data, trainer.global_rank).append(some)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Closes the journals; rank 0 waits for all ranks and writes the output files."""
        self._close()
        data = data_of(trainer)
        folder = journal_folder(data.inputs[0].output_path)
        mark_finished(folder, trainer.global_rank)
        if trainer.is_global_zero:
            wait_until_finished(folder, trainer.world_size)
            seconds = time.monotonic() - self._started_at
            inputs = [
                write_output(one, data.wanted, self.post_processors, data.skipped[one.label])
                for one in data.inputs
            ]
            for one in data.inputs:
                finish_rerun(journal_folder(one.output_path))
                facts = run_facts(one, data.wanted.values(), self.command)
                write_about(one.output_path, one.label, data.prompt, **facts)
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
        """Closes the journals."""
        try:
            self._close()
        except (OSError, OutputError) as error:
            # Probably a full disk; other callbacks must still be called.
            log.warning("closing the journal failed: %s", error)

    def _journal(self, label: str, data: RecordDataModule, rank: int) -> JournalWriter:
        if label not in self._journals:
            folder = self._folder(label, data)
            self._journals[label] = JournalWriter(folder, rank, self.sync_every_s)
        return self._journals[label]

    def _folder(self, label: str, data: RecordDataModule) -> Path:
        (source,) = (one for one in data.inputs if one.label == label)
        return journal_folder(source.output_path)

    def _close(self) -> None:
        while self._journals:
            self._journals.popitem()[1].close()


def _require_same_origin(
    module: GenerationModule, sampling: Sampling | None, answered: Mapping[str, Entry]
) -> None:
    """Compares the origin of earlier answers with this run's, as far as it is known."""
    backend = module.backend
    known = None if sampling is None else asdict(sampling)
    origin = origin_of(backend.model_name, backend.settings, known)
    require_same_origin(answered.values(), origin)


def data_of(trainer: Trainer) -> RecordDataModule:
    """The data module of a run.

    Raises:
        ConfigError: If it is not a RecordDataModule.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, RecordDataModule):
        raise ConfigError(
            "data",
            found=type(data).__name__,
            wanted="a RecordDataModule, which the writers need",
            remedy="Use one, or write your own ResponseCallback.",
        )
    return data
