"""What a new user gets wrong: the exit status, and the one line that helps."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger

from mathcanvas_lightning.cli.help import ALIASES, STAGES
from mathcanvas_lightning.cli.main import COMMANDS, TRAINER_COMMANDS, main
from tests.cli.replay import Command, matches, read_transcript, run
from tests.cli.small_run import write_settings
from tests.conftest import ROOT, TRAINER_WARNINGS, refuse_to_load, write_json
from tests.data.make_rows import interleaved_shards

pytestmark = [
    *(pytest.mark.filterwarnings(text) for text in TRAINER_WARNINGS),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]

PREDICT = "predict --config predict.yaml"
FILES = {
    "key.yaml": "data: {init_args: {max_num_token: 2048}}",
    "inner.yaml": "data: {init_args: {train: [{path: x, formatt: t2i}]}}",
    "choice.yaml": "data: {init_args: {train: [{path: x, format: interleved}]}}",
    "trainer.yaml": "trainer: {max_step: 10}",
    "section.yaml": "dta: {init_args: {seed: 1}}",
    "class.yaml": "model: {class_path: mathcanvas_lightning.BagelModul}",
    "callback.yaml": "trainer: {callbacks: "
    "[{class_path: ModelCheckpoint, init_args: {dirpat: x}}]}",
    "broken.yaml": "trainer: {max_steps: 10\ndata: [\n",
    "predict.yaml": "model: {class_path: mathcanvas_lightning.GenerationModule, init_args: "
    "{backend: {class_path: mathcanvas_lightning.EchoBackend}}}\n"
    "data: {class_path: mathcanvas_lightning.RecordDataModule, init_args: {inputs: "
    "[{path: questions.jsonl, output: answers.jsonl}]}}\n",
    "list.yaml": "- input: x\n",
    "nothing.yaml": "",
    "sampling.yaml": "model: {init_args: {sampling: {temprature: 0.1}}}",
}
MISTAKES = list(read_transcript("mistakes.txt"))


class NoPackage(CSVLogger):
    """A logger whose package is not installed."""

    def __init__(self) -> None:
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new_user")
    interleaved_shards(folder / "shards", 4)
    write_settings(folder / "small.yaml", folder / "shards")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "questions.jsonl").write_text('{"sample_index": 0, "query_cot": "?"}\n')
    (folder / "empty").mkdir()
    record = {"gt": "A", "pred": "A", "cot_text": "<image>a.png</image> A."}
    write_json(folder / "records.json", [{"task_id": n, **record} for n in range(2)])
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    refuse_to_load(monkeypatch)
    monkeypatch.chdir(folder)
    yield
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: " ".join(mistake.words)[:60])
def test_mistake(mistake: Command, capfd: Any) -> None:
    words = [word.replace("ROOT", str(ROOT)) for word in mistake.words]
    assert run(words) == mistake.status
    out, err = capfd.readouterr()
    shown = [one.rstrip() for one in (*out.splitlines(), *err.splitlines()) if one.strip()]
    [line] = mistake.lines
    assert [one for one in shown if matches(line, one)], shown
    assert "Traceback" not in out + err
    if line.startswith("error: "):
        assert len(shown) == 1, shown


@pytest.mark.slow
def test_predict_with_other_sampling_names_the_difference(folder: Path, capfd: Any) -> None:
    assert run(PREDICT.split()) == 0
    capfd.readouterr()
    assert run([*PREDICT.split(), "--model.init_args.sampling", "{temperature: 0.9}"]) == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert 'found answers of model "echo" with sampling.temperature 0 -> 0.9; wanted' in error


def test_version_and_help(capsys: Any) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("mathcanvas_lightning 0.")
    for command, screen in (("fit", 30), ("validate", 20), ("predict", 30)):
        assert main(["help", command]) == 0
        helped = capsys.readouterr().out
        assert main([command, "--help"]) == 0
        assert capsys.readouterr().out == helped
        assert len(helped.splitlines()) <= screen
        for option in ("--config FILE", "--full_help", "--quiet"):
            assert option in helped
    assert run(["help", "convert"]) == 0
    assert "--image_dir" in capsys.readouterr().out


def test_commands_are_listed_in_the_order_of_use(capsys: Any) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    names = [name for stage in STAGES.values() for name in stage]
    assert set(names) == {*COMMANDS, *TRAINER_COMMANDS}
    rows = [line.split()[1] for line in shown.splitlines() if line.startswith("│ ")]
    assert [row for row in rows if row in names] == names


def test_each_tool_is_a_command() -> None:
    tools = {path.stem.replace("_", "-") for path in (ROOT / "tools").glob("*.py")}
    names = {name for name in tools if not name.startswith(("benchmark", "check"))}
    assert names - {"generate-response"} <= {*COMMANDS, *ALIASES} | {"generate-response"}
    assert set(ALIASES.values()) <= {*COMMANDS}


def test_completion(capsys: Any) -> None:
    assert main(["--print_shtab", "bash"]) == 0
    script = capsys.readouterr().out
    assert "--image_dir" in script
    assert "--debug_batches" in script
