"""Lightning strategy for FSDP2 and HSDP, with checkpoints that appear complete or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from mathcanvas_lightning.common.atomic import TEMPORARY_PREFIX
from mathcanvas_lightning.common.exits import leave_process_group_at_exit
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.training.checkpoint.background import BackgroundSaver
from mathcanvas_lightning.training.checkpoint.verify import (
    check_same_model,
    read_about,
    stored_shapes,
)
from mathcanvas_lightning.training.checkpoint.writing import (
    AtomicCheckpointIO,
    move_over,
    reason,
    remove_temporaries,
    save_atomically,
    save_error,
)

__all__ = ["AtomicCheckpointIO", "ShardedStrategy", "device_mesh", "move_over", "save_atomically"]


class ShardedStrategy(ModelParallelStrategy):
    """Shards the network over ranks, with one or more replicas.

    Args:
        replicas: Number of replicas of the sharded network: 1 for FSDP, one per machine for HSDP.
        shards: Number of ranks that share one replica; by default all ranks divided by replicas.
        async_save: Write checkpoints while the training continues. This needs host memory for a
            copy of what is saved. A checkpoint is finished before the next one is started, and at
            the end of the run.
        kwargs: Arguments of `ModelParallelStrategy`.
    """

    def __init__(
        self,
        replicas: int = 1,
        shards: int | Literal["auto"] = "auto",
        async_save: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_parallel_size="auto", tensor_parallel_size=1, **kwargs)
        self.replicas, self.shards = replicas, shards
        self.saver = BackgroundSaver() if async_save else None

    def setup_environment(self) -> None:
        """Starts the process group and makes the mesh.

        Raises:
            ConfigError: If replicas times shards is not the number of ranks.
        """
        leave_process_group_at_exit()
        shards = self._count_shards()
        self._data_parallel_size = self.world_size
        super().setup_environment()
        mesh = init_device_mesh(
            self.root_device.type, (self.replicas, shards), mesh_dim_names=("replicate", "shard")
        )
        self._device_mesh = mesh
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = mesh

    def setup(self, trainer: Trainer) -> None:
        """Sets up model and optimizers, and creates the optimizer state of every parameter.

        If a parameter had no state because it was not used yet, a checkpoint could not be resumed.
        """
        super().setup(trainer)
        assert self.model is not None
        for loop in (trainer.validate_loop, trainer.test_loop, trainer.predict_loop):
            loop.inference_mode = False  # FSDP2 can't gather parameters in inference mode
        if self.saver is not None:
            self.saver.defer_links(trainer.checkpoint_callbacks)
        for optimizer in self.optimizers:
            get_optimizer_state_dict(self.model, optimizer)  # takes a step of size 0
            for state in optimizer.state.values():
                if "step" in state:
                    state["step"].zero_()

    def model_to_device(self) -> None:
        """Moves the network to the device, unless its shards are kept in host memory."""
        assert self.model is not None
        if all(parameter.device == self.root_device for parameter in self.model.parameters()):
            super().model_to_device()
            return
        assert self.lightning_module is not None
        self.lightning_module._device = self.root_device
        for module in self.lightning_module.children():
            if not isinstance(module, FSDPModule):
                module.to(self.root_device)

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Ranks for a distributed sampler; the data module of this library doesn't use one."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None
    ) -> None:
        """Writes a checkpoint atomically.

        Args:
            checkpoint: See `ModelParallelStrategy.save_checkpoint`.
            filepath: Path of the checkpoint.
            storage_options: See `ModelParallelStrategy.save_checkpoint`.

        Raises:
            OutputError: On all ranks, if one of them can't write its part.
        """
        self._finish_saving()
        target = Path(self.broadcast(str(filepath)))
        temporary = target.with_name(TEMPORARY_PREFIX + target.name)
        problem = self._any_problem(lambda: remove_temporaries(target.parent), only_first=True)
        if problem is None and self.saver is not None:
            start = self.saver.start
            problem = self._any_problem(
                lambda: start(checkpoint, temporary, target, is_first=self.is_global_zero)
            )
            if problem is None:
                return
        elif problem is None:
            save = super().save_checkpoint
            problem = self._any_problem(lambda: save(checkpoint, temporary, storage_options))
        if problem is None:
            problem = self._any_problem(lambda: move_over(temporary, target), only_first=True)
        self._raise_problem(problem, temporary, target)

    def remove_checkpoint(self, filepath: Any) -> None:
        """Removes a checkpoint; if one is being written, after that is complete."""
        remove = super().remove_checkpoint
        if self.saver is None:
            remove(filepath)
        else:
            self.saver.after_save(lambda: remove(filepath))

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Collects the shards of the weights, without copying them to the host."""
        assert self.model is not None
        return get_model_state_dict(self.model, options=self._state_options())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Collects the shards of the optimizer's state, without copying them to the host."""
        if not self._save_distributed_checkpoint:
            return super().optimizer_state(optimizer)
        assert self.model is not None
        plain = getattr(optimizer, "_optimizer", optimizer)  # Lightning wraps it
        return dict(get_optimizer_state_dict(self.model, plain, options=self._state_options()))

    def on_train_end(self) -> None:
        """Completes the last checkpoint."""
        self._finish_saving()
        super().on_train_end()

    def teardown(self) -> None:
        """Completes the last checkpoint also after an error, then releases everything."""
        if self.saver is not None:
            self.saver.close()
        super().teardown()

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads this rank's part of a checkpoint that was written on any number of ranks.

        Args:
            checkpoint_path: Path of the checkpoint.
            weights_only: See `ModelParallelStrategy.load_checkpoint`.

        Returns:
            The checkpoint without its tensors.

        Raises:
            DataError: If the checkpoint is incomplete.
            ConfigError: If it is of another network.
        """
        path = Path(self.broadcast(str(checkpoint_path)))
        about = read_about(path)
        module: Any = self.lightning_module
        if hasattr(module, "check_record"):
            module.check_record(about, str(path))
        left_out = {f"model.{name}" for name in getattr(module, "left_out", ())}
        stored = {n: shape for n, shape in stored_shapes(path).items() if n not in left_out}
        check_same_model(path, stored, module.state_dict())
        return super().load_checkpoint(path, weights_only)

    def _get_process_group_backend(self) -> str:
        """Adds gloo to NCCL for offloaded parameters, which are clipped and saved on the CPU."""
        parallelism = getattr(self.lightning_module, "parallelism", None)
        both = self.root_device.type == "cuda" and getattr(parallelism, "cpu_offload", False)
        if self._process_group_backend is None and both:
            return "cpu:gloo,cuda:nccl"
        return super()._get_process_group_backend()

    def _count_shards(self) -> int:
        shards = self.world_size // self.replicas if self.shards == "auto" else self.shards
        if self.replicas * shards != self.world_size:
            raise ConfigError(
                "trainer.strategy",
                found=f"replicas {self.replicas}, shards {self.shards}, on {self.world_size} ranks",
                wanted="replicas times shards equal to the number of ranks",
                remedy="Leave shards out, or change replicas.",
            )
        return shards

    def _state_options(self) -> StateDictOptions:
        # Writing shards copies them to the host one by one, or in the background all at once.
        whole = not self._save_distributed_checkpoint
        return StateDictOptions(full_state_dict=whole, cpu_offload=whole)

    def _finish_saving(self) -> None:
        saver = self.saver
        if saver is not None and saver.pending is not None:
            temporary, target = saver.pending.temporary, saver.pending.target
            self._raise_problem(self._any_problem(saver.wait), temporary, target)

    def _raise_problem(self, problem: str | None, temporary: Path, target: Path) -> None:
        if problem is None:
            return
        if self.is_global_zero:
            shutil.rmtree(temporary, ignore_errors=True)
        raise save_error(target, problem)

    def _any_problem(self, work: Callable[[], object], *, only_first: bool = False) -> str | None:
        """Works on all ranks, or only the first; returns on all ranks the first problem of any."""
        problem = None
        try:
            if self.is_global_zero or not only_first:
                work()
        except (OSError, RuntimeError, CheckpointException) as error:
            problem = reason(error)
        problems: list[str | None] = [None] * self.world_size
        torch.distributed.all_gather_object(problems, problem)
        return next((found for found in problems if found), None)


def device_mesh(strategy: Strategy) -> DeviceMesh | None:
    """Returns the mesh of a strategy that shards the network, None for other strategies."""
    return strategy.device_mesh if isinstance(strategy, ModelParallelStrategy) else None
