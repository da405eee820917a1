"""BagelModule: the LightningModule that fine-tunes BAGEL on packed micro-batches."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from mathcanvas_lightning.batch import LossTotals, MicroBatch
from mathcanvas_lightning.model.adapters import LoRASettings
from mathcanvas_lightning.model.bagel import Bagel, BagelOutput
from mathcanvas_lightning.model.parallelize import Parallelism, build_network
from mathcanvas_lightning.model.vae import LatentVAE
from mathcanvas_lightning.training.callbacks.ema import EMAConfig, EMAValidation, EMAWeights
from mathcanvas_lightning.training.checkpoint.plain import readable
from mathcanvas_lightning.training.checkpoint.record import RECORD_KEY, RunRecord
from mathcanvas_lightning.training.checkpoint.resume import skip_saved_step
from mathcanvas_lightning.training.checkpoint.weights import load_run_weights
from mathcanvas_lightning.training.checks import (
    VALIDATION_METRICS,
    check_data,
    check_monitors,
    check_trainer,
)
from mathcanvas_lightning.training.gradients import Gradients, SkippedSteps
from mathcanvas_lightning.training.inputs import PackInputs, draw_inputs
from mathcanvas_lightning.training.losses import (
    DATASET_COLUMNS,
    LossConfig,
    LossTerms,
    dataset_metrics,
    dataset_sums,
    loss_terms,
    token_accuracy,
)
from mathcanvas_lightning.training.numeric import (
    PARAM_DTYPE_WARNING,
    NumericConfig,
    NumericSettings,
    autocast_dtype,
)
from mathcanvas_lightning.training.optim import (
    OptimizerConfig,
    ScheduleConfig,
    apply_settings,
    make_optimizer,
    make_schedule,
    part_rates,
    require_steps,
)
from mathcanvas_lightning.training.settings import make_record
from mathcanvas_lightning.training.source import (
    FreezeConfig,
    ModelSource,
    choose_trainable,
    frozen_names,
    leave_out_frozen,
    load_vae,
)
from mathcanvas_lightning.training.strategy import device_mesh

log = logging.getLogger(__name__)


class BagelModule(LightningModule):
    """Trains and validates BAGEL on micro-batches of `MathCanvasDataModule`.

    Args:
        source: Initial weights: a checkpoint or a preset.
        loss: Weights of the text loss and the drawing loss.
        optimizer: Settings of AdamW.
        schedule: Learning rate schedule.
        freeze: Parts of the network that are not trained.
        lora: Train LoRA adapters, and freeze everything else.
        parallelism: Activation checkpointing, compilation and offloading. Sharding is set by the
            Trainer's strategy.
        ema: Keep a moving average of the trained weights, and validate the average.
        settings: Number types, shift of the timesteps, and steps that may be skipped; see
            `NumericSettings`.
    """

    def __init__(
        self,
        source: ModelSource = ModelSource(),
        loss: LossConfig = LossConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        schedule: ScheduleConfig = ScheduleConfig(),
        freeze: FreezeConfig = FreezeConfig(),
        lora: LoRASettings | None = None,
        parallelism: Parallelism = Parallelism(),
        ema: EMAConfig | None = None,
        **settings: Unpack[NumericSettings],
    ) -> None:
        super().__init__()
        self.source = source
        self.loss_config = loss
        self.optimizer_config = optimizer.with_lr(adapters=lora is not None)
        self.schedule_config = schedule
        self.freeze_config = freeze
        self.lora = lora
        self.numeric = NumericConfig(**settings)
        self.timestep_shift = self.numeric.timestep_shift
        self.precision = self.numeric.precision
        self.param_dtype, self.compute_dtype = self.precision.params, self.precision.compute
        self.parallelism = parallelism
        self.ema_config = ema
        self.ema_weights: EMAWeights | None = None
        self.config = source.config()
        self.drawing_size = self.config.drawing_size
        self.model: Bagel | None = None
        self.left_out: tuple[str, ...] = ()  # frozen weights, which checkpoints leave out
        leave_out_frozen(self)
        self._frozen: dict[str, LatentVAE] = {}  # not a submodule, so not in checkpoints
        self.validation_metrics = torch.nn.ModuleDict()
        self._losses: Tensor | None = None  # sums of this rank: loss, ce, mse, then by data set
        self._by_dataset: Tensor | float = 0.0  # [data sets, columns] since the last log entry
        self._skipped = SkippedSteps(self.numeric.max_skipped_steps)
        self._is_resumed = False

    @property
    def network(self) -> Bagel:
        """The network; available after `configure_model`."""
        assert self.model is not None, "configure_model was not called"
        return self.model

    @property
    def vae(self) -> LatentVAE:
        """The autoencoder, on this module's device; loaded on first use."""
        if "vae" not in self._frozen:
            self._frozen["vae"] = load_vae(self.source, self.compute_dtype, self.device)
        return self._frozen["vae"]

    def setup(self, stage: str) -> None:
        """Checks that Trainer, data and network match, before any weights are loaded.

        Args:
            stage: Stage of the Trainer.

        Raises:
            ConfigError: If settings contradict each other.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        check_data(self.config, data)
        sets = [found.datasets[0].config.label for found in getattr(data, "validation_data", ())]
        if stage in ("fit", "validate"):
            check_trainer(self.trainer)
            self._make_metrics(sets)
        if stage == "fit":
            check_monitors(self.trainer, self, sets)
            self.drawing_size = getattr(data, "drawing_size", None) or self.config.drawing_size
        if stage == "fit" and self.param_dtype != torch.float32 and self.trainer.is_global_zero:
            log.warning(PARAM_DTYPE_WARNING, self.numeric.param_dtype)

    def configure_model(self) -> None:
        """Loads the network: complete on one device, or on each rank its shards."""
        if self.model is not None:
            return
        self.model = build_network(
            self.config,
            self.source.checkpoint,
            device_mesh(self.trainer.strategy),
            device=self.trainer.strategy.root_device,
            precision=self.precision,
            parallelism=self.parallelism,
            prepare=lambda model: choose_trainable(model, self.freeze_config, self.lora),
            seed=self.source.initial_seed,
        )
        if self.source.weights is None:
            self.left_out = frozen_names(self.model)
        else:
            load_run_weights(self.model, self.source.weights, average=self.source.average)
        if self.ema_config is not None:
            on_cpu = self.ema_config.on_cpu or self.parallelism.cpu_offload
            self.ema_weights = EMAWeights(self.network, replace(self.ema_config, on_cpu=on_cpu))

    def configure_callbacks(self) -> list[Callback]:
        """Adds the callback that validates the averaged weights, if there are any."""
        return [] if self.ema_config is None else [EMAValidation()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the record of this run, and converts everything to types that can be read back."""
        checkpoint[RECORD_KEY] = make_record(self).to_state()
        converted = readable(checkpoint)
        checkpoint.clear()
        checkpoint.update(converted)

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Checks that a checkpoint matches this run, and logs which settings have changed.

        Raises:
            ConfigError: If its network, adapters, frozen parts or moving average differ.
            DataError: If it was not written by this class.
        """
        place = str((self._trainer and self._trainer.ckpt_path) or "checkpoint")
        record = self.check_record(checkpoint, place)
        self._is_resumed = True
        if changes := record.changes(make_record(self)):
            rank_zero_info(
                "Settings that differ from those of the checkpoint, and are used from now on: "
                + "; ".join(changes)
            )

    def check_record(self, checkpoint: Mapping[str, Any], place: str) -> RunRecord:
        """Checks that this run can resume from a checkpoint; needs no weights.

        Args:
            checkpoint: The checkpoint; its tensors are not needed.
            place: Its path, for errors.

        Returns:
            Its record.

        Raises:
            ConfigError: If its network, adapters, frozen parts or moving average differ.
            DataError: If it was not written by this class.
        """
        record = RunRecord.from_checkpoint(checkpoint, place)
        record.check(make_record(self), place)
        return record

    def training_step(self, batch: MicroBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Computes the loss of one micro-batch.

        Args:
            batch: The micro-batch, on this module's device.
            batch_idx: Its number in the epoch.

        Returns:
            The scaled loss. After Lightning divides by the accumulation and the strategy averages
            over ranks, the accumulated gradient is that of the global step.
        """
        (output, inputs), terms = self.run(batch)
        loss = terms.combined(self.loss_config)
        shares = torch.stack([loss, terms.ce, terms.mse]).detach()
        by_dataset = dataset_sums(batch, output, inputs.target(batch.pack), self._dataset_names())
        shares = torch.cat([shares, by_dataset.flatten()])
        self._losses = shares if self._losses is None else self._losses + shares
        self.log("train/ce_tokens", float(batch.step_totals.ce_tokens), batch_size=1)
        self.log("train/mse_tokens", float(batch.step_totals.mse_tokens), batch_size=1)
        # Undoes the division by the accumulation (Lightning) and by the ranks (strategy).
        return loss * (self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def run(
        self, batch: MicroBatch, totals: LossTotals | None = None
    ) -> tuple[tuple[BagelOutput, PackInputs], LossTerms]:
        """Runs the forward pass and computes the losses.

        Args:
            batch: The micro-batch, on this module's device.
            totals: Denominators of the losses; by default those of the batch's step.

        Returns:
            Output and inputs of the network, and the losses.
        """
        inputs = draw_inputs(self.vae, batch, self.config.latent_patch_size, self.timestep_shift)
        with self._autocast():
            output = self.network(
                batch.pack,
                latents=inputs.latents,
                noise=inputs.noise,
                timesteps=inputs.timesteps,
            )
        terms = loss_terms(
            output,
            inputs.target(batch.pack),
            batch.pack,
            totals or batch.step_totals,
            self.loss_config.ce_reduction,
        )
        return (output, inputs), terms

    def validation_step(
        self,
        batch: MicroBatch,
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,
    ) -> None:
        """Updates the metrics of a validation set with a micro-batch.

        Args:
            batch: The micro-batch, on this module's device. Its noise and timesteps are the same in
                every validation.
            batch_idx: Its number in the loader.
            dataloader_idx: Number of the validation set.
        """
        own = LossTotals.of(batch.pack)
        (output, _), terms = self.run(batch, own)
        metrics = self._metrics(dataloader_idx)
        if own.ce_tokens:
            correct = token_accuracy(
                output.hidden_states[batch.pack.ce_indexes],
                self.network.language_model.lm_head.weight,
                batch.pack.ce_label_ids,
            )
            metrics["ce"].update(output.ce.float().mean(), own.ce_tokens)
            metrics["accuracy"].update(correct / own.ce_tokens, own.ce_tokens)
        if own.mse_tokens:
            metrics["mse"].update(terms.mse, own.mse_tokens)

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics of each validation set over all ranks, if it has tokens for them."""
        for number, name in enumerate(self.validation_metrics):
            for key, metric in self._metrics(number).items():
                metric.update(0.0, 0.0)  # a rank without such tokens must sync too
                value = metric.compute()
                metric.reset()
                if torch.isfinite(value):
                    self.log(f"val/{name}/{key}", value)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Makes AdamW and its schedule."""
        optimizer = make_optimizer(self.network, self.optimizer_config)
        schedule = make_schedule(optimizer, self.schedule_config, require_steps(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Loads the autoencoder, so that missing files or memory show before the first step."""
        assert self.vae is not None

    def on_train_start(self) -> None:
        """Drops the sums of an earlier fit; after a resume, applies the present settings."""
        self._losses, self._by_dataset = None, 0.0
        self._skipped = SkippedSteps(self.numeric.max_skipped_steps)
        if self._is_resumed:
            schedule: Any = self.trainer.lr_scheduler_configs[0].scheduler
            [optimizer] = self.trainer.optimizers
            apply_settings(optimizer, schedule, self.network, self.optimizer_config)
            skip_saved_step(self.trainer)
        self._is_resumed = False

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:  # noqa: ARG002
        """Logs the losses of the step, summed over micro-batches and ranks."""
        assert self._losses is not None
        sums = self.trainer.strategy.reduce(self._losses, reduce_op="sum")
        assert isinstance(sums, Tensor)
        self._losses = None
        for name, loss in zip(("loss", "ce", "mse"), sums[:3], strict=True):
            self.log(f"train/{name}", loss, prog_bar=name != "loss")
        self._by_dataset = self._by_dataset + sums[3:].view(-1, len(DATASET_COLUMNS))
        if (self.trainer.global_step + 1) % max(1, vars(self.trainer)["log_every_n_steps"]) == 0:
            self.log_dict(dataset_metrics(self._by_dataset, self._dataset_names()))
            self._by_dataset = 0.0

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps the optimizer, then the average, so that checkpoints of this step have both."""
        super().optimizer_step(*args, **kwargs)
        if self.ema_weights is not None and not self._skipped.in_a_row:
            self.ema_weights.update(self.network)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Logs the norms of the gradients and clips them; drops them if they are not finite."""
        mesh = device_mesh(self.trainer.strategy)
        group = None if mesh is None else mesh["shard"].get_group()
        gradients = Gradients(self.network.named_parameters(), group, self.device)
        norms = gradients.norms()
        self.log("train/grad_norm", norms["total"])
        self.log_dict({f"grad_norm/{part}": n for part, n in norms.items() if part != "total"})
        self.log_dict(part_rates(optimizer, self.optimizer_config))
        scales_loss = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if not scales_loss and self._skipped.check(norms["total"], self.trainer.global_step):
            gradients.drop()
        elif gradient_clip_val is not None and gradient_clip_algorithm == "value":
            gradients.clip_values(float(gradient_clip_val))
        elif gradient_clip_val is not None:
            gradients.clip_norm(float(gradient_clip_val), norms["total"])
        self.log("train/skipped_steps", float(self._skipped.total))

    def _dataset_names(self) -> list[str]:
        data: Any = getattr(self.trainer, "datamodule", None)
        sets = getattr(data, "train_data", None)
        return [] if sets is None else [found.config.label for found in sets.datasets]

    def _make_metrics(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.validation_metrics:
                self.validation_metrics[name] = torch.nn.ModuleDict(
                    {key: MeanMetric() for key in VALIDATION_METRICS}
                )

    def _metrics(self, dataloader_idx: int) -> Mapping[str, MeanMetric]:
        found: Any = list(self.validation_metrics.values())[dataloader_idx]
        return dict(found.items())

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        dtype = autocast_dtype(self.precision, device_mesh(self.trainer.strategy))
        kind = self.device.type
        return contextlib.nullcontext() if dtype is None else torch.autocast(kind, dtype)
