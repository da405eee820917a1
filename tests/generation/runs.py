"""Predict runs for tests: records, and runs over them in this process or in another."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer

from mathcanvas_lightning.generation.backends.base import GenerationBackend
from mathcanvas_lightning.generation.requests import Sampling
from mathcanvas_lightning.generation.run.datamodule import RecordDataModule
from mathcanvas_lightning.generation.run.module import QUIET_TRAINER, GenerationModule
from mathcanvas_lightning.generation.run.summary import PredictionReport
from mathcanvas_lightning.generation.run.writer import ResponseWriter
from mathcanvas_lightning.records.record import RecordInput
from tests.conftest import ROOT
from tests.warm import WarmPython


def records(num: int, **fields: Any) -> list[dict[str, Any]]:
    """Questions with indexes from 0."""
    return [{"sample_index": n, "query_cot": f"What is {n} + 1?", **fields} for n in range(num)]


def write_lines(path: Path, some: Sequence[dict[str, Any]]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(one) + "\n" for one in some))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def predict(
    backend: GenerationBackend,
    inputs: Sequence[RecordInput],
    *callbacks: Any,
    sampling: Sampling | None = None,
    writer: ResponseWriter | None = None,
    trainer: dict[str, Any] | None = None,
    **data: Any,
) -> PredictionReport:
    """A complete run in this process."""
    writer = writer or ResponseWriter()
    loop = Trainer(
        accelerator="cpu", callbacks=[writer, *callbacks], **{**QUIET_TRAINER, **(trainer or {})}
    )
    module = GenerationModule(backend, sampling or Sampling())
    loop.predict(
        module, datamodule=RecordDataModule(list(inputs), **data), return_predictions=False
    )
    assert writer.report is not None
    return writer.report


def run_file(folder: Path, backend: dict[str, Any], source: Path, **sections: Any) -> Path:
    """Writes the YAML of a run: an input of JSON lines, answers beside it."""
    content: dict[str, Any] = {
        "model": {
            "class_path": "mathcanvas_lightning.GenerationModule",
            "init_args": {"backend": backend},
        },
        "data": {
            "class_path": "mathcanvas_lightning.RecordDataModule",
            "init_args": {
                "inputs": [{"path": str(source), "output": str(folder / "answers.jsonl")}]
            },
        },
        "trainer": {"accelerator": "cpu", "default_root_dir": str(folder)},
    }
    for name, section in sections.items():
        content.setdefault(name, {}).update(section)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def command(config: Path, *words: str) -> list[str]:
    """Command line of `mathcanvas predict`."""
    return [
        sys.executable,
        "-m",
        "mathcanvas_lightning",
        "predict",
        "--config",
        str(config),
        *words,
    ]


def run_command(
    warm: WarmPython, config: Path, *words: str, **options: Any
) -> "subprocess.CompletedProcess[str]":
    """Runs the command and waits for its end."""
    return warm.run(command(config, *words)[1:], cwd=ROOT, **options)
