"""Fingerprints of models: equal for equal content, another one for every change."""

import itertools
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mathcanvas_lightning.generation.backends import identity
from mathcanvas_lightning.generation.backends.identity import fingerprint

SECONDS = itertools.count(1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a configuration, a tokenizer and weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("A model.")
    save(folder, [0.0] * 3)
    return folder


def save(folder: Path, values: list[float]) -> None:
    tensors = {str(n): torch.full((5000,), value) for n, value in enumerate(values)}
    save_file(tensors, folder / "model.safetensors")
    tick(folder / "model.safetensors")


def tick(path: Path) -> None:
    """Gives a file another time; some systems count in hundredths of a second."""
    second = next(SECONDS)
    os.utime(path, (second, second))


@pytest.mark.parametrize("whole_bytes", [2**20, 100])
def test_every_change_of_a_model_is_noticed(
    model: Path, whole_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "WHOLE_BYTES", whole_bytes)
    first = fingerprint(str(model))
    found = [first]
    for n in range(3):  # same names, sizes and headers, one other tensor
        save(model, [float(n == m) for m in range(3)])
        found.append(fingerprint(str(model)))
    save(model, [0.0] * 3)
    assert fingerprint(str(model)) == first
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        (model / name).write_text('{"a": 1}')
        found.append(fingerprint(str(model)))
    assert len(set(found)) == len(found)
    assert None not in found


def test_copies_and_notes_do_not_matter(model: Path, tmp_path: Path) -> None:
    first = fingerprint(str(model))
    shutil.copytree(model, tmp_path / "copy")
    for file in model.iterdir():
        os.utime(file, (1, 1))
    (model / "README.md").write_text("A good model.")
    assert fingerprint(str(model)) == fingerprint(str(tmp_path / "copy")) == first


def test_large_files_of_other_formats_are_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "WHOLE_BYTES", 100)
    monkeypatch.setattr(identity, "NUM_SAMPLES", 2)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"\xff" * 50_000)
    first = fingerprint(str(file))
    file.write_bytes(b"\xff" * 25_000 + b"\x00" * 25_000)
    tick(file)
    assert fingerprint(str(file)) != first


@pytest.mark.parametrize("path", ["/nowhere", "no-such/model-of-the-hub", "a/b/c", ""])
def test_unknown_models_have_no_fingerprint(path: str, tmp_path: Path) -> None:
    assert fingerprint(path or str(tmp_path)) is None
