"""Interleaved generation with two networks at work: an engine writes while the drawer draws.

A problem writes or draws, never both, so with several problems both sides have work. The engine
gets the whole context with each text; its prefix cache has computed all but the new items before.
"""

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from math import isnan

import torch

from mathcanvas_lightning.generation.backends.base import BackendError
from mathcanvas_lightning.generation.backends.vllm.messages import ContextResult
from mathcanvas_lightning.generation.bagel.problem import Answer, InterleavedConfig
from mathcanvas_lightning.generation.bagel.rollout.reader import ProblemReader
from mathcanvas_lightning.generation.bagel.rollout.solver import ProblemSolver
from mathcanvas_lightning.generation.bagel.rollout.state import Rollout
from mathcanvas_lightning.generation.bagel.vllm.drawer import Drawer
from mathcanvas_lightning.generation.bagel.vllm.text_engine import (
    ContextMaker,
    TextEngine,
    text_request,
)
from mathcanvas_lightning.generation.bagel.workshop import own_precision
from mathcanvas_lightning.vllm_bagel.blocks import ContextPart


@dataclass(slots=True, kw_only=True)
class _Run:
    """A problem in progress."""

    rollout: Rollout
    context: list[ContextPart] = field(default_factory=list)
    """Parts of the items, as the engine gets them."""
    num_made: int = 0
    """Number of items whose parts are in the context."""
    request: str | None = None
    """Uid of the request that the engine works on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """The two sides of the generation."""

    engine: TextEngine
    drawer: Drawer | None
    """Draws for all problems; None if no problem draws."""
    contexts: ContextMaker
    device: torch.device
    """Device of the drawer."""


class EngineGenerator(ProblemSolver):
    """Answers problems with texts of an engine and drawings of the native steps.

    Args:
        team: The engine and the drawer; the engine is closed with this object.
        reader: Reads problems.
        config: Settings for problems that have no configuration.
        batch_size: Maximum number of problems in progress.
    """

    def __init__(
        self, team: Team, reader: ProblemReader, config: InterleavedConfig, *, batch_size: int
    ) -> None:
        super().__init__(reader, config, batch_size=batch_size)
        self.team = team
        self._running: dict[str, _Run] = {}
        self._serials = count()

    def close(self) -> None:
        """Stops the engine."""
        self.team.engine.close()

    @torch.inference_mode()
    def _advance(self) -> list[Answer]:
        while len(self._running) < self.batch_size:
            rollout = self._queue.next(self._running)
            if rollout is None:
                break
            self._running[rollout.problem.uid] = _Run(rollout=rollout)
        with own_precision(self.team.device):
            is_drawing = self._draw()
            self._ask()
        answers = self._collect()
        for result in self.team.engine.collect(wait=not is_drawing and not answers):
            self._take(result)
        return answers + self._collect()

    def _draw(self) -> bool:
        """Advances the drawings by one step; returns whether any is in progress now."""
        drawer = self.team.drawer
        if drawer is None:
            return False
        rollouts = [run.rollout for run in self._running.values()]
        drawer.begin([rollout for rollout in rollouts if rollout.needs == "drawing"])
        for rollout, picture in drawer.step():
            if picture is None:
                rollout.stop("not_finite")
            else:
                rollout.take_picture(picture)
        return drawer.is_busy

    def _ask(self) -> None:
        """Sends the contexts of all problems that need a text to the engine."""
        runs = [
            run
            for run in self._running.values()
            if run.rollout.needs == "text" and run.request is None
        ]
        new = [item for run in runs for item in run.rollout.items[run.num_made :]]
        parts = iter(self.team.contexts.parts(new))
        special = self.team.contexts.maker.tokenizer.special
        requests = []
        for run in runs:
            for _ in run.rollout.items[run.num_made :]:
                run.context += next(parts)
            run.num_made = len(run.rollout.items)
            request = text_request(run.rollout, run.context, special, next(self._serials))
            run.request = request.uid
            requests.append(request)
        if requests:
            self.team.engine.submit(requests)

    def _take(self, result: ContextResult) -> None:
        run = next((run for run in self._running.values() if run.request == result.uid), None)
        if run is None:  # of a problem that was withdrawn
            return
        run.request = None
        if result.failure is not None:
            run.rollout.stop("failed", result.failure)
        elif any(isnan(value) for value in result.logprobs):
            run.rollout.stop("not_finite")
        else:
            run.rollout.take_text(
                result.token_ids,
                is_ended=result.finish_reason == "stop",
                action_id=result.action_id,
            )

    def _collect(self) -> list[Answer]:
        ended = [uid for uid, run in self._running.items() if run.rollout.needs is None]
        self._release(ended)
        return [self._running.pop(uid).rollout.answer() for uid in ended]

    def _in_progress(self) -> list[Rollout]:
        return [run.rollout for run in self._running.values()]

    def _drop(self, uids: Collection[str]) -> None:
        runs = [run for uid in uids if (run := self._running.pop(uid, None)) is not None]
        self._release(uids)
        asked = [run.request for run in runs if run.request is not None]
        if asked:
            with suppress(BackendError):  # the engine has ended: there is nothing to drop
                self.team.engine.withdraw(asked)

    def _release(self, uids: Collection[str]) -> None:
        if self.team.drawer is not None:
            self.team.drawer.release(uids)
