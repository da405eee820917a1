"""Commands as users run them: help, results, exit statuses, errors without traceback."""

import inspect
import json
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from mathcanvas_lightning import iter_examples
from mathcanvas_lightning.cli.main import COMMANDS, main
from tests.conftest import ROOT, RunTool, png, run_python, write_json

SOURCE = "enhanced_cot_cleaned.json"
TOOLS = {
    "build_index.py": "index",
    "inspect_batch.py": "inspect-batch",
    "convert_cot_to_parquet.py": "convert",
    "inspect_shards.py": "inspect",
    "generate_blockmoving.py": "generate-blockmoving",
    "generate_dataset_handler.py": "generate-handler",
    "generate_response.py": "generate-response",
    "make_demo_model.py": "make-demo-model",
    "make_tiny_bagel.py": "make-bagel",
    "compare_scores.py": "compare",
    "score_responses.py": "score",
    "show_answers.py": "report",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_summary_is_the_first_line_of_the_docstring(name: str) -> None:
    module, _, function = COMMANDS[name].function.partition(":")
    found = getattr(import_module(f"mathcanvas_lightning.{module}"), function)
    assert COMMANDS[name].summary == (inspect.getdoc(found) or "").partition("\n")[0]
    parameters = inspect.signature(found).parameters
    assert COMMANDS[name].positional | COMMANDS[name].lists <= parameters.keys()


@pytest.mark.parametrize("tool", TOOLS)
def test_help_shows_an_example(
    tool: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(ROOT / "tools" / tool)
    monkeypatch.setattr(sys, "argv", [path, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(path, run_name="__main__")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "example:" in text
    assert f"{tool} " in text.split("example:")[1]


def test_every_default_of_the_converter_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    defaults = {
        "image_dir": "null",
        "source": "auto",
        "name": "null",
        "samples_per_file": "100",
        "row_group_rows": "32",
        "interleave_encoding": "json",
        "question_prompt": "builtin",
        "split": "null",
        "seed": "42",
        "num_workers": "null",
        "max_reject_fraction": "1.0",
        "allow_no_solution": "False",
        "overwrite": "False",
        "max_image_pixels": "64000000",
    }
    for name, default in defaults.items():
        option = text.split(f"--{name}", 2)[2].split(" --")[0]
        assert f"default: {default}" in option, option


@pytest.mark.slow
def test_convert_and_inspect(puzzles: Path, tmp_path: Path, run_tool: RunTool) -> None:
    done = run_tool(
        "convert_cot_to_parquet.py",
        *("--input", puzzles / SOURCE, "--output", tmp_path / "out"),
        *("--split", "train=0.9,test=0.1", "--num_workers", "2"),
    )
    assert done.returncode == 0, done.stderr
    assert "rejected: wrong_answer" in done.stdout
    assert "rows in train" in done.stdout
    done = run_tool(
        "inspect_shards.py", tmp_path / "out", "--validate", "--html", tmp_path / "x" / "page.html"
    )
    assert done.returncode == 0, done.stdout
    assert "solution_interleave" in done.stdout
    assert (tmp_path / "x" / "page.html").is_file()


def test_options_from_a_config_file(puzzles: Path, tmp_path: Path) -> None:
    config = ROOT / "configs" / "convert" / "blockmoving.yaml"
    words = ["--input", str(puzzles / SOURCE), "--output", str(tmp_path)]
    assert main(["convert", "--config", str(config), *words, "--num_workers", "0"]) == 0
    settings = json.loads((tmp_path / "conversion.json").read_text())
    given = yaml.safe_load(config.read_text())
    assert settings["seed"] == given["seed"]
    assert settings["split"] == {"train": 0.9, "test": 0.1}
    assert settings["layout"]["samples_per_file"] == given["samples_per_file"]


@pytest.mark.parametrize("config", sorted((ROOT / "configs" / "convert").glob("*.yaml")))
def test_shipped_configs_have_known_keys(config: Path, tmp_path: Path) -> None:
    assert main(["convert", "--config", str(config), "--input", "none", "--output", "none"]) == 1


def test_exit_statuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(png())
    record = {"task_id": 1, "gt": "A", "pred": "A", "cot_text": "<image>a.png</image> A."}
    source = write_json(tmp_path / "x.json", [record, {**record, "task_id": 2, "pred": "B"}])

    def convert(output: str, *words: str) -> tuple[int, str]:
        places = ["--input", str(source), "--output", str(tmp_path / output)]
        try:
            status = main(["convert", *places, "--num_workers", "0", *words])
        except SystemExit as ended:  # of the parser
            status = int(ended.code or 0)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return status, printed.out + printed.err

    assert convert("a")[0] == 0
    assert convert("b", "--max_reject_fraction", "0.5")[0] == 0
    status, text = convert("c", "--max_reject_fraction", "0.4")
    assert status == 1
    assert "50.0% of the records were rejected" in text
    assert len(list(iter_examples(tmp_path / "c"))) == 1
    status, text = convert("a", "--samples_per_file", "3")
    assert status == 1
    assert "--overwrite" in text
    assert convert("a", "--samples_per_file", "3", "--overwrite")[0] == 0
    assert convert("d", "--unknown", "3")[0] == 2
    write_json(source, [{**record, "pred": "B"}])
    status, text = convert("e")
    assert status == 1
    assert "no row was kept" in text
    source.write_text('[{"task_id": 1, "cot_text": ""}, {]')
    status, text = convert("f")
    assert status == 1
    assert "x.json:1:35" in text


def test_validation_exit_status(
    puzzles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow as pa

    places = ["--input", str(puzzles / SOURCE), "--output", str(tmp_path)]
    main(["convert", *places, "--num_workers", "0"])
    path = tmp_path / "blockmoving_000.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[5]["solution_images"][0]["bytes"] = b"broken"
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    assert main(["inspect", str(tmp_path), "--validate", "--rows", "0"]) == 1
    text = capsys.readouterr().out
    assert rows[5]["id"] in text
    assert "image_unreadable" in text


@pytest.mark.slow
def test_console_script() -> None:
    for words in (["--help"], []):
        done = run_python("-m", "mathcanvas_lightning", *words)
        assert done.returncode == 0
        assert all(name in done.stdout for name in COMMANDS)
    done = subprocess.run(
        [Path(sys.executable).with_name("mathcanvas"), "dance"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "unknown command 'dance'" in done.stderr


def test_disk_full_is_one_line(
    puzzles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    words = ["--input", str(puzzles / SOURCE), "--output", str(tmp_path), "--num_workers", "0"]
    assert main(["convert", *words]) == 1
    assert "No space left on device" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
