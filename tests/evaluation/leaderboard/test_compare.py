"""Many models in one table: grouped by data set, distinguished, compared record by record."""

import json
from pathlib import Path
from typing import Any

import pytest

from mathcanvas_lightning.cli.main import run_command
from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.evaluation.leaderboard.command import compare_models

EVIL = "<script>a|b</script> 5 % of $x_1$ & {y}\\"


def write(path: Path, verdicts: dict[str, str], *, key: str = "uid", **about: Any) -> str:
    """Writes a file of scores; each letter of a verdict is a sample: r(ight) or w(rong)."""

    def response(letter: str) -> dict[str, Any]:
        verdict = "right" if letter == "r" else "wrong"
        part = {"extracted": "A", "expected": "A", "verdict": verdict, "how": "text"}
        return {"verdict": verdict, "parts": [part]}

    records = [
        {"index": index, key: uid, "responses": [response(letter) for letter in letters]}
        for index, (uid, letters) in enumerate(verdicts.items())
    ]
    path.write_text(json.dumps({"about": about, "records": records}))
    return str(path)


def records(*letters: str, start: int = 0) -> dict[str, str]:
    return {f"q{number}": text for number, text in enumerate(letters, start)}


def test_models_by_data_sets(tmp_path: Path) -> None:
    one = write(tmp_path / "1.json", records(*"rrrw"), model="big", dataset="maths")
    two = write(tmp_path / "2.json", records(*"rwww"), model="small", dataset="maths")
    other = write(tmp_path / "3.json", records(*"rr"), model="small", dataset="shapes")
    found = compare_models([one, two, other]).table
    assert found.datasets == ("maths", "shapes")
    shares = {m: {d: c.accuracy for d, c in cells.items()} for m, cells in found.cells.items()}
    assert shares == {"big": {"maths": 0.75}, "small": {"maths": 0.25, "shapes": 1.0}}
    assert found.cells["big"]["maths"].interval == pytest.approx((0.3006, 0.9544), abs=1e-4)
    (difference,) = found.differences
    assert (difference.first, difference.second) == ("big", "small")
    assert (difference.first_only, difference.second_only) == (("q1", "q2"), ())
    assert difference.counts.p_value == 0.5


def test_samples_of_a_record(tmp_path: Path) -> None:
    """The accuracy is the mean of the samples, the difference that of the first ones."""
    one = write(tmp_path / "one.json", records("rw", "wr"))
    two = write(tmp_path / "two.json", records("rr", "ww"))
    found = compare_models([one, two]).table
    assert [cells["one"].accuracy for cells in found.cells.values()] == [0.5, 0.5]
    assert found.differences[0].counts.num_first_only == 0


def test_files_of_one_data_set_without_a_name_are_found_by_their_records(tmp_path: Path) -> None:
    one = write(tmp_path / "a.jsonl_scores.json", records(*"rw"), model="one", dataset="maths")
    two = write(tmp_path / "b.jsonl_scores.json", records(*"ww"))
    other = write(tmp_path / "c.jsonl_scores.json", records(*"rr", start=5))
    found = compare_models([one, two, other]).table
    assert found.datasets == ("maths", "c")
    assert list(found.cells) == ["one", "b", "c"]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"sampling": {"temperature": 0.7}}, ["m (temperature 0)", "m (temperature 0.7)"]),
        ({"prompt": {"system_prompt": "Think."}}, ["m", "m (system_prompt Think.)"]),
        ({"settings": {"weights": "abc"}}, ["m (a)", "m (b)"]),
        ({}, ["m (a)", "m (b)"]),
    ],
)
def test_runs_of_one_model_are_distinguished(
    settings: dict[str, Any], names: list[str], tmp_path: Path
) -> None:
    about = {"model": "m", "sampling": {"temperature": 0, "seed": 0}}
    one = write(tmp_path / "a.json", records(*"rw"), **about)
    two = write(tmp_path / "b.json", records(*"ww"), **{**about, **settings})
    # Another data set, with other settings, is still the same model.
    far = write(tmp_path / "c.json", records(*"ww", start=9), dataset="far", model="n")
    assert list(compare_models([one, two, far]).table.cells) == [*names, "n"]


def test_records_without_ids_are_paired_by_position(tmp_path: Path) -> None:
    for key in ("no_uid", "uid"):
        one = write(tmp_path / "a.json", {"x": "r", "y": "w"}, key=key)
        two = write(tmp_path / "b.json", {"x": "w", "y": "w"}, key=key)
        (difference,) = compare_models([one, two]).table.differences
        assert difference.first_only == ((0,) if key == "no_uid" else ("x",))


def test_other_records_are_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "one.json", {"a": "r", "b": "r"})
    two = write(tmp_path / "two.json", {"a": "r", "c": "r"})
    with pytest.raises(InputError, match=r"2 records in only one of them, such as b.*--dataset"):
        compare_models([one, two])
    text = Path(one).read_text().replace('"expected": "A"', '"expected": "B"')
    (tmp_path / "two.json").write_text(text)
    with pytest.raises(InputError, match="other reference answers of the record a"):
        compare_models([one, two])
    with pytest.raises(InputError, match="no records"):
        compare_models([write(tmp_path / "empty.json", {})])
    with pytest.raises(InputError, match="a file that mathcanvas score wrote"):
        compare_models([str(tmp_path / "absent.json")])


def test_options_that_would_lose_something(tmp_path: Path) -> None:
    one = write(tmp_path / "one.json", {"a": "r"})
    before = Path(one).read_bytes()
    with pytest.raises(ConfigError, match="which is an input"):
        compare_models([one], format="latex", output=one)
    with pytest.raises(ConfigError, match="which is an input"):
        compare_models([one], json=one)
    with pytest.raises(ConfigError, match="--format markdown"):
        compare_models([one], output=str(tmp_path / "table.txt"))
    assert Path(one).read_bytes() == before


def two_models(folder: Path, num: int = 12) -> list[str]:
    one = write(folder / "one.json", records(*"r" * num), model=EVIL, dataset="d")
    two = write(folder / "two.json", records(*"w" * num), model="two", dataset="d")
    return [one, two]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write(tmp_path / "one.json", dict.fromkeys("abcdefghij", "r"))
    two = write(tmp_path / "two.json", dict.fromkeys("abcdefghij", "w"))
    full = tmp_path / "all.json"
    words = [one, two, "--max_listed", "3", "--json", str(full)]
    assert run_command("compare", words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "100.0 (72.2 to 100.0)" in said
    assert "0.002" in said  # McNemar
    assert "one right, two wrong (10): a, b, c, and 7 more" in said
    written = json.loads(full.read_text())
    assert written["differences"][0]["first_only"] == list("abcdefghij")
    assert written["models"]["two"]["one"]["accuracy"] == 0


@pytest.mark.parametrize(
    ("kind", "holds", "lacks"),
    [
        (
            "markdown",
            ["| **100.0 (75.8 to 100.0)** |", "&lt;script&gt;a\\|b", ", and 2 more"],
            "<s",
        ),
        ("latex", [r"\textbf{100.0", r"5 \% of \$x\_1\$ \& \{y\}\textbackslash{}"], "script|"),
        ("html", ["<b>100.0 (75.8", "&lt;script&gt;", "default-src &#39;none&#39;"], "<script"),
    ],
)
def test_formats(
    kind: str, holds: list[str], lacks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, target = two_models(tmp_path), tmp_path / "new" / "table.txt"
    assert run_command("compare", [*files, "--format", kind, "--output", str(target)]) == 0
    text = target.read_text()
    for part in holds:
        assert part.replace("&#39;", "'") in text
    assert lacks not in text
    assert f"written: {target}" in capsys.readouterr().out
    if kind != "html":
        assert run_command("compare", [*files, "--format", kind]) == 0
        assert capsys.readouterr().out == text
