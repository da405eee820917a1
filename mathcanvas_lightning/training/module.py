"""BagelModule: the LightningModule that fine-tunes BAGEL on packed micro-batches."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from mathcanvas_lightning.batch import LossTotals, MicroBatch
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.adapters import LoRASettings
from mathcanvas_lightning.model.bagel import Bagel, BagelOutput
from mathcanvas_lightning.model.parallelize import (
    Parallelism,
    Precision,
    build_sharded,
    checkpoint_activations,
    compile_layers,
)
from mathcanvas_lightning.model.vae import LatentVAE
from mathcanvas_lightning.training.callbacks.ema import EMAConfig, EMAValidation, EMAWeights
from mathcanvas_lightning.training.checkpoint.record import RECORD_KEY, RunRecord
from mathcanvas_lightning.training.inputs import PackInputs, draw_inputs
from mathcanvas_lightning.training.losses import LossConfig, LossTerms, loss_terms, token_accuracy
from mathcanvas_lightning.training.numeric import DTYPES, NumericConfig, NumericSettings
from mathcanvas_lightning.training.optim import (
    OptimizerConfig,
    ScheduleConfig,
    count_steps,
    make_optimizer,
    make_schedule,
)
from mathcanvas_lightning.training.source import (
    FreezeConfig,
    ModelSource,
    choose_trainable,
    load_network,
    load_vae,
)
from mathcanvas_lightning.training.strategy import device_mesh

VALIDATION_METRICS = ("ce", "accuracy", "mse")


class BagelModule(LightningModule):
    """Trains and validates BAGEL on micro-batches of `MathCanvasDataModule`.

    Args:
        source: Initial weights: a checkpoint or a preset.
        loss: Weights of the text loss and the image loss.
        optimizer: Settings of AdamW.
        schedule: Learning rate schedule.
        freeze: Parts of the network that are not trained.
        lora: Train LoRA adapters, and freeze everything else.
        parallelism: Activation checkpointing, compilation and offloading. Sharding is set by the
            Trainer's strategy.
        ema: Keep a moving average of the trained weights, and validate the average.
        settings: Shift of the timesteps and number types; see `NumericSettings`.
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
        self.optimizer_config = optimizer
        self.schedule_config = schedule
        self.freeze_config = freeze
        self.lora = lora
        numeric = NumericConfig(**settings)
        self.timestep_shift = numeric.timestep_shift
        self.param_dtype = DTYPES[numeric.param_dtype]
        self.compute_dtype = DTYPES[numeric.compute_dtype]
        self.parallelism = parallelism
        self.ema_config = ema
        self.ema_weights: EMAWeights | None = None
        self.config = source.config()
        self.drawing_size = self.config.drawing_size
        self.model: Bagel | None = None
        self._frozen: dict[str, LatentVAE] = {}  # not a submodule, so not in checkpoints
        self.validation_metrics = torch.nn.ModuleDict()
        self._losses: Tensor | None = None  # [3] sums of loss, ce, mse of this rank

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
        """Checks that data and network match.

        Args:
            stage: Stage of the Trainer.

        Raises:
            ConfigError: If the patch sizes or the vocabulary of data and network differ.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        geometry = getattr(data, "geometry", None)
        if geometry is not None and geometry != self.config.geometry:
            raise ConfigError(
                "data.geometry",
                found=str(geometry),
                wanted=f"the geometry of the network: {self.config.geometry}",
                remedy="Leave it out on the command line; in Python, pass "
                "BagelConfig.from_directory(checkpoint).geometry.",
            )
        tokenizer = getattr(data, "tokenizer", None)
        if tokenizer is not None and tokenizer.num_ids > self.config.llm.vocab_size:
            raise ConfigError(
                "data.tokenizer",
                found=f"{tokenizer.num_ids} ids ({tokenizer.folder})",
                wanted=f"at most the {self.config.llm.vocab_size} ids that the network embeds",
                remedy="Leave it out to use the tokenizer of the network.",
            )
        if stage == "fit":
            self.drawing_size = getattr(data, "drawing_size", None) or self.config.drawing_size
        if stage in ("fit", "validate"):
            sets = getattr(data, "validation_data", ())
            self._make_metrics([found.datasets[0].config.label for found in sets])

    def configure_model(self) -> None:
        """Loads the network: complete on one device, or on each rank its shards."""
        if self.model is not None:
            return
        mesh = device_mesh(self.trainer.strategy)
        if mesh is not None:
            self.model = build_sharded(
                self.config,
                self.source.checkpoint,
                mesh,
                device=self._root_device(),
                precision=Precision(params=self.param_dtype, compute=self.compute_dtype),
                parallelism=self.parallelism,
                prepare=lambda model: choose_trainable(model, self.freeze_config, self.lora),
                seed=self.source.seed,
            )
            self._start_average()
            return
        model = load_network(self.source, self.param_dtype, self._root_device())
        choose_trainable(model, self.freeze_config, self.lora)
        checkpoint_activations(model, self.parallelism)
        compile_layers(model, self.parallelism)
        self.model = model
        self._start_average()

    def _start_average(self) -> None:
        if self.ema_config is not None:
            on_cpu = self.ema_config.on_cpu or self.parallelism.cpu_offload
            self.ema_weights = EMAWeights(self.network, replace(self.ema_config, on_cpu=on_cpu))

    def configure_callbacks(self) -> list[Callback]:
        """Adds the callback that validates the averaged weights, if there are any."""
        return [] if self.ema_config is None else [EMAValidation()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the record of this run."""
        checkpoint[RECORD_KEY] = self._record().to_state()

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Checks that a checkpoint matches this run.

        Raises:
            ConfigError: If its network, adapters or moving average differ.
            DataError: If it was not written by this class.
        """
        place = str((self._trainer and self._trainer.ckpt_path) or "checkpoint")
        RunRecord.from_checkpoint(checkpoint, place).check(self._record(), place)

    def _record(self) -> RunRecord:
        return RunRecord(
            config=replace(
                self.config if self.model is None else self.model.config,
                drawing_size=self.drawing_size,
            ),
            checkpoint=self.source.checkpoint,
            lora=self.lora,
            ema_decay=None if self.ema_config is None else self.ema_config.decay,
        )

    def training_step(self, batch: MicroBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Computes the loss of one micro-batch.

        Args:
            batch: The micro-batch, on this module's device.
            batch_idx: Its number in the epoch.

        Returns:
            The scaled loss. After Lightning divides by the accumulation and the strategy averages
            over ranks, the accumulated gradient is that of the global step.
        """
        _, terms = self.run(batch)
        loss = terms.combined(self.loss_config)
        shares = torch.stack([loss, terms.ce, terms.mse]).detach()
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
        schedule = make_schedule(optimizer, self.schedule_config, self._total_steps())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Drops the losses of an unfinished step of an earlier fit."""
        self._losses = None

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:  # noqa: ARG002
        """Logs the losses of the step, summed over micro-batches and ranks."""
        assert self._losses is not None
        losses = self.trainer.strategy.reduce(self._losses, reduce_op="sum")
        self._losses = None
        for name, loss in zip(("loss", "ce", "mse"), losses, strict=True):
            self.log(f"train/{name}", loss, prog_bar=name != "loss")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps the optimizer, then the average, so that checkpoints of this step have both."""
        super().optimizer_step(*args, **kwargs)
        if self.ema_weights is not None:
            self.ema_weights.update(self.network)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,  # noqa: ARG002 - always by norm
    ) -> None:
        """Clips gradients by their norm over all ranks, and logs the norm."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        limit = float("inf") if gradient_clip_val is None else float(gradient_clip_val)
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        whole = getattr(norm, "full_tensor", lambda: norm)()
        self.log("train/grad_norm", whole.detach())

    def _make_metrics(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.validation_metrics:
                self.validation_metrics[name] = torch.nn.ModuleDict(
                    {key: MeanMetric() for key in VALIDATION_METRICS}
                )

    def _metrics(self, dataloader_idx: int) -> Mapping[str, MeanMetric]:
        found: Any = list(self.validation_metrics.values())[dataloader_idx]
        return dict(found.items())

    def _total_steps(self) -> int:
        steps = count_steps(self.trainer)
        if steps is None:
            raise ConfigError(
                "schedule.total_steps",
                found="a run of unlimited length",
                wanted="the number of steps",
                remedy="Set trainer.max_steps, trainer.max_epochs or schedule.total_steps.",
            )
        return max(1, steps)

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        if self.compute_dtype == self.param_dtype or self._is_sharded():
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.compute_dtype)

    def _is_sharded(self) -> bool:
        return device_mesh(self.trainer.strategy) is not None

    def _root_device(self) -> torch.device:
        return self.trainer.strategy.root_device
