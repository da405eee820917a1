"""A profiler of some steps, as a trace file."""

import logging
from typing import Any

from lightning.pytorch.profilers import PyTorchProfiler
from torch.profiler import schedule

from mathcanvas_lightning.errors import ConfigError

log = logging.getLogger(__name__)


class StepProfiler(PyTorchProfiler):
    """Writes a trace of some micro-batches, for chrome://tracing or Perfetto.

    Set it as `trainer.profiler`.

    Args:
        dirpath: Folder of the trace; by default the log folder of the run.
        filename: Start of the file's name.
        wait: Micro-batches before the first trace, such as those that compile.
        warmup: Micro-batches that are profiled and discarded.
        active: Micro-batches in a trace.
        repeat: Number of traces.
        memory: Record the allocated memory, too.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        filename: str = "trace",
        *,
        wait: int = 10,
        warmup: int = 2,
        active: int = 3,
        repeat: int = 1,
        memory: bool = False,
    ) -> None:
        steps = schedule(
            wait=max(0, wait), warmup=max(0, warmup), active=max(1, active), repeat=max(1, repeat)
        )
        options: dict[str, Any] = {"schedule": steps, "profile_memory": memory}
        super().__init__(dirpath, filename, **options)  # first, because __del__ needs it
        if min(wait, warmup) < 0 or min(active, repeat) < 1:
            raise ConfigError(
                "StepProfiler",
                found=f"wait {wait}, warmup {warmup}, active {active}, repeat {repeat}",
                wanted="no negative number, and 1 or more of active and repeat",
                remedy="Leave them out to use the defaults.",
            )

    def _cache_functions_events(self) -> None:
        try:
            super()._cache_functions_events()
        except AssertionError:  # torch has no events outside of a trace
            log.warning("the run has ended outside of a trace: no times of operations to show")
