"""Lightning strategy for FSDP2 and HSDP, and checkpoints that are written atomically."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule

from mathcanvas_lightning.common.atomic import TEMPORARY_PREFIX, written_whole
from mathcanvas_lightning.common.distributed import leave_process_group_at_exit
from mathcanvas_lightning.errors import ConfigError, OutputError
from mathcanvas_lightning.training.checkpoint.resume import (
    check_same_model,
    require_complete,
    stored_shapes,
)

REPLACED_PREFIX = ".old-"
SUFFIX = ".ckpt"


class ShardedStrategy(ModelParallelStrategy):
    """Shards the network over ranks, with one or more replicas.

    Args:
        replicas: Number of replicas of the sharded network: 1 for FSDP, one per machine for HSDP.
        shards: Number of ranks that share one replica; by default all ranks divided by replicas.
        kwargs: Arguments of `ModelParallelStrategy`.
    """

    def __init__(
        self, replicas: int = 1, shards: int | Literal["auto"] = "auto", **kwargs: Any
    ) -> None:
        super().__init__(data_parallel_size="auto", tensor_parallel_size=1, **kwargs)
        self.replicas, self.shards = replicas, shards

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
        target = Path(self.broadcast(str(filepath)))
        temporary = target.with_name(TEMPORARY_PREFIX + target.name)
        problem = self._any_problem(lambda: remove_temporaries(target.parent), only_first=True)
        if problem is None:
            save = super().save_checkpoint
            problem = self._any_problem(lambda: save(checkpoint, temporary, storage_options))
        if problem is None:
            problem = self._any_problem(lambda: move_over(temporary, target), only_first=True)
        if problem is not None:
            if self.is_global_zero:
                shutil.rmtree(temporary, ignore_errors=True)
            raise _save_error(target, problem)

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
        require_complete(path)
        assert self.lightning_module is not None
        check_same_model(path, stored_shapes(path), self.lightning_module.state_dict())
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

    def _any_problem(self, work: Callable[[], object], *, only_first: bool = False) -> str | None:
        """Works on all ranks, or only the first; returns on all ranks the first problem of any."""
        problem = None
        try:
            if self.is_global_zero or not only_first:
                work()
        except (OSError, RuntimeError, CheckpointException) as error:
            problem = _reason(error)
        problems: list[str | None] = [None] * self.world_size
        torch.distributed.all_gather_object(problems, problem)
        return next((found for found in problems if found), None)


def device_mesh(strategy: Strategy) -> DeviceMesh | None:
    """Returns the mesh of a strategy that shards the network, None for other strategies."""
    return strategy.device_mesh if isinstance(strategy, ModelParallelStrategy) else None


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints of a single device atomically.

    `TorchCheckpointIO` first copies the checkpoint in memory. Its temporary file may be on another
    file system, from where it has to be copied.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Writes a file.

        Args:
            checkpoint: The checkpoint.
            path: Path of the file.
            storage_options: See `TorchCheckpointIO`; not used for local files.

        Raises:
            OutputError: If it can't be written.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            remove_temporaries(target.parent)
            with written_whole(target) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:
            raise _save_error(target, _reason(error)) from None


def save_atomically(strategy: Strategy) -> None:
    """Sets `AtomicCheckpointIO` on a strategy that has the default checkpoint plugin."""
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = AtomicCheckpointIO()


def move_over(temporary: Path, target: Path) -> None:
    """Replaces a folder by another one; at any moment the old or the new one exists."""
    old = target.with_name(REPLACED_PREFIX + target.name)
    if target.exists():
        _remove(old)
        target.rename(old)
    temporary.rename(target)
    _remove(old)


def remove_temporaries(folder: Path) -> None:
    """Removes the incomplete checkpoints of a run that was killed while saving."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*{SUFFIX}"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    """Describes the first cause of an error: `CheckpointException` wraps those of other ranks."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return f"{type(error).__name__}: {error}"


def _save_error(target: Path, problem: str) -> OutputError:
    return OutputError(
        str(target),
        found=f"a checkpoint that could not be written ({problem})",
        wanted="enough disk space and permission to write",
        remedy="Free some space and run the same command again: it resumes from the last complete "
        "checkpoint.",
    )
