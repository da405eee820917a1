"""Pages of answered records: complete, self-contained, escaped, robust to broken input."""

import json
import os
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from PIL import Image

from mathcanvas_lightning import convert_cot, generate_responses, score_responses
from mathcanvas_lightning.cli.main import main
from mathcanvas_lightning.data.images.decode import ImageError
from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.evaluation.report.page import Only, ReportPage, write_report
from mathcanvas_lightning.evaluation.report.sheets import MAX_SIDE_PX, thumbnail
from mathcanvas_lightning.generation.requests import Part
from mathcanvas_lightning.generation.run.answer_folders import reasoning_result
from mathcanvas_lightning.records.files import read_records, write_records
from mathcanvas_lightning.records.pictures import Picture
from tests.conftest import TRAINER_WARNINGS, encoded, png, write_json

EVIL = "<script>alert(1)</script>"
RECORDS: list[dict[str, Any]] = [
    {"sample_index": 0, "query_cot": "What is 1 + 1?", "answer": "2", "model_answer": "It is 2."},
    {"sample_index": 1, "query_cot": "What is 1 + 2?", "answer": "3", "model_answer": "It is 4."},
    {
        "sample_index": 2,
        "query_cot": "What is 1 + 3?",
        "answer": "4",
        "model_answer": "I don't know.",
    },
    {
        "sample_index": 3,
        "query_cot": "What is 1 + 4?",
        "answer": "5",
        "model_answer": None,
        "model_answer_error": "timeout: 60 s",
    },
]


def write(path: Path, records: list[dict[str, Any]], *, score: bool = True) -> str:
    write_records(path, records)
    if score:
        score_responses(str(path), num_workers=1, progress=False)
    return str(path)


def write_steps(folder: Path, steps: list[Part]) -> None:
    (folder / "images").mkdir(parents=True)
    drawings = [step.data for step in steps if isinstance(step, Picture)]
    for number, data in enumerate(drawings, start=1):
        (folder / "images" / f"reasoning_image_{number}.png").write_bytes(data)
    write_json(folder / "reasoning_result.json", reasoning_result(folder.name, steps))


def show(path: str | Path, **options: Any) -> tuple[ReportPage, str, list[str]]:
    """The page, its text, and its articles."""
    page = write_report(str(path), **options)
    text = page.path.read_text(encoding="utf-8")
    return page, text, re.findall(r"<article .*?</article>", text, re.DOTALL)


def verdicts(article: str) -> list[str]:
    found = re.search(r'data-verdicts="(.*?)"', article)
    assert found is not None
    return found[1].split()


def test_a_folder_with_a_dot_in_its_name_finds_its_scores(tmp_path: Path) -> None:
    (tmp_path / "run.v2").mkdir()
    write(tmp_path / "run.v2" / "s_000.parquet", RECORDS[:1], score=False)
    score_responses(str(tmp_path / "run.v2"), num_workers=1, progress=False)
    assert verdicts(show(tmp_path / "run.v2")[2][0]) == ["right"]


def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jsonl", RECORDS)
    (tmp_path / "a.jsonl_scores.json").rename(tmp_path / "scores.json")
    write_steps(tmp_path / "steps" / "0", ["From a folder: 2."])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    options = {"scores": "~/scores.json", "folders": "~/steps", "output": "~/pages/a.html"}
    page, text, articles = show("~/a.jsonl", **options)
    assert page.path == tmp_path / "pages" / "a.html"
    assert verdicts(articles[0]) == ["right"]
    assert "From a folder" in text


def test_pages_of_files_with_one_stem_have_different_names(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"answers{suffix}", RECORDS[:1]) for suffix in (".json", ".jsonl")]
    names = [show(path)[0].path.name for path in paths]
    assert names == ["answers.json.html", "answers.jsonl.html"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_page_shows_questions_answers_and_verdicts(tmp_path: Path, suffix: str) -> None:
    page, text, articles = show(write(tmp_path / f"answers{suffix}", RECORDS))
    assert page.path == tmp_path / "answers.html"
    assert (page.num_records, page.num_faults, page.has_more) == (4, 0, False)
    assert [verdicts(one) for one in articles] == [["right"], ["wrong"], ["unanswered"], ["failed"]]
    for record, article in zip(RECORDS, articles, strict=True):
        assert f"<b>{record['sample_index']}</b>" in article
        assert record["query_cot"] in article
        assert escape(record["model_answer"] or "timeout: 60 s") in article
        assert f">{record['answer']}</td>" in article
    assert ">25.0%</td>" in text.split("<article")[0]
    assert 'id="only-wrong"> wrong (1)' in text
    assert 'id="only-undecided"' not in text


def test_page_is_self_contained(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png())
    records = [RECORDS[0] | {"image": "red.png", "query_cot": "See <image> https://x.org/a.png"}]
    _, text, _ = show(write(tmp_path / "a.jsonl", records))
    sources = re.findall(r"""(?:src|href|url|action)\s*[=(]\s*["']?([^"'\s>]*)""", text)
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,")
    assert "<script" not in text
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text
    assert "color-scheme: light dark" in text


def test_steps_of_folders_are_in_order(tmp_path: Path) -> None:
    records = [RECORDS[0] | {"sample_index": "a/b", "model_answer": ["First\n\nIt is 2.", "3"]}]
    path = write(tmp_path / "answers.jsonl", records)
    drawing = Picture(png())
    write_steps(tmp_path / "answers" / "a%2Fb", ["First", drawing, "It is 2.", drawing])
    write_steps(tmp_path / "answers" / "a%2Fb+2", ["another answer", drawing])
    page, _, (article,) = show(path)
    assert page.num_pictures == article.count("<img ") == 3
    order = ["<h2>Answer 1", "First", "image_1.png", "It is 2.", "image_2.png", "<h2>Answer 2"]
    positions = [article.index(one) for one in order]
    assert positions == sorted(positions)
    first, second = article.split("<h2>Answer 2")
    assert "<details>" not in first
    assert "is different" in second  # the record's answer is 3
    assert verdicts(article) == ["right", "wrong"]


def test_pictures_appear_at_their_marks(tmp_path: Path) -> None:
    (tmp_path / "wide.jpg").write_bytes(encoded("JPEG", 30, 10))
    record = RECORDS[0] | {"query_cot": "See <image2> and <image1>!"}
    record["image"] = ["wide.jpg", "data:image/png;base64,iVBORw0KGgo="]
    page, _, (article,) = show(write(tmp_path / "a.jsonl", [record]))
    assert (page.num_pictures, page.num_faults) == (1, 1)
    order = [article.index(one) for one in ("See", 'class="notice"', "and", "<img ", "!</p>")]
    assert order == sorted(order)
    assert "picture 1, 30x10" in article


def test_texts_are_escaped(tmp_path: Path) -> None:
    record = dict.fromkeys(("sample_index", "query_cot", "answer", "model_answer"), EVIL)
    record |= {"subject": EVIL, EVIL: "x", "image": f"{EVIL}.png"}
    path = tmp_path / f"{EVIL.replace('/', '')}.jsonl"
    write_records(path, [record | {"model_answer": [EVIL, "other"]}])
    score_responses(str(path), by=["subject"], num_workers=1, progress=False)
    folder = path.with_suffix("")
    name = "%3Cscript%3Ealert%281%29%3C%2Fscript%3E"
    write_steps(folder / name, [EVIL])
    write_json(
        folder / name / "reasoning_result.json",
        {"reasoning_steps": [{"type": "text", "content": EVIL}, EVIL, {"type": EVIL}]},
    )
    _, text, (article,) = show(path)
    assert "<script" not in text
    assert article.count("&lt;script&gt;") > 8


def test_formulas_are_drawn_and_others_stay(tmp_path: Path) -> None:
    record = RECORDS[0] | {"query_cot": r"$x^2$ costs $5", "model_answer": r"\(\left( 1\)"}
    _, text, _ = show(write(tmp_path / "a.jsonl", [record]))
    assert r"<p>\(\left( 1\)</p>" in text
    pytest.importorskip("latex2mathml")
    assert "<mi>x</mi><mn>2</mn></msup></mrow></math> costs $5</p>" in text


def test_reference_solutions_are_beside_the_answers(tmp_path: Path) -> None:
    records = [RECORDS[0] | {"solution": f"Count. {EVIL}"}, RECORDS[1]]
    _, _, (first, second) = show(write(tmp_path / "a.jsonl", records))
    order = [first.index(one) for one in ("<h2>Answer", "<h2>Reference solution", "Count.")]
    assert order == sorted(order)
    assert 'class="sides"' in first
    assert "Reference solution" not in second
    records = [one | {"worked": "Add them."} for one in records]
    _, text, _ = show(write(tmp_path / "b.jsonl", records), solution_field="worked")
    assert text.count("Add them.") == 2
    assert "<span>solution: Count." in text


@pytest.mark.filterwarnings(*TRAINER_WARNINGS)
def test_head_names_model_sampling_and_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "answers.jsonl"
    (tmp_path / "prompt.txt").write_text(f"Think. {EVIL}")
    generate_responses(
        backend="echo",
        text_only_input=write(tmp_path / "asked.jsonl", [{**RECORDS[0], "model_answer": None}]),
        text_only_output=str(path),
        system_prompt_file=str(tmp_path / "prompt.txt"),
        max_tokens=77,
    )
    assert main(["score", "--input", str(path), "--num_workers", "1"]) == 0
    assert "answers.jsonlbyecho" in "".join(capsys.readouterr().out.split())  # lines wrap
    about = json.loads((tmp_path / "answers.jsonl_scores.json").read_text())["about"]
    assert (about["model"], about["dataset"]) == ("echo", "asked")
    assert about["sampling"]["max_tokens"] == 77
    for scores in (True, False):  # without scores, the journal is read
        if not scores:
            (tmp_path / "answers.jsonl_scores.json").unlink()
        head = show(path)[1].split("<article")[0]
        assert "<dt>model</dt><dd>echo</dd>" in head.split("<details>")[0]
        assert "max_tokens 77" in head
        assert "system_prompt Think. &lt;script&gt;" in head


def test_jump_list(tmp_path: Path) -> None:
    _, text, articles = show(write(tmp_path / "a.jsonl", RECORDS))
    targets = re.findall(r'href="#([^"]+)"', text)
    assert len(targets) == len(articles)
    assert all(f'<article id="{target}"' in text for target in targets)


def test_notices_replace_broken_parts(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(png(40, 40)[:60])
    images = ["cut.png", "absent.png", 7]
    records = [
        RECORDS[n % 3] | {"sample_index": n, "image": image}
        for n, image in enumerate([*images, None, None, None, None])
    ]
    records[3]["query_cot"] = "See <image1>"
    path = write(tmp_path / "answers.jsonl", records)
    folder = tmp_path / "answers"
    for n in (0, 1, 2, 3):
        write_steps(folder / str(n), ["step", Picture(png())])
    (folder / "1" / "images" / "reasoning_image_1.png").write_bytes(b"no picture")
    (folder / "2" / "images" / "reasoning_image_1.png").unlink()
    for n, content in ((4, "{"), (5, '{"reasoning_steps": 5}')):
        (folder / str(n)).mkdir()
        (folder / str(n) / "reasoning_result.json").write_text(content)
    page, _, articles = show(path)
    assert [one.count('class="notice"') for one in articles] == [1, 2, 2, 0, 1, 1, 1]
    assert page.num_faults == 8
    assert "See &lt;image1&gt;" in articles[3]  # without pictures, a mark is text
    assert [one.count("<img ") for one in articles] == [1, 0, 0, 1, 0, 0, 0]
    assert "absent.png" in articles[1]
    assert "no folder 6" in articles[6]
    for record, article in zip(records[4:], articles[4:], strict=True):
        assert escape(record["model_answer"]) in article


@pytest.mark.parametrize(
    ("only", "shown"),
    [("all", [0, 1, 2, 3]), ("right", [0]), ("wrong", [1, 2]), ("failed", [3])],
)
def test_filters(tmp_path: Path, only: Only, shown: list[int]) -> None:
    path = write(tmp_path / "answers.jsonl", RECORDS)
    page, text, articles = show(path, only=only)
    assert page.num_records == len(shown)
    for n, record in enumerate(RECORDS):
        assert (record["query_cot"] in text) == (n in shown)
    assert len(articles) == len(shown)


def test_records_without_reference_have_no_verdict(tmp_path: Path) -> None:
    records = [RECORDS[1], RECORDS[0] | {"answer": None}, RECORDS[0], RECORDS[3]]
    _, _, articles = show(write(tmp_path / "a.jsonl", records))
    assert [verdicts(one) for one in articles] == [["wrong"], ["unscored"], ["right"], ["failed"]]


def test_without_scores(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "answers.jsonl", RECORDS, score=False)
    _, text, articles = show(path)
    assert "aren&#39;t scored yet" in text
    assert [verdicts(one) for one in articles] == [["unscored"]] * 3 + [["failed"]]
    for record, article in zip(RECORDS, articles, strict=True):
        assert f"<h2>Reference</h2><p>{record['answer']}</p>" in article
    assert show(path, only="failed")[0].num_records == 1
    with pytest.raises(ConfigError, match="mathcanvas score"):
        write_report(path, only="wrong")
    show(path, answer_field="solution")
    assert "no field solution" in caplog.text


def test_maximum_number_of_records(tmp_path: Path) -> None:
    path = write(tmp_path / "answers.jsonl", RECORDS)
    page, text, articles = show(path, max_records=3)
    assert (page.num_records, len(articles), page.has_more) == (3, 3, True)
    assert "there are more" in text
    assert not show(path, max_records=4)[0].has_more
    assert not show(path, max_records=1, only="right")[0].has_more
    with pytest.raises(ConfigError, match="max_records"):
        write_report(path, max_records=0)
    page, text, _ = show(write(tmp_path / "right.jsonl", RECORDS[:1]), only="failed")
    assert page.num_records == 0
    assert "No records to show (failed)" in text


def test_scores_of_other_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scores = Path(write(tmp_path / "answers.jsonl", RECORDS)).with_name("answers.jsonl_scores.json")
    os.utime(scores, (0, 0))
    assert "older than the answers" in show(tmp_path / "answers.jsonl")[1]
    assert "older than the answers" in caplog.text
    other = write(tmp_path / "b.jsonl", [RECORDS[0] | {"id": "x"}], score=False)
    with pytest.raises(InputError, match="scores of other answers"):
        write_report(other, scores=str(scores))
    for text in ("[]", "{", '{"overall": 3, "groups": {}}', '{"overall": {}}', ""):
        scores.write_text(text)
        with pytest.raises(InputError, match="mathcanvas score"):
            write_report(str(tmp_path / "answers.jsonl"))
    with pytest.raises(InputError, match="found no such file"):
        write_report(other, scores=str(tmp_path / "absent.json"))


def test_scores_of_an_earlier_version(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    scores = Path(write(path, RECORDS)).with_name("answers.jsonl_scores.json")
    scores.rename(tmp_path / "answers_scores.json")
    assert [verdicts(one) for one in show(path)[2]] != [["unscored"]] * 3 + [["failed"]]
    other = write(tmp_path / "answers.json", RECORDS, score=False)  # the same stem
    assert "aren&#39;t scored yet" in show(other)[1]


@pytest.mark.parametrize(
    ("field", "value"),
    [("verdict", "<meta http-equiv=refresh>"), ("verdict", 3), ("extracted", ["x"]), ("how", None)],
)
def test_scores_with_invalid_values(tmp_path: Path, field: str, value: Any) -> None:
    path = tmp_path / "answers.jsonl"
    scores = Path(write(path, RECORDS)).with_name("answers.jsonl_scores.json")
    written = json.loads(scores.read_text())
    written["records"][0]["responses"][0]["parts"][0][field] = value
    scores.write_text(json.dumps(written))
    with pytest.raises(InputError, match="mathcanvas score"):
        write_report(path)


def test_errors_list_the_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "answers.jsonl", RECORDS)
    with pytest.raises(InputError, match="query_cot, answer, model_answer"):
        write_report(path, response_field="response")
    with pytest.raises(InputError, match="no record with question; there are: sample_index"):
        write_report(path, query_field="question")
    with pytest.raises(InputError, match="no such folder"):
        write_report(path, folders=str(tmp_path / "absent"))
    with pytest.raises(InputError, match="a readable file of records"):
        write_report(str(tmp_path / "absent.jsonl"), only="wrong")
    with pytest.raises(ConfigError, match="which is an input"):
        write_report(path, path)
    with pytest.raises(InputError, match="record 0"):
        write_report(str(write_json(tmp_path / "numbers.json", [1])))
    assert not list(tmp_path.glob("*.html"))


@pytest.fixture(scope="module")
def shards(puzzles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "shards"
    source = puzzles / "enhanced_cot_cleaned.json"
    convert_cot(str(source), str(folder), num_workers=0, progress=False)
    return folder


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_rows_of_shards(shards: Path, tmp_path: Path, suffix: str) -> None:
    rows = list(read_records(shards))[:3]
    for row in rows:
        row["model_answer"] = f"The answer is {row['answer']}."
    path = write(tmp_path / f"answers{suffix}", rows)
    page, _, articles = show(path)
    assert (page.num_pictures, page.num_faults) == (3, 0)
    for row, article in zip(rows, articles, strict=True):
        assert f"<b>{row['id']}</b>" in article
        assert verdicts(article) == ["right"]
        assert article.index("Options:") < article.index("<img ") < article.index(">Answer<")
    broken = [rows[0], rows[1] | {"question_interleave": '[{"type": "image", "index": 9}, 5]'}]
    page, _, articles = show(write(tmp_path / f"broken{suffix}", broken))
    assert (page.num_records, page.num_faults) == (2, 2)


def test_folder_of_shards(shards: Path) -> None:
    page, _, _ = show(shards, response_field="answer", max_records=2)
    assert page.path == shards.with_name("shards.html")
    assert (page.num_records, page.num_pictures, page.num_faults) == (2, 2, 0)


def test_large_pictures_are_scaled_down() -> None:
    noise = Image.effect_noise((1200, 600), 50)
    for kind in ("PNG", "BMP"):
        buffer = BytesIO()
        noise.save(buffer, kind)
        found = thumbnail(buffer.getvalue(), "noise")
        assert (found.caption, found.format) == ("noise, 1200x600", "JPEG")
        with Image.open(BytesIO(found.data)) as image:
            assert image.size == (MAX_SIDE_PX, MAX_SIDE_PX // 2)
    flat = thumbnail(encoded("BMP", 2000, 1000), "flat")
    assert flat.format == "PNG"
    small = png(20, 20)
    assert thumbnail(small, "small").data == small
    with pytest.raises(ImageError):
        thumbnail(b"", "nothing")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "answers.jsonl", RECORDS)
    page = tmp_path / "new" / "page.html"
    options = ["--only", "wrong", "--max_records", "1", "--image_base_path", str(tmp_path)]
    assert main(["report", "--input", path, "--output", str(page), *options]) == 0
    assert "page.html: the first 1 records, 0 pictures\n" in capsys.readouterr().out
    assert RECORDS[1]["query_cot"] in page.read_text()
    assert [one.name for one in page.parent.iterdir()] == ["page.html"]
    assert main(["report", "--input", path, "--query_field", "nothing"]) == 1
    assert "error: " in capsys.readouterr().err
    assert json.loads((tmp_path / "answers.jsonl_scores.json").read_text())["overall"]


def test_pictures_outside_of_the_folders_are_not_shown(tmp_path: Path) -> None:
    private = tmp_path / "private.png"
    private.write_bytes(png(24, 24))
    data = tmp_path / "data"
    data.mkdir()
    path = write(data / "answers.jsonl", [RECORDS[0] | {"image": str(private)}])
    name = RECORDS[0]["sample_index"]
    write_steps(data / "answers" / str(name), ["step", Picture(png())])
    result = data / "answers" / str(name) / "reasoning_result.json"
    named = [str(private), "../../../private.png", "http://127.0.0.1:9/x.png", f"file://{private}"]
    steps = [{"type": "image", "content": one} for one in (*named, "images/reasoning_image_1.png")]
    result.write_text(json.dumps({"reasoning_steps": steps}))
    page, text, _ = show(path)
    assert (page.num_pictures, page.num_faults) == (1, 5)
    assert text.count("is outside") == 5
    assert show(path, allow_any_path=True)[0].num_pictures == 2  # that of the record, not the steps
