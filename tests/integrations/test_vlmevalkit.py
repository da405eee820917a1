"""The class for VLMEvalKit in the guide, with a stand-in of its base class."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mathcanvas_lightning import DrawingConfig
from tests.conftest import ROOT, png
from tests.generation.reasoning import TRANSFORMS, drawing_checkpoint

GUIDE = ROOT / "tools" / "README.md"


class BaseModel:
    """What VLMEvalKit's base class does with a message."""

    INTERLEAVE = False

    def generate(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        assert self.INTERLEAVE
        answer = self.generate_inner(message, dataset)
        assert isinstance(answer, str)
        return answer

    def generate_inner(self, message: Any, dataset: str | None = None) -> str:
        raise NotImplementedError


def test_the_class_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(
        r"```python\n((?:(?!```).)*class MathCanvas\(BaseModel\).*?)```",
        GUIDE.read_text(),
        re.DOTALL,
    )
    base = ModuleType("vlmeval.vlm.base")
    vars(base)["BaseModel"] = BaseModel
    for name in ("vlmeval", "vlmeval.vlm"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "vlmeval.vlm.base", base)
    names: dict[str, Any] = {}
    exec(code, names)
    drawing_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "a.png").write_bytes(png(48, 48))
    model = names["MathCanvas"](
        str(tmp_path / "checkpoint"),
        max_tokens=12,
        drawing=DrawingConfig(num_timesteps=2, text_scale=1.0),
        max_steps=2,
        max_context_tokens=512,
        **TRANSFORMS,
    )
    message = [
        {"type": "image", "value": str(tmp_path / "a.png")},
        {"type": "text", "value": "What is it?"},
    ]
    first = model.generate(message, "MathVista_MINI")
    assert first == model.generate(message)
    assert first
