"""The Lightning strategy: FSDP2 and HSDP over a replicate x shard mesh."""

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
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from mathcanvas_lightning.common.atomic import TEMPORARY_PREFIX, written_whole
from mathcanvas_lightning.errors import ConfigError, OutputError
from mathcanvas_lightning.training.checkpoint.resume import (
    check_same_model,
    require_whole,
    stored_shapes,
)

REPLACED_PREFIX = ".old-"
SUFFIX = ".ckpt"


class ShardedStrategy(ModelParallelStrategy):
    """Shards the network over ranks, with as many replicas of it as wanted.

    Args:
        replicas: Copies of the sharded network; 1 is FSDP, one a machine is HSDP.
        shards: Ranks that share one copy; all that are left by default.
        kwargs: For `ModelParallelStrategy`.
    """

    def __init__(
        self, replicas: int = 1, shards: int | Literal["auto"] = "auto", **kwargs: Any
    ) -> None:
        super().__init__(data_parallel_size="auto", tensor_parallel_size=1, **kwargs)
        self.replicas, self.shards = replicas, shards

    def setup_environment(self) -> None:
        """Starts the process group and lays the mesh.

        Raises:
            ConfigError: If replicas and shards don't make up the ranks.
        """
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
        """Sets up model and optimizers; every parameter has optimizer state from the start.

        A parameter without it, because nothing used it yet, would make a checkpoint that can't be
        resumed from.
        """
        super().setup(trainer)
        assert self.model is not None
        for optimizer in self.optimizers:
            get_optimizer_state_dict(self.model, optimizer)  # takes a step of size 0
            for state in optimizer.state.values():
                if "step" in state:
                    state["step"].zero_()

    def model_to_device(self) -> None:
        """Moves the network, unless its shards are kept in host memory."""
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
        """Ranks as a sampler would count them; the data module has its own plan."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None
    ) -> None:
        """Writes a checkpoint that appears whole or not at all.

        Args:
            checkpoint: See `ModelParallelStrategy.save_checkpoint`.
            filepath: Where it shall stand.
            storage_options: Passed on.

        Raises:
            OutputError: If a rank can't write its part; all ranks raise it.
        """
        target = Path(self.broadcast(str(filepath)))
        temporary = target.with_name(TEMPORARY_PREFIX + target.name)
        problem = self._any_problem(lambda: remove_temporaries(target.parent), only_first=True)
        if problem is None:
            save = super().save_checkpoint
            problem = self._any_problem(lambda: save(checkpoint, temporary, storage_options))
        if problem is None:
            problem = self._any_problem(lambda: replace_whole(temporary, target), only_first=True)
        if problem is not None:
            if self.is_global_zero:
                shutil.rmtree(temporary, ignore_errors=True)
            raise _unwritable(target, problem)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads this rank's part of a checkpoint that any number of ranks wrote.

        Args:
            checkpoint_path: The checkpoint.
            weights_only: Passed on.

        Returns:
            All of it but the tensors.

        Raises:
            DataError: If it isn't whole.
            ConfigError: If it is of another network.
        """
        path = Path(self.broadcast(str(checkpoint_path)))
        require_whole(path)
        assert self.lightning_module is not None
        check_same_model(path, stored_shapes(path), self.lightning_module.state_dict())
        return super().load_checkpoint(path, weights_only)

    def _get_process_group_backend(self) -> str:
        """Two, where parameters stay in host memory: they are clipped and saved there."""
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
                wanted="replicas times shards ranks",
                remedy="Leave shards out, or change replicas.",
            )
        return shards

    def _any_problem(self, work: Callable[[], object], *, only_first: bool = False) -> str | None:
        """Works on all ranks, or on the first; says what went wrong on any, on all of them."""
        problem = None
        try:
            if self.is_global_zero or not only_first:
                work()
        except (OSError, RuntimeError, CheckpointException) as error:
            problem = _reason(error)
        problems: list[str | None] = [None] * self.world_size
        torch.distributed.all_gather_object(problems, problem)
        return next((found for found in problems if found), None)


class WholeFiles(TorchCheckpointIO):
    """Checkpoints of a single device: each appears whole or not at all.

    Lightning's own makes a copy in memory first, and moves it over from another file system.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Writes a file.

        Args:
            checkpoint: What to write.
            path: Where it shall stand.
            storage_options: Not used for local files.

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
            raise _unwritable(target, _reason(error)) from None


def save_whole_files(strategy: Strategy) -> None:
    """Has a strategy write its files with `WholeFiles`, unless it was given another way."""
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = WholeFiles()


def replace_whole(temporary: Path, target: Path) -> None:
    """Puts a folder in another's place, so that at any moment one of them is there."""
    old = target.with_name(REPLACED_PREFIX + target.name)
    if target.exists():
        _remove(old)
        target.rename(old)
    temporary.rename(target)
    _remove(old)


def remove_temporaries(folder: Path) -> None:
    """Removes what a run left that was killed while it saved."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*{SUFFIX}"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    """The first cause; ranks wrap each other's errors."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return f"{type(error).__name__}: {error}"


def _unwritable(target: Path, problem: str) -> OutputError:
    return OutputError(
        str(target),
        found=f"a checkpoint that can't be written ({problem})",
        wanted="space and permission to write it",
        remedy="Make room and run the same command again: it goes on from the last whole one.",
    )
