"""Leaves the process group of torch.distributed before the interpreter exits."""

import atexit
import contextlib
import gc
import sys
from datetime import timedelta

BARRIER_TIMEOUT = timedelta(seconds=3)
"""How long a rank waits at exit for the others, in case one of them has failed."""


def leave_process_group_at_exit() -> None:
    """Destroys the process group, if there is one, when the interpreter exits.

    Lightning does this only for NCCL. A gloo thread that still works on a collective while the
    interpreter is finalized can abort the process. So ranks first wait for each other, and for
    their pending collectives.

    The group stays usable until then: checkpoints may be saved and weights gathered after a fit.
    """
    atexit.unregister(_leave)
    atexit.register(_leave)


def _leave() -> None:
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized():
        return
    failed = hasattr(sys, "last_value")  # an uncaught exception: the other ranks may never come
    world = distributed.group.WORLD
    if world is not None and distributed.get_backend() == "gloo" and not failed:
        options = distributed.BarrierOptions()
        options.timeout = BARRIER_TIMEOUT
        with contextlib.suppress(RuntimeError):
            world.barrier(options).wait()
    distributed.destroy_process_group()
    gc.collect()  # drops references to the group, so that its threads end
