"""The Lightning strategy: FSDP2 and HSDP over a replicate x shard mesh."""

import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import init_device_mesh

from mathcanvas_lightning.errors import ConfigError

TEMPORARY_PREFIX = ".tmp-"
REPLACED_PREFIX = ".old-"


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
        self._data_parallel_size = self.world_size
        super().setup_environment()
        shards = self.world_size // self.replicas if self.shards == "auto" else self.shards
        if self.replicas * shards != self.world_size:
            raise ConfigError(
                "trainer.strategy",
                found=f"replicas {self.replicas}, shards {self.shards}, on {self.world_size} ranks",
                wanted="replicas times shards ranks",
                remedy="Leave shards out, or change replicas.",
            )
        mesh = init_device_mesh(
            self.root_device.type, (self.replicas, shards), mesh_dim_names=("replicate", "shard")
        )
        self._device_mesh = mesh
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = mesh

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
        """
        target = Path(self.broadcast(str(filepath)))
        temporary = target.with_name(TEMPORARY_PREFIX + target.name)
        if self.is_global_zero:
            _remove(temporary)
        self.barrier("temporary")
        super().save_checkpoint(checkpoint, temporary, storage_options)
        self.barrier("written")
        if self.is_global_zero:
            replace_whole(temporary, target)
        self.barrier("renamed")

    def teardown(self) -> None:
        """Moves nothing back: shards stay where they are."""
        super().teardown()
        torch.accelerator.empty_cache() if torch.accelerator.is_available() else None


def replace_whole(temporary: Path, target: Path) -> None:
    """Puts a file or folder in another's place, so that at any moment one of them is there."""
    old = target.with_name(REPLACED_PREFIX + target.name)
    _remove(old)
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
