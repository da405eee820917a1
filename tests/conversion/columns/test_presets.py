"""Presets: each public layout -> shards -> a pack -> a page."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mathcanvas_lightning import convert_cot, inspect_shards, iter_examples
from mathcanvas_lightning.cli.main import main
from mathcanvas_lightning.conversion.columns import find_columns, preset_names
from mathcanvas_lightning.data.rows.schema import ImageSegment, InterleavedExample, Segment
from mathcanvas_lightning.errors import ConfigError, InputError
from tests.conftest import ROOT, write_json
from tests.conversion.columns.samples import PNGS, SAMPLES, data_url, write_sample
from tests.data.make_rows import config, module

GUIDE = ROOT / "tools" / "README.md"


def shown(segments: tuple[Segment, ...]) -> list[str]:
    """Texts, and pictures as `@colour`."""
    colours = {data: colour for colour, data in PNGS.items()}
    return [f"@{colours[s.data]}" if isinstance(s, ImageSegment) else s.text for s in segments]


def convert(path: Path, output: Path, **options: Any) -> list[InterleavedExample]:
    report = convert_cot(str(path), str(output), num_workers=0, progress=False, **options)
    rejects = (output / "rejects.jsonl").read_text()
    assert report.problem is None, rejects
    assert not report.rejects, rejects
    return list(iter_examples(output))


def test_each_preset_has_a_sample() -> None:
    assert set(SAMPLES) == set(preset_names())


@pytest.mark.parametrize("name", SAMPLES)
def test_published_record_becomes_texts_and_pictures(name: str, tmp_path: Path) -> None:
    sample = SAMPLES[name]
    source = write_sample(name, tmp_path / "source")
    only = {"allow_no_solution": True} if sample.for_prediction else {}
    (example,) = convert(source, tmp_path / "out", preset=name, **only)
    assert shown(example.question) == sample.question
    assert shown(example.solution) == sample.solution
    assert example.answer == sample.answer
    assert example.extras == sample.extras
    assert example.uid
    (shard,) = (tmp_path / "out").glob("*.parquet")
    assert shard.name == f"{name}_000.parquet"


@pytest.mark.parametrize("name", SAMPLES)
def test_round_trip_to_a_pack_and_a_page(name: str, tmp_path: Path) -> None:
    source = write_sample(name, tmp_path / "source")
    # A benchmark has answers only; they are trained on if they are named as the solution.
    answer = find_columns(name).answer
    keys = {"columns": {"solution": answer}} if SAMPLES[name].for_prediction else {}
    convert(source, tmp_path / "out", preset=name, **keys)
    data = module(config(tmp_path / "out"), packs_per_step=1, max_num_tokens=2000)
    (batch,) = list(data.train_dataloader())
    (packed,) = batch.samples
    (example,) = iter_examples(tmp_path / "out")
    assert packed.uid == example.uid
    assert not packed.is_hole
    assert len(batch.image_seeds) >= any(p.startswith("@") for p in SAMPLES[name].solution)
    report = inspect_shards(
        str(tmp_path / "out"), html=str(tmp_path / "page.html"), validate=True, progress=False
    )
    assert report.problems == []
    page = (tmp_path / "page.html").read_text()
    pictures = [part for part in SAMPLES[name].question if part.startswith("@")]
    assert page.count("data:image/png") >= len(pictures)


def test_keys_replace_those_of_the_preset(tmp_path: Path) -> None:
    source = write_sample("zebra_cot", tmp_path)
    keys = {"solution_end": None, "strip": []}
    (example,) = convert(source, tmp_path / "out", preset="zebra_cot", columns=keys)
    assert shown(example.solution)[0] == "THOUGHT 0: Look."
    assert shown(example.solution)[-1] == "."


def test_columns_without_a_preset(tmp_path: Path) -> None:
    records = [{"key": 1, "ask": "How many?", "say": "Two.", "x.y": 2, "note": "n"}]
    source = write_json(tmp_path / "x.json", records)
    keys = {"id": "key", "question": "ask", "solution": ["say"], "answer": "x.y"}
    (example,) = convert(source, tmp_path / "out", source="columns", columns=keys)
    assert (example.uid, example.answer, example.extras) == ("1", "2", {"note": "n"})


def test_a_yaml_file_is_a_preset_and_builds_on_another(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("preset: mathvision\ncolumns: {answer: options}\n")
    assert find_columns(str(path)).answer == "options"
    assert find_columns(str(path)).id == ("id",)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("columns: {quesion: x}", "Did you mean question"),
        ("columns: {question: 3}", "wanted a text or a list of texts"),
        ("columns: {question: q, strip: '('}", "no regular expression"),
        ("columns: {question: q, marks: '(a)(b)'}", "one group at most"),
        ("columns: {question: q, unmarked: befor}", "Did you mean"),
        ("columns: {answer: a}", "no question"),
        ("columns: {conversation: {role: x}}", "no column"),
        ("columns: {conversation: messages}", "an object with column"),
        ("columns: {question: q, solution_end: So.}", "a text with"),
        ("columns: {question: '[0]'}", "an empty name"),
        ("question: q", "the key columns"),
        ("[", "a YAML file"),
    ],
)
def test_bad_columns_name_key_and_remedy(text: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=match):
        find_columns(str(path))


def test_the_example_of_the_guide_converts(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(source: columns\n.*?)```", GUIDE.read_text(), re.DOTALL)
    (tmp_path / "guide.yaml").write_text(text)
    record = {
        "pid": "1",
        "question": "See <image2>.",
        "choices": ["4", "5"],
        "problem_image_1": data_url("red"),
        "problem_image_2": data_url("green"),
        "reasoning": "THOUGHT 0: Draw. <think>It is 4.</think>",
        "steps": [None, data_url("blue")],
        "metadata": {"answer": "A"},
    }
    source = write_json(tmp_path / "x.json", [record])
    words = ["--config", str(tmp_path / "guide.yaml"), "--input", str(source)]
    assert main(["convert", *words, "--output", str(tmp_path / "out"), "--num_workers", "0"]) == 0
    (example,) = iter_examples(tmp_path / "out")
    options = "Options:\nA: 4\nB: 5"
    assert shown(example.question) == ["@red", "See", "@green", ".", options]
    assert shown(example.solution) == ["Draw. It is 4.", "@blue", "Final Answer: A"]


def test_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean zebra_cot"):
        find_columns("zebracot")
    with pytest.raises(ConfigError, match=r"Presets: .*mathvista"):
        find_columns(None)


def test_auto_suggests_a_preset(tmp_path: Path) -> None:
    source = write_sample("zebra_cot", tmp_path)
    with pytest.raises(InputError, match="Use --preset zebra_cot"):
        convert_cot(str(source), str(tmp_path / "out"), num_workers=0)
    published = write_sample("mathcanvas", tmp_path)
    with pytest.raises(InputError, match="Use --preset mathcanvas"):
        convert_cot(str(published), str(tmp_path / "out"), num_workers=0)


@pytest.mark.parametrize("name", ["mathvision", "mathvista", "mathverse"])
def test_auto_suggests_the_preset_of_a_published_benchmark(name: str, tmp_path: Path) -> None:
    """Their rows hold the pictures, and have the fields of MathVision's own file."""
    with pytest.raises(InputError, match=f"Use --preset .*{name}"):
        convert_cot(str(write_sample(name, tmp_path)), str(tmp_path / "out"), num_workers=0)


def test_auto_suggests_no_preset_without_its_pictures(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"question": "?", "answer": "4", "images": []}))
    with pytest.raises(InputError, match="generate-handler"):
        convert_cot(str(tmp_path / "x.jsonl"), str(tmp_path / "out"), num_workers=0)


@pytest.mark.parametrize("records", [{"data": [{"q": "?"}]}, {"1": {"q": "?"}, "2": {"q": "?"}}])
def test_records_in_an_object_are_seen(records: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(records))
    with pytest.raises(InputError, match="If this object holds the records"):
        convert_cot(str(tmp_path / "x.json"), str(tmp_path / "out"), num_workers=0)


def test_a_preset_for_another_source_is_refused(tmp_path: Path) -> None:
    source = write_sample("zebra_cot", tmp_path)
    with pytest.raises(ConfigError, match="wanted the source columns"):
        convert_cot(str(source), str(tmp_path / "o"), source="mathvision", preset="zebra_cot")
