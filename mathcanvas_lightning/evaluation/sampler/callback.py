"""AnswerSampler: answers held-out records at validations, and logs how many are right."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mathcanvas_lightning.errors import ConfigError, MathCanvasError
from mathcanvas_lightning.evaluation.sampler.answering import (
    AnswerSettings,
    answer_all,
    require_strategy,
)
from mathcanvas_lightning.evaluation.sampler.held_out import (
    HeldOut,
    read_held_out,
    require_references,
)
from mathcanvas_lightning.evaluation.sampler.loggers import log_answers
from mathcanvas_lightning.evaluation.sampler.results import (
    Reference,
    SampledAnswer,
    log_folder,
    metric_names,
    score_answers,
    show_answers,
    write_answers,
)
from mathcanvas_lightning.generation.prompts.chat import ChatPrompt, PromptBuilder
from mathcanvas_lightning.generation.requests import (
    GenerationRequest,
    GenerationResponse,
    Sampling,
)
from mathcanvas_lightning.records.record import RecordInput
from mathcanvas_lightning.training.module import BagelModule

log = logging.getLogger(__name__)


class AnswerSampler(Callback):
    """Answers held-out records at validations with the network that is being trained.

    The weights are those of the validation: the moving average, if there is one. The records with
    their answers are written to `answers/<name>/step_N` in the log folder of the run, with a folder
    of steps and drawings beside, as `mathcanvas predict` writes them, with the verdicts of
    `mathcanvas score` and the page of `mathcanvas report`. TensorBoard and Weights & Biases also
    get the first answers. The metrics are `answers/<name>/accuracy`, `.../answered` (share of
    records with an answer), `.../seconds`, and for puzzles `.../states`, `.../drawings` and the
    other checks.

    The training does not change. Ranks share the records. With ShardedStrategy, each rank holds the
    whole network while it answers, in the type of the computation.

    Args:
        records: File of held-out records and the names of its fields, as for `mathcanvas predict`.
        num_records: Number of records to answer, the first of the file.
        every_n_steps: Samples at the first validation after each so many optimizer steps; with 1,
            at every validation.
        prompt: Builds a conversation from a record; default: `ChatPrompt()`.
        reference: Field with the reference answers, and folder of the puzzles.
        sampling: Sampling of the texts; the default always takes the most likely token.
        generation: Mode, drawings and limits of the answers.

    Raises:
        ConfigError: If a number is below 1, or the records have an output.
    """

    def __init__(
        self,
        records: RecordInput,
        num_records: int = 16,
        every_n_steps: int = 1,
        prompt: PromptBuilder | None = None,
        reference: Reference = Reference(),
        sampling: Sampling = Sampling(max_tokens=512),
        generation: AnswerSettings = AnswerSettings(),
    ) -> None:
        if min(num_records, every_n_steps) < 1:
            raise ConfigError(
                "AnswerSampler",
                found=f"num_records {num_records}, every_n_steps {every_n_steps}",
                wanted="1 or more of each",
                remedy="Leave the callback out to sample no answers.",
            )
        if records.output is not None:
            raise ConfigError(
                "AnswerSampler.records.output",
                found=records.output,
                wanted="none",
                remedy="Leave it out: answers are written to the log folder of the run.",
            )
        self.records, self.num_records, self.every_n_steps = records, num_records, every_n_steps
        self.prompt = prompt or ChatPrompt()
        self.reference, self.sampling, self.generation = reference, sampling, generation
        self._held_out: list[HeldOut] = []
        self._last_step = 0

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics, which ModelCheckpoint and EarlyStopping may monitor."""
        names = (*metric_names(self.reference), "seconds")
        return tuple(f"answers/{self.records.label}/{name}" for name in names)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reads the records, before the network is built.

        Args:
            trainer: The Trainer.
            pl_module: A BagelModule.
            stage: Stage of the Trainer.

        Raises:
            ConfigError: If the strategy, the module or another AnswerSampler doesn't fit.
            InputError: If the records can't be read or scored.
        """
        if stage not in ("fit", "validate"):
            return
        if not isinstance(pl_module, BagelModule):
            raise ConfigError(
                "AnswerSampler",
                found=type(pl_module).__name__,
                wanted="a BagelModule, whose network can answer",
                remedy="Leave the callback out.",
            )
        require_strategy(trainer, pl_module)
        self._require_own_label(trainer)
        self._held_out = read_held_out(self.records, self.num_records, self.prompt)
        require_references(
            self._held_out, self.records, self.reference.answer_field, self.reference.puzzles
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Starts from the step of the checkpoint: a resumed run samples at the same steps."""
        self._last_step = trainer.global_step

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Answers the records, if it is due, while the averaged weights are in use."""
        step = trainer.global_step
        is_due = step // self.every_n_steps > self._last_step // self.every_n_steps
        if trainer.sanity_checking or (trainer.state.fn == "fit" and not is_due):
            return
        assert isinstance(pl_module, BagelModule)
        self._last_step = step
        started = time.perf_counter()
        target = log_folder(trainer, self.records.label) / f"step_{step}"  # broadcasts
        answers = self.answer(trainer, pl_module)
        metrics: dict[str, float] = {}
        if trainer.is_global_zero:
            metrics = self._report(trainer, answers, target, step)
        metrics = trainer.strategy.broadcast(metrics)
        metrics["seconds"] = trainer.strategy.broadcast(time.perf_counter() - started)
        pl_module.log_dict({f"answers/{self.records.label}/{n}": v for n, v in metrics.items()})

    def answer(self, trainer: Trainer, module: BagelModule) -> list[SampledAnswer]:
        """Answers the held-out records; all ranks must call it together.

        Args:
            trainer: The Trainer.
            module: The module, in validation.

        Returns:
            The answers of all ranks, in the order of the records.
        """
        prepared = [one.prepared for one in self._held_out]
        responses = {one.uid: one for one in prepared if isinstance(one, GenerationResponse)}
        requests = [
            replace(one, sampling=self.sampling)
            for one in prepared
            if isinstance(one, GenerationRequest)
        ]
        for response in answer_all(trainer, module, requests, self.generation):
            responses[response.uid] = response
        return [
            SampledAnswer(held_out=one, response=responses[one.prepared.uid])
            for one in self._held_out
        ]

    def _report(
        self, trainer: Trainer, answers: Sequence[SampledAnswer], target: Path, step: int
    ) -> dict[str, float]:
        """Writes, scores and logs the answers; the training continues if that fails."""
        try:
            path = write_answers(answers, self.records, target)
            metrics = score_answers(path, self.records, self.reference)
            show_answers(path, self.records, self.reference)
            log_answers(trainer, f"answers/{self.records.label}", answers, step)
        except (MathCanvasError, OSError) as error:
            log.warning("writing or scoring the answers at step %d failed: %s", step, error)
            return {}
        return metrics

    def _require_own_label(self, trainer: Trainer) -> None:
        callbacks: list[Any] = vars(trainer)["callbacks"]
        labels = [one.records.label for one in callbacks if isinstance(one, AnswerSampler)]
        if labels.count(self.records.label) > 1:
            raise ConfigError(
                "AnswerSampler.records.name",
                found=f"two with the name {self.records.label}",
                wanted="a different name for each",
                remedy="Set records.name; it names the metrics and the folder.",
            )
