"""The generated source format works without changes, in the commands that it mentions."""

import json
from pathlib import Path

import pytest
from PIL import Image

from mathcanvas_lightning import iter_examples
from mathcanvas_lightning.conversion.handler import generate_dataset_handler
from mathcanvas_lightning.errors import ConfigError, OutputError
from tests.conftest import RunTool, run_python


@pytest.mark.slow
def test_generated_format_passes_its_test_and_converts(tmp_path: Path, run_tool: RunTool) -> None:
    done = run_tool(
        "generate_dataset_handler.py", "--name", "my_data", "--output", "my_data.py", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "--source my_data.MyData" in done.stdout
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_data.py")
    result = run_python(*tests, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    assert "1 passed" in result.stdout

    Image.new("RGB", (20, 20)).save(tmp_path / "step.png")
    records = [
        {"id": i, "problem": "?", "steps": [{"text": "x", "figure": "step.png"}], "answer": i}
        for i in range(20)
    ]
    (tmp_path / "data.json").write_text(json.dumps([*records, {"id": 99}]))
    done = run_tool(
        "convert_cot_to_parquet.py",
        *("--source", "my_data.MyData", "--input", "data.json", "--output", "out"),
        *("--num_workers", "2"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert [e.uid for e in iter_examples(tmp_path / "out")] == [str(i) for i in range(20)]
    assert (tmp_path / "out" / "my_data_000.parquet").is_file()


def test_generated_files_pass_the_linter(tmp_path: Path) -> None:
    generate_dataset_handler("my-data_2", str(tmp_path / "other.py"))
    assert "class MyData2(SourceFormat)" in (tmp_path / "other.py").read_text()
    options = ["--line-length", "100"]
    for command in (["check"], ["format", "--check"]):
        result = run_python("-m", "ruff", *command, "--isolated", *options, tmp_path)
        assert result.returncode == 0, result.stdout


def test_existing_file_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "my_data.py"
    generate_dataset_handler("my_data", str(path))
    path.write_text("mine")
    with pytest.raises(OutputError, match=r"my_data\.py"):
        generate_dataset_handler("my_data", str(path))
    assert path.read_text() == "mine"
    generate_dataset_handler("my_data", str(path), overwrite=True)
    assert "SourceFormat" in path.read_text()


@pytest.mark.parametrize(
    ("name", "output"),
    [
        *[("1x", "x.py"), ("x", "x.txt"), ("x", "my-data.py"), ("x", "class.py"), ("x", "json.py")],
        *[("none", "x.py"), ("True", "x.py"), ("false", "x.py"), ("draft", "x.py")],
    ],
)
def test_bad_names(name: str, output: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        generate_dataset_handler(name, str(tmp_path / output))
    assert not list(tmp_path.iterdir())
