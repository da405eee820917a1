"""Runs the parts of a conversion as tasks of a Ray Data job."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mathcanvas_lightning.conversion.output.folder import OutputFolder
from mathcanvas_lightning.conversion.parts.part import Part, find_markers
from mathcanvas_lightning.errors import ConfigError, MathCanvasError, WorkerError

LOCAL = "local"
PARTS_PER_CORE = 4
"""More parts than cores: so no core waits long for the last one."""


def ray_parts(work: Callable[[str], None], folder: OutputFolder, cluster: str) -> None:
    """Runs all parts; those of an interrupted job are resumed.

    Args:
        work: Converts the part of this name; a task calls it, on any machine of the cluster.
        folder: The output folder, which all machines reach.
        cluster: Address of the cluster; "local" starts one here, or uses the running one.

    Raises:
        ConfigError: If Ray is not installed, or the cluster does not answer.
        WorkerError: If a part fails, or its process is killed.
    """
    ray = _connected(cluster)
    num_parts = max(PARTS_PER_CORE * int(ray.cluster_resources().get("CPU", 1)), 1)
    for part, name in find_markers(folder).items():  # of a job with another number of parts
        if part.of != num_parts:
            folder.remove(name)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    numbers = ray.data.range(num_parts, override_num_blocks=num_parts)
    try:
        rows = numbers.map(partial(_run_task, work, num_parts)).take_all()
    except ray.exceptions.RayError as error:
        raise _failed("a task that ended early", str(error)) from None
    failures = [row for row in rows if row["error"]]
    if failures:
        first = min(failures, key=lambda row: int(row["part"].partition("/")[0]))
        raise _failed(f"part {first['part']}, {first['kind']}", first["error"])


def _run_task(
    work: Callable[[str], None], num_parts: int, row: Mapping[str, Any]
) -> dict[str, str]:
    """The part that a row numbers, and its error, because Ray would hide the error's type."""
    part = str(Part(int(row["id"]) + 1, num_parts))
    try:
        work(part)
    except MathCanvasError as error:
        return {"part": part, "error": str(error), "kind": type(error).__name__}
    return {"part": part, "error": "", "kind": ""}


def _connected(cluster: str) -> Any:
    """The module ray, connected to a cluster."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError(
            "--ray",
            found=f"no Ray to import ({error})",
            wanted="Ray with Ray Data",
            remedy="Install it: pip install 'mathcanvas-lightning[ray]'.",
        ) from None
    if not ray.is_initialized():
        address = None if cluster == LOCAL else cluster
        try:
            ray.init(address=address, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"--ray {cluster}",
                found=f"no cluster ({' '.join(str(error).split())[:200]})",
                wanted="local, or the address of a running Ray cluster",
                remedy="Start it, or use --part i/n in your own jobs.",
            ) from None
    return ray


def _failed(place: str, found: str) -> WorkerError:
    return WorkerError(
        f"Ray job: {place}",
        found=" ".join(found.split())[:1000],
        wanted="all parts finished",
        remedy="Finished blocks are kept: correct it, and run the same command again.",
    )
