"""Runs prompts through a backend as a predict run: with its journal, and resumed like it."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from mathcanvas_lightning.common.exits import interrupts_pass
from mathcanvas_lightning.errors import OutputError
from mathcanvas_lightning.generation.backends.base import GenerationBackend
from mathcanvas_lightning.generation.requests import Exchange, Message, Sampling
from mathcanvas_lightning.generation.run.datamodule import RecordDataModule
from mathcanvas_lightning.generation.run.module import (
    QUIET_TRAINER,
    GenerationModule,
    ResponseCallback,
)
from mathcanvas_lightning.generation.run.writer import ResponseWriter
from mathcanvas_lightning.records.pictures import Picture
from mathcanvas_lightning.records.record import Record, RecordInput

_INDEX, _TITLE, _PROMPT, _REPLY = "id", "title", "prompt", "reply"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The judge's reply to a prompt: a text or a failure."""

    text: str = ""
    failure: str | None = None
    """Why there is no text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRun:
    """A judge model, and the folder that keeps what it replied."""

    backend: GenerationBackend
    """Stays open between the runs; the caller closes it."""
    folder: Path
    """Folder of the journals."""
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """More variables for the model's chat template."""

    def ask(
        self,
        name: str,
        prompts: Sequence[str],
        sampling: Sampling,
        advance: Callable[[int], None] = lambda _: None,
    ) -> list[Reply]:
        """Asks the prompts that have no reply from an earlier run; equal ones are asked once.

        Args:
            name: Name of the run in the folder.
            prompts: Any number of prompts.
            sampling: Sampling of the replies.
            advance: Called with the number of prompts that are done.

        Returns:
            A reply for each prompt.

        Raises:
            BackendError: If the backend stops working; finished replies are kept.
            OutputError: If the folder has replies of another judge.
        """
        if not prompts:
            return []
        ids = {prompt: _id(prompt) for prompt in prompts}
        output = self.folder / f"{name}.jsonl"
        counter = _Counter(advance)
        self._predict(output, [(ids[prompt], prompt) for prompt in ids], sampling, counter)
        advance(len(prompts) - counter.num_done)
        replies = dict(_read(output))
        return [replies[ids[prompt]] for prompt in prompts]

    def _predict(
        self,
        output: Path,
        prompts: Sequence[tuple[str, str]],
        sampling: Sampling,
        counter: "_Counter",
    ) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        source = RecordInput(
            path=str(output.with_suffix("")),
            output=str(output),
            index_field=_INDEX,
            query_field=_TITLE,
            response_field=_REPLY,
            reader=lambda _: [
                {_INDEX: number, _TITLE: output.stem, _PROMPT: prompt} for number, prompt in prompts
            ],
        )
        data = RecordDataModule(
            [source], prompt=_Verbatim(), template_options=dict(self.template_options)
        )
        callbacks: list[Callback] = [ResponseWriter(), counter]
        with _quiet():
            trainer = Trainer(accelerator="cpu", callbacks=callbacks, **QUIET_TRAINER)
        module = GenerationModule(_KeptOpen(self.backend), sampling)
        try:
            with _quiet(), interrupts_pass():
                trainer.predict(module, datamodule=data, return_predictions=False)
        except OutputError as error:
            if "rerun" not in error.remedy:
                raise
            raise OutputError(
                error.place,
                found=error.found,
                wanted=error.wanted,
                remedy="Write the scores of another judge to another --output, or delete the "
                "folder to ask everything again.",
            ) from None


class _Verbatim:
    """Builds a conversation from the prompt of a record; marks in it are text."""

    fields = frozenset({_PROMPT})

    def __call__(self, record: Record, pictures: Sequence[Picture]) -> tuple[Message, ...]:  # noqa: ARG002
        return (Message(role="user", parts=(record.values[_PROMPT],)),)


class _Counter(ResponseCallback):
    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self.num_done = 0

    def on_responses(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: GenerationModule,  # noqa: ARG002
        exchanges: Sequence[Exchange],
    ) -> None:
        self.num_done += len(exchanges)
        self._advance(len(exchanges))


class _KeptOpen:
    """A backend that a predict run does not close, because the next one needs it."""

    def __init__(self, backend: GenerationBackend) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def close(self) -> None:
        """Does nothing."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides what Lightning says about devices and workers, which a judge does not use."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not have many workers")
            warnings.filterwarnings("ignore", ".*LeafSpec")
            yield
    finally:
        logger.setLevel(level)


def _id(prompt: str) -> str:
    return blake2b(prompt.encode(errors="surrogatepass"), digest_size=12).hexdigest()


def _read(output: Path) -> Iterator[tuple[str, Reply]]:
    with output.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            failure = record.get(f"{_REPLY}_error")
            yield record[_INDEX], Reply(text=record[_REPLY] or "", failure=failure)
