"""What `mathcanvas fit` fills in before it makes model and data."""

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from mathcanvas_lightning.cli.fit import MathCanvasCLI, run_cli
from mathcanvas_lightning.inspection.batch import load_datamodule
from tests.conftest import ROOT

DEMO = ROOT / "configs" / "fit" / "demo_cpu.yaml"
pytestmark = [
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]


class StopError(Exception):
    """Carries the configuration instead of training with it."""


@pytest.fixture
def filled_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns the configuration of a run that is not started."""

    def stop(cli: MathCanvasCLI) -> None:
        raise StopError(cli.config[cli.subcommand])

    def fill_in(*words: str) -> Any:
        with pytest.raises(StopError) as stopped:
            run_cli(["fit", "--config", str(DEMO), *words])
        return stopped.value.args[0]

    monkeypatch.setattr(MathCanvasCLI, "instantiate_classes", stop)
    return fill_in


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "seed"),
    [
        ((), 0),
        (("--seed_everything", "7"), 7),
        (("--seed_everything", "7", "--data.init_args.seed", "0"), 0),
        (("--seed_everything", "false"), None),
    ],
)
def test_the_data_follow_the_seed_of_the_run(filled_in: Any, words: Any, seed: Any) -> None:
    assert filled_in(*words).data.init_args.seed == seed


@pytest.mark.slow
def test_initial_weights_follow_the_seed_of_the_run(filled_in: Any) -> None:
    model = "--model.init_args."
    words = ["--seed_everything", "7", f"{model}source", "{preset: tiny}", f"{model}lora.rank", "4"]
    found = filled_in(*words).model.init_args
    assert (found.source.seed, found.lora.seed) == (7, 7)
    words += [f"{model}source.seed", "1", f"{model}lora.seed", "2"]
    found = filled_in(*words).model.init_args
    assert (found.source.seed, found.lora.seed) == (1, 2)


@pytest.mark.slow
def test_the_name_of_a_run_without_one_is_that_of_its_yaml(filled_in: Any) -> None:
    trainer = filled_in("--trainer.default_root_dir", "null").trainer
    assert trainer.default_root_dir == "runs/demo_cpu"
    assert filled_in().trainer.default_root_dir == "demo/run"  # unless the YAML names its folder


@pytest.mark.parametrize(
    ("more", "seed"),
    [("seed_everything: 7", 7), ("seed_everything: true", 0), ("data: {init_args: {seed: 3}}", 3)],
)
def test_packs_are_shown_as_they_are_trained_on(tmp_path: Path, more: str, seed: int) -> None:
    base, overlay = tmp_path / "base.yaml", tmp_path / "more.yaml"
    base.write_text("data: {init_args: {progress: false}}\n")
    overlay.write_text(more)
    assert load_datamodule([str(base), str(overlay)]).seed == seed


def test_a_failed_run_ends_the_ranks_that_it_launched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They would wait in a collective for the one that failed."""

    def fail(cli: MathCanvasCLI, subcommand: str) -> None:
        raise StopError(subcommand)

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    launcher = _SubprocessScriptLauncher(LightningEnvironment(), num_processes=2, num_nodes=1)
    launcher.procs = [child]
    cli = object.__new__(MathCanvasCLI)
    cli.trainer = SimpleNamespace(  # type: ignore[assignment]
        default_root_dir=str(tmp_path), strategy=SimpleNamespace(launcher=launcher)
    )
    monkeypatch.setattr(LightningCLI, "_run_subcommand", fail)
    with pytest.raises(StopError):
        cli._run_subcommand("validate")
    assert child.wait(60) == -signal.SIGKILL
