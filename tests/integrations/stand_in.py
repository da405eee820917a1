"""A small stand-in for lmms-eval: what our model uses of it."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest


class Lmms:
    """The base class of models."""

    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.task_dict: dict[str, Any] = {}

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def world_size(self) -> int:
        return self._world_size


@dataclass
class ModelManifest:
    model_id: str
    chat_class_path: str


@dataclass
class Instance:
    """A request."""

    arguments: tuple[Any, ...]

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments


@contextmanager
def installed() -> Iterator[type[Any]]:
    """Puts the stand-in in place of the package; gives our model's class."""
    contents = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }
    name = "mathcanvas_lightning.integrations.lmms_model"
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, name, raising=False)
        for path, values in contents.items():
            module = ModuleType(path)
            vars(module).update(values)
            patch.setitem(sys.modules, path, module)
        from mathcanvas_lightning.integrations.lmms_model import LmmsModel

        yield LmmsModel
        sys.modules.pop(name, None)


def messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation of a document: its pictures, then its text."""
    pictures = [{"type": "image", "url": one} for one in doc.get("images", ())]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": doc["text"]}]}]


def requests(
    model: Any, task: str, docs: Sequence[dict[str, Any]], **options: Any
) -> list[Instance]:
    """A request for each document of a task."""
    model.task_dict[task] = {"test": docs}
    return [Instance(("", messages, options, n, task, "test")) for n in range(len(docs))]
