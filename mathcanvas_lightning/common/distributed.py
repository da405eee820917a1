"""Leaves the process group of torch.distributed before the interpreter exits."""

import atexit
import gc


def leave_process_group_at_exit() -> None:
    """Destroys the process group, if there is one, when the interpreter exits.

    Lightning does this only for NCCL. The threads of a gloo group end when the last reference to it
    is dropped. If that happens while the interpreter is finalized, they can abort the process.

    The group stays usable until then: checkpoints may be saved and weights gathered after a fit.
    """
    atexit.unregister(_leave)
    atexit.register(_leave)


def _leave() -> None:
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        gc.collect()  # meshes and sharded modules hold references to the group, in cycles
