"""The contender of benchmark_generation.py in which vLLM writes the texts.

vLLM computes all its tokens, but a script replaces them afterwards, as in the other contenders. So
each text is prefilled once more than in real use: the prefix cache has the tokens that the model
chose, and not those of the script.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from mathcanvas_lightning.data.images.resize import ImageTransform
from mathcanvas_lightning.data.sequence.tokenizer import BYTE_TOKENIZER, TextTokenizer
from mathcanvas_lightning.generation.backends.vllm.backend import VLLMBackend
from mathcanvas_lightning.generation.backends.vllm.client import EngineClient
from mathcanvas_lightning.generation.backends.vllm.messages import ContextRequest, ContextResult
from mathcanvas_lightning.generation.bagel.options import BatchLimits, ImageOptions
from mathcanvas_lightning.generation.bagel.problem import InterleavedConfig, Problem
from mathcanvas_lightning.generation.bagel.rollout.reader import ProblemReader
from mathcanvas_lightning.generation.bagel.vllm.drawer import Drawer
from mathcanvas_lightning.generation.bagel.vllm.generator import EngineGenerator, Team
from mathcanvas_lightning.generation.bagel.vllm.text_engine import ContextMaker
from mathcanvas_lightning.generation.bagel.workshop import open_workshop
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.vae import LatentVAE

ACTION = "/action"


class Bench(Protocol):
    """What this contender needs of the benchmark."""

    options: Any
    model: Bagel
    vae: LatentVAE
    tokenizer: TextTokenizer
    transforms: tuple[ImageTransform, ImageTransform]
    text_ids: list[int]

    def inputs(self, number: int) -> tuple[str, Image.Image]:
        """A question and its picture."""

    def scripted(self, step: int, index: int) -> int:
        """The next token of an answer."""


class ScriptedEngine:
    """Lets vLLM write texts of a fixed length, and replaces their tokens.

    Args:
        client: The engine.
        bench: Gives the script.
    """

    def __init__(self, client: EngineClient, bench: Bench) -> None:
        self._client, self._bench = client, bench
        self._asked: dict[str, ContextRequest] = {}
        self.waited_s = 0.0
        self.num_context_tokens = self.num_cached_tokens = 0

    def submit(self, requests: Sequence[ContextRequest]) -> None:
        """Asks for texts that never end by themselves."""
        unused = self._bench.model.config.llm.vocab_size - 1
        length = len(self._bench.text_ids) + 1
        for request in requests:
            self._asked[request.uid] = request
            changes: dict[str, Any] = {"end_id": unused, "max_tokens": length}
            self._client.submit([replace(request, wants_action=False, **changes)])

    def collect(self, *, wait: bool = True) -> list[ContextResult]:
        """Takes finished texts, asks for the action after each, and takes finished actions."""
        found: list[ContextResult] = []
        started = time.perf_counter()
        while self._asked and not found:
            for result in self._client.collect(wait=wait):
                assert isinstance(result, ContextResult), result
                assert result.failure is None, result.failure
                self.num_context_tokens += result.num_context_tokens
                self.num_cached_tokens += result.num_cached_tokens
                if result.uid.endswith(ACTION):
                    found.append(self._scripted(result.uid.removesuffix(ACTION)))
                else:
                    self._ask_action(result)
            if not wait:
                break
        self.waited_s += time.perf_counter() - started
        return found

    def withdraw(self, uids: Collection[str]) -> None:
        """Not needed: the benchmark never interrupts a run."""

    def close(self) -> None:
        """The engine is used again."""

    def _ask_action(self, result: ContextResult) -> None:
        request = self._asked[result.uid]
        written = (*result.token_ids[:-1], request.end_id)
        action = replace(
            request,
            uid=result.uid + ACTION,
            context=(*request.context, written),
            max_tokens=1,
            wants_action=False,
        )
        self._client.submit([action])

    def _scripted(self, uid: str) -> ContextResult:
        del self._asked[uid]
        step, length = int(uid.split("/")[-2]), len(self._bench.text_ids)
        return ContextResult(
            uid=uid,
            token_ids=tuple(self._bench.text_ids),
            finish_reason="stop",
            action_id=self._bench.scripted(step, length + 1),
        )


class TimedDrawer(Drawer):
    """Measures the time of drawing."""

    seconds = 0.0

    def begin(self, *args: Any) -> None:
        """See Drawer."""
        started = time.perf_counter()
        super().begin(*args)
        self.seconds += time.perf_counter() - started

    def step(self) -> Any:
        """See Drawer."""
        started = time.perf_counter()
        found = super().step()
        self.seconds += time.perf_counter() - started
        return found


class VLLMSide:
    """A running engine with the weights of the benchmark.

    Args:
        bench: The benchmark.
        client: The engine.
    """

    def __init__(self, bench: Bench, client: EngineClient) -> None:
        self._bench, self._client = bench, client
        self.figures: dict[int, dict[str, float]] = {}
        """Batch size -> where the time of the last run went."""

    def answers(self, count: int, batch_size: int, config: InterleavedConfig) -> list[list[Any]]:
        """Answers of the library, with texts by vLLM."""
        bench, options = self._bench, self._bench.options
        workshop = open_workshop(
            bench.model,
            bench.vae,
            bench.tokenizer,
            num_contexts=config.drawing.num_contexts,
            limits=BatchLimits(
                max_batch_size=batch_size, max_context_tokens=options.max_context_tokens
            ),
            images=ImageOptions(
                vae_transform=bench.transforms[0], vit_transform=bench.transforms[1]
            ),
        )
        drawer, engine = TimedDrawer(workshop), ScriptedEngine(self._client, bench)
        patch = bench.model.config.latent_patch_size
        team = Team(
            engine=engine,
            drawer=drawer,
            contexts=ContextMaker(workshop.maker, bench.vae, patch),
            device=torch.device(options.device),
        )
        reader = ProblemReader(
            workshop.maker, config, trained_size=None, capacity=workshop.cache.capacity
        )
        generator = EngineGenerator(team, reader, config, batch_size=batch_size)
        problems = [Problem(uid=str(i), inputs=bench.inputs(i)) for i in range(count)]
        started = time.perf_counter()
        answers = generator.run(problems)
        total = time.perf_counter() - started
        self.figures[batch_size] = {
            "drawing": drawer.seconds / total,
            "waiting_for_vllm": engine.waited_s / total,
            "prefix_cached": engine.num_cached_tokens / engine.num_context_tokens,
        }
        return [[step.content for step in answer.steps] for answer in answers]


@contextmanager
def vllm_side(bench: Bench) -> Iterator[VLLMSide]:
    """Starts an engine with the weights of the benchmark.

    Args:
        bench: The benchmark.
    """
    options = bench.options
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        dtype = getattr(torch, options.dtype)
        bench.model.save_checkpoint(folder, dtype=dtype)
        for path in BYTE_TOKENIZER.iterdir():
            shutil.copyfile(path, folder / path.name)
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        backend = VLLMBackend(
            str(folder),
            dtype=options.dtype,
            max_model_len=options.max_context_tokens + 2,
            gpu_memory_utilization=0.45,
        )
        stack.callback(backend.close)
        backend.start()
        yield VLLMSide(bench, backend.client)
