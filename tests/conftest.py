"""What several tests need: generated data, and commands run as a user runs them.

The process that only distributes the tests imports this file, so torch is imported elsewhere.
"""

import atexit
import contextlib
import functools
import gc
import json
import logging
import multiprocessing
import os
import random
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import metadata
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from tests.warm import WarmPython, warm_python, write_warm_command

ROOT = Path(__file__).parent.parent
RunTool = Callable[..., subprocess.CompletedProcess[str]]
TRAINER_WARNINGS = (
    "ignore:.*does not have many workers",
    "ignore:.*LeafSpec",
    "ignore:The number of training batches",
    "ignore:.*exists and is not empty",
)
"""Filters for what Lightning warns of in short runs on a processor."""

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
"""Options of a Trainer that writes and shows nothing."""

LAUNCH = (
    *("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "RANK", "WORLD_SIZE"),
    *("PL_GLOBAL_SEED", "PL_SEED_WORKERS"),
)
"""Variables that Lightning sets in the process of a run."""


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of a job in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else processes would inherit it
os.environ["COLUMNS"] = "80"  # of every terminal that a test has, and its processes
os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(name, None)
metadata.entry_points = functools.cache(metadata.entry_points)  # each Trainer reads all packages
os.fsync = lambda _: None  # type: ignore[assignment]  # tests kill processes, not machines
socketserver.StreamRequestHandler.disable_nagle_algorithm = True  # else answers wait for 40 ms
multiprocessing.get_start_method()  # fixes it: a `fit` in this process would start a server
steady = settings(
    derandomize=True,  # a run is as the last one
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("steady", steady)
settings.register_profile("fast", steady, max_examples=12)  # for --hypothesis-profile
settings.register_profile("random", steady, derandomize=False)
settings.load_profile("steady")


def examples(count: int) -> int:
    """Number of examples of a property test, fewer in the profile `fast`."""
    return max(5, count * settings.default.max_examples // 100)


def golden_folder() -> Path:
    """The folder of reference outputs."""
    return Path(os.environ.get("MATHCANVAS_GOLDEN", ROOT / "tests" / "golden"))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collections of garbage are rare, and skip the million objects that imports made."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # else some modules report them as leaks
        gc.set_threshold(10_000, 20, 50)
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a file run in one process, as they share fixtures; long files start first.

    So no process ends alone with a long file. Of files with the same time limit, those with many
    slow tests take longest.
    """
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(_file(item), []).append(item)
    order = {}
    for name, tests in files.items():
        slow = [item for item in tests if item.get_closest_marker("slow")]
        order[name] = (-max(map(_time_limit, tests)), -len(slow))
        for item in tests:
            if item.get_closest_marker("xdist_group") is None:
                item.add_marker(pytest.mark.xdist_group(name))
    items.sort(key=lambda item: order[_file(item)])


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def _time_limit(item: pytest.Item) -> float:
    mark = item.get_closest_marker("timeout")
    return float(item.config.getini("timeout") if mark is None else mark.args[0])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Iterator[Any]:
    """The failure of a test shows what a process that failed or hung has written last."""
    error = call.excinfo.value if call.excinfo else None
    if isinstance(error, subprocess.CalledProcessError | subprocess.TimeoutExpired):
        text = error.stderr or error.stdout or ""
        error.add_note(
            text[-3000:] if isinstance(text, str) else text[-3000:].decode(errors="replace")
        )
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> None:
    """Seeds before a fixture that several tests share, whichever tests have run before."""
    if fixturedef.scope != "function":
        _seed_all()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Seeds before a test."""
    _seed_all()


def _seed_all() -> None:
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _end_run() -> Iterator[None]:
    """Ends what a run in this process left.

    The next run would listen at the same port, and use the same seed. After an interrupted run,
    Ctrl-C is ignored, also in the processes that are started later. A command sets what is logged,
    such as only warnings with `--quiet`.
    """
    package = logging.getLogger("mathcanvas_lightning")
    level, handlers = package.level, list(package.handlers)
    yield
    package.setLevel(level)
    package.handlers[:] = handlers
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in LAUNCH:
        os.environ.pop(name, None)
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference outputs."""
    return golden_folder()


@pytest.fixture
def no_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work takes no time, so that a command with the default number of workers starts none."""
    from mathcanvas_lightning.common import parallel

    monkeypatch.setattr(parallel, "time", SimpleNamespace(monotonic=lambda: 0.0))
    monkeypatch.setattr(parallel, "ProcessPoolExecutor", None)


@pytest.fixture(scope="session")
def puzzles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated BlockMoving set of 40 tasks, some of them wrong; read only."""
    from mathcanvas_lightning import generate_blockmoving

    folder = tmp_path_factory.mktemp("puzzles")
    generate_blockmoving(
        str(folder),
        num_tasks=40,
        seed=1,
        wrong_fraction=0.2,
        unrendered_fraction=0.1,
        view_px=64,
        num_workers=0,
    )
    return folder


@pytest.fixture(scope="session")
def warm() -> Iterator[WarmPython]:
    """Starts Python processes that have imported everything already."""
    with warm_python(sys.executable, ROOT) as found:
        yield found


@pytest.fixture(scope="session")
def warm_command(warm: WarmPython, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A command like Python's, for processes that start others: those start warm, too."""
    path = tmp_path_factory.mktemp("python") / "python"
    write_warm_command(path, Path(sys.executable), ROOT, warm)
    return path


@pytest.fixture(scope="session")
def nursery() -> Iterator[Any]:
    """Starts Python processes that have imported vLLM already; see tests/warm_children.py."""
    from tests.warm_children import ENGINE_MODULES, ENGINE_VARIABLES, start_nursery

    with start_nursery(ENGINE_MODULES, ENGINE_VARIABLES) as found:
        yield found


@pytest.fixture
def run_tool(warm: WarmPython) -> RunTool:
    """Runs a file of tools/ in a separate process."""

    def run(name: str, *args: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        return warm.run([ROOT / "tools" / name, *args], **options)

    return run


def run_python(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a new Python process to its end."""
    defaults = {"cwd": ROOT, "capture_output": True, "text": True, "check": False}
    return subprocess.run([sys.executable, *map(str, words)], **{**defaults, **options})


@pytest.fixture
def other_thread() -> Iterator[None]:
    """A thread to which the system can give the signals of this process."""
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    yield
    ended.set()
    thread.join()


def child_processes() -> list[psutil.Process]:
    """Processes below this one, but for the servers that fork others."""
    helpers = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "tests/warm")
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            words = " ".join(process.cmdline())
            names = (*helpers, "evaluation.comparison.comparer")  # tests/evaluation/conftest.py
            is_helper = process.ppid() == os.getpid() and any(name in words for name in names)
            if not is_helper and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def lasting_processes() -> list[psutil.Process]:
    """Processes below this one that have not ended a minute later; killed ones need a moment."""
    alive: list[psutil.Process] = psutil.wait_procs(child_processes(), timeout=60)[1]
    return alive


def real_problems() -> Path:
    """A folder with real MathVision problems; skips where none is at hand."""
    folder = Path(
        os.environ.get("MATHCANVAS_MATHVISION", ROOT.parent / "shared/data/mathvision_mini")
    )
    if not (folder / "test.jsonl").is_file():
        pytest.skip(f"no MathVision problems in {folder}; name theirs in MATHCANVAS_MATHVISION")
    return folder


def png(width: int = 8, height: int = 6, colour: str = "red", mode: str = "RGB") -> bytes:
    """A small picture."""
    return encoded("PNG", width, height, colour, mode)


@functools.cache
def encoded(
    kind: str, width: int = 8, height: int = 6, colour: str = "red", mode: str = "RGB"
) -> bytes:
    """A small picture in any format."""
    buffer = BytesIO()
    Image.new(mode, (width, height), colour).save(buffer, kind)
    return buffer.getvalue()


def write_json(path: Path, records: object) -> Path:
    """Writes JSON and gives its path back."""
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file."""
    lines = path.read_text(encoding="utf-8").split("\n")  # texts may hold other line separators
    return [json.loads(line) for line in lines if line]


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, by its relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refuse_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a test fail if the network of a run is made."""
    from mathcanvas_lightning.training.module import BagelModule

    def refuse(self: BagelModule) -> None:
        raise AssertionError("the network was loaded")

    monkeypatch.setattr(BagelModule, "configure_model", refuse)
