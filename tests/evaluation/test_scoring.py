"""Scores of files of answered records, from the command line and from Python."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mathcanvas_lightning.cli.main import main
from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.evaluation import scoring
from mathcanvas_lightning.evaluation.scoring import ScoreReport, score_responses
from tests.conftest import RunTool, read_jsonl, real_problems, write_json
from tests.evaluation.judging import DeadBackend

OPTIONS = ["2 cm", "3 cm", "4 cm"]
RECORDS: list[dict[str, Any]] = [
    {"answer": "B", "options": OPTIONS, "subject": "lengths", "model_answer": "So \\boxed{B}."},
    {
        "answer": "B",
        "options": OPTIONS,
        "subject": "lengths",
        "model_answer": "The answer is 3 cm.",
    },
    {"answer": "A", "options": OPTIONS, "subject": "lengths", "model_answer": "Answer: C"},
    {"answer": "1/2", "subject": "numbers", "model_answer": "<think>1</think>It is 0.5"},
    {"answer": 7, "subject": "numbers", "model_answer": "I don't know."},
    {"answer": "8", "subject": "numbers", "model_answer": None},
    {"answer": ["1", "2"], "subject": None, "model_answer": "(1) 1 (2) 3"},
    {"answer": None, "subject": "numbers", "model_answer": "\\boxed{5}"},
]


def write_lines(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def score(path: str | Path, **options: Any) -> ScoreReport:
    return score_responses(str(path), num_workers=1, progress=False, **options)


def verdicts(report: ScoreReport) -> list[list[str]]:
    records = json.loads(report.output.read_text())["records"]
    return [[response["verdict"] for response in one["responses"]] for one in records]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_formats_give_the_same_scores(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"answers{suffix}"
    write(path, RECORDS)
    report = score(path, by=["subject"])
    assert report.output == tmp_path / f"answers{suffix}_scores.json"
    overall = report.overall
    assert (overall.num_records, overall.num_responses, report.num_without_reference) == (7, 7, 1)
    assert (overall.num_right, overall.num_wrong) == (3, 2)
    # A CSV file has no null: no response there is an empty one.
    assert (overall.num_unanswered, overall.num_failed) == ((2, 0) if suffix == ".csv" else (1, 1))
    assert overall.accuracy == pytest.approx(3.5 / 7)
    assert overall.complete == pytest.approx(3 / 7)
    assert overall.weighted == pytest.approx(3.4348 / 7, abs=1e-5)
    assert overall.interval == pytest.approx((0.2024, 0.7976), abs=1e-4)
    assert overall.majority is None
    subjects = report.groups["subject"]
    assert {name: one.num_records for name, one in subjects.items()} == {
        "(none)": 1,
        "lengths": 3,
        "numbers": 3,
    }
    assert subjects["lengths"].accuracy == pytest.approx(2 / 3)


def write(path: Path, records: list[dict[str, Any]]) -> None:
    if path.suffix == ".jsonl":
        write_lines(path, records)
    elif path.suffix == ".json":
        write_json(path, records)
    else:
        texts = [
            {
                name: None
                if record.get(name) is None
                else value
                if isinstance(value := record[name], str)
                else json.dumps(value)
                for name in ("answer", "options", "subject", "model_answer")
            }
            for record in records
        ]
        table = pa.Table.from_pylist(texts)
        if path.suffix == ".parquet":
            pq.write_table(table, path)
        else:
            table.to_pandas().to_csv(path, index=False)


def test_verdicts_are_written(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"id": 3} | RECORDS[0], *RECORDS[4:7]])
    report = score(path, output=str(tmp_path / "new" / "scores.json"))
    written = json.loads((tmp_path / "new" / "scores.json").read_text())
    assert written["overall"]["num_records"] == report.overall.num_records == 4
    first, unanswered, failed, parts = written["records"]
    assert first == {
        "index": 0,
        "uid": "3",
        "responses": [
            {
                "verdict": "right",
                "parts": [{"extracted": "B", "expected": "B", "verdict": "right", "how": "choice"}],
            }
        ],
    }
    assert unanswered["responses"][0]["verdict"] == "unanswered"
    assert failed["responses"][0]["parts"][0]["verdict"] == "failed"
    assert parts["responses"][0]["verdict"] == "wrong"
    assert [part["verdict"] for part in parts["responses"][0]["parts"]] == ["right", "wrong"]


def test_samples(tmp_path: Path) -> None:
    records = [
        {"answer": "5", "model_answer": ["5", "x = 5", "6", None]},  # 2 of 4; majority right
        {"answer": "5", "model_answer": ["6", "6", "5", "I don't know"]},  # 1 of 4; wrong
        {"answer": "5", "model_answer": ["6", "5", "5.0", "6"]},  # 2 of 4; the first of a tie
        {"answer": "5", "model_answer": [None, None, None, None]},
    ]
    overall = score(write_lines(tmp_path / "a.jsonl", records)).overall
    assert (overall.num_records, overall.num_responses) == (4, 16)
    assert overall.accuracy == pytest.approx(5 / 16)
    assert overall.majority == pytest.approx(1 / 4)
    assert (overall.num_failed, overall.num_unanswered) == (5, 1)


def test_other_field_names_and_failures_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        'truth,choices,said,said_error\nB,"[""1"", ""2""]",2,\n5,,,"timeout: too slow"\n'
    )
    report = score(path, answer_field="truth", response_field="said", options_field="choices")
    assert verdicts(report) == [["right"], ["failed"]]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_the_text_of_one_response_is_one_sample(tmp_path: Path, suffix: str) -> None:
    records = [
        {"answer": "B", "model_answer": '["B", "C"]'},
        {"answer": "B", "model_answer": "\\boxed{B}"},
    ]
    path = tmp_path / f"a{suffix}"
    write(path, [{"options": None, "subject": None} | record for record in records])
    report = score(path)
    assert (report.overall.num_responses, report.overall.majority) == (2, None)


def test_samples_in_a_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('answer,model_answer\n5,"[""5"", ""6""]"\n7,"[""7"", null]"\n8,\n')
    assert verdicts(score(path)) == [["right", "wrong"], ["right", "failed"], ["unanswered"]]


@pytest.mark.parametrize(
    "options",
    [
        {"A": "2 cm", "B": None, "C": "4 cm", "D": None},  # as structs of Parquet have them
        ["2 cm", None, "4 cm", None],
        {"C": "4 cm", "A": "2 cm"},
        {"a": "a) 2 cm", "c": "c) 4 cm"},
        ["A. 2 cm", None, "C. 4 cm"],
    ],
)
def test_options_that_are_null_have_no_text_and_move_no_letter(
    tmp_path: Path, options: Any
) -> None:
    said = ["4 cm", "C", "None", "2 cm", "B", ""]
    some = [
        {"answer": "C", "options": options, "model_answer": f"\\boxed{{{one}}}"} for one in said
    ]
    report = score(write_lines(tmp_path / "x.jsonl", some))
    assert verdicts(report) == [["right"]] * 2 + [["wrong"]] * 3 + [["unanswered"]]


def test_files_of_one_stem_have_separate_scores(tmp_path: Path) -> None:
    right, wrong = ([{"answer": "5", "model_answer": said}] for said in ("5", "6"))
    reports = [
        score(write_lines(tmp_path / "same.jsonl", right)),
        score(write_json(tmp_path / "same.json", wrong)),
    ]
    assert len({report.output for report in reports}) == 2
    assert [verdicts(report) for report in reports] == [[["right"]], [["wrong"]]]


@pytest.mark.parametrize(
    ("pattern", "response", "verdict"),
    [
        ("boxed", "\\boxed{5} The answer is 6.", "right"),
        ("boxed", "The answer is 5.", "unanswered"),
        ("answer_tag", "\\boxed{6} <answer>5</answer>", "right"),
        ("hash", "The answer is 6.\n#### 5", "right"),
        ("answer_line", "**Answer:** 5\nThe answer is 6.", "right"),
        (r"RESULT=(\d+)", "RESULT=6, no: RESULT=5", "right"),
        (r"\d+(?= apples)", "6 pears, 5 apples", "right"),
    ],
)
def test_the_mark_of_an_answer(tmp_path: Path, pattern: str, response: str, verdict: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"answer": "5", "model_answer": response}])
    assert verdicts(score(path, answer_pattern=pattern)) == [[verdict]]


@pytest.mark.parametrize("pattern", ["bxed", "(5", ""])
def test_a_wrong_answer_pattern(tmp_path: Path, pattern: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", RECORDS)
    with pytest.raises(ConfigError, match=r"answer_pattern.*boxed, answer_tag"):
        score(path, answer_pattern=pattern)


def test_long_references_match_themselves(tmp_path: Path) -> None:
    text = "It is a square if and only if " + "all of its sides are equally long and " * 9
    path = write_lines(tmp_path / "a.jsonl", [{"answer": text, "model_answer": text}])
    assert score(path).overall.accuracy == 1.0


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        (RECORDS, {"answer_field": "truth"}, r"--answer_field truth.*there are: answer, options"),
        (RECORDS, {"response_field": "said"}, "--response_field said"),
        (RECORDS, {"by": ["level"]}, "--by level"),
        ([{"answer": None, "model_answer": "5"}], {}, "no value in any of 1 records"),
        ([5], {}, "record 0: found 5"),
        ([], {}, "there are: none"),
    ],
)
def test_files_that_can_not_be_scored(
    tmp_path: Path, records: list[Any], options: dict[str, Any], message: str
) -> None:
    path = write_lines(tmp_path / "a.jsonl", records)
    with pytest.raises(InputError, match=message):
        score(path, **options)
    assert not (tmp_path / "a.jsonl_scores.json").exists()


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        score(tmp_path / "nowhere.jsonl")
    path = write_json(tmp_path / "a.json", RECORDS)
    with pytest.raises(ConfigError, match="which is the input"):
        score(path, output=str(path))


JUDGED = [
    {
        "answer": "B",
        "options": OPTIONS,
        "model_answer": "The answer is C.\n[[B]]",
    },  # another letter
    {"answer": "7", "model_answer": "\\boxed{7}"},
    {"answer": "seven", "model_answer": "Seven apples I count, and no more: [[seven]] of them."},
    {"answer": "seven", "model_answer": "\\boxed{6} [[six]]"},
    {"answer": "seven", "model_answer": "\\boxed{6} fail here"},
    {"answer": "seven", "model_answer": "I don't know."},
    {"answer": "seven", "model_answer": None},
    {"answer": ["7", "seven"], "model_answer": "(1) 7 (2) 6 [[seven]]"},
]


def judge_file(folder: Path, class_path: str) -> str:
    path = folder / "judge.yaml"
    path.write_text(yaml.safe_dump({"backend": {"class_path": class_path}}))
    return str(path)


@pytest.mark.slow
def test_a_judge_decides_on_answers_that_the_rules_marked_wrong(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", JUDGED)
    assert verdicts(score(path)) == [
        *(["wrong"], ["right"], ["wrong"], ["wrong"], ["wrong"]),
        *(["unanswered"], ["failed"], ["wrong"]),
    ]
    report = score(path, judge=judge_file(tmp_path, "tests.evaluation.judging.MarkedBackend"))
    assert verdicts(report) == [
        *(["wrong"], ["right"], ["right"], ["wrong"], ["undecided"]),
        *(["unanswered"], ["failed"], ["right"]),
    ]
    assert report.failures == ["timeout: too slow"]
    overall = report.overall
    assert (overall.num_records, overall.num_undecided) == (8, 1)
    assert overall.accuracy == pytest.approx(3 / 8)  # undecided is not right
    assert json.loads(report.output.read_text())["judge_failures"] == ["timeout: too slow"]


@pytest.mark.parametrize("word", ["Reference answer", "Final answer:", "Question:"])
def test_a_failing_judge_never_raises_a_score(tmp_path: Path, word: str) -> None:
    records = [
        *({"answer": "5", "model_answer": ["\\boxed{5}", *["\\boxed{moon} [[m]]"] * 3]},) * 3,
        {"answer": "5", "model_answer": ["\\boxed{5}", *["\\boxed{6} [[6]]"] * 3]},
        {"answer": ["5", "7"], "model_answer": ["(1) 5 (2) moon [[m]]", "(1) 5 (2) 7"]},
    ]
    path = write_lines(tmp_path / "a.jsonl", records)
    plain = score(path).overall
    judge = tmp_path / "judge.yaml"
    backend = {
        "class_path": "tests.evaluation.judging.FailingBackend",
        "init_args": {"word": word},
    }
    judge.write_text(yaml.safe_dump({"backend": backend}))
    judged = score(path, judge=str(judge)).overall
    for name in ("accuracy", "complete", "weighted", "majority"):
        assert getattr(judged, name) <= getattr(plain, name)
    assert judged.interval[1] <= plain.interval[1]
    assert judged.num_undecided + judged.num_right >= 4


def test_a_judge_that_died_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(tmp_path / "a.jsonl", JUDGED)
    judge = tmp_path / "judge.yaml"
    for lives, code in ((3, 1), (99, 0)):
        backend = {
            "class_path": "tests.evaluation.judging.MortalBackend",
            "init_args": {"lives": lives},
        }
        judge.write_text(yaml.safe_dump({"backend": backend}))
        words = ["score", "--input", path, "--judge", str(judge), "--num_workers", "1"]
        assert main(words) == code
    journal = tmp_path / "a.jsonl_scores.json.judge" / "extract.jsonl.journal" / "rank0.jsonl"
    lines = map(json.loads, journal.read_text().splitlines())
    answered = [line["uid"] for line in lines if not line["error"]]
    assert len(answered) == len(set(answered)) == 4  # none was asked twice
    assert "Traceback" not in capsys.readouterr().err


def test_a_dead_judge_ends_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(tmp_path / "a.jsonl", JUDGED)
    judge = judge_file(tmp_path, "tests.evaluation.judging.DeadBackend")
    assert main(["score", "--input", path, "--judge", judge, "--num_workers", "1"]) == 1
    assert "it is dead" in capsys.readouterr().err
    assert DeadBackend.num_closed == 1


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(tmp_path / "a.jsonl", RECORDS)
    assert main(["score", "--input", path, "--by", "subject", "--num_workers", "1"]) == 0
    output = capsys.readouterr().out
    for text in ("50.0%", "42.9%", "49.1%", "subject: lengths", "66.7%", "1 records without"):
        assert text in output, output
    assert "undecided" not in output
    assert str(tmp_path / "a.jsonl_scores.json") in output
    assert main(["score", "--input", path, "--answer_field", "truth"]) == 1
    assert "--answer_field truth" in capsys.readouterr().err


@pytest.mark.slow
def test_tool(tmp_path: Path, run_tool: RunTool) -> None:
    path = write_lines(tmp_path / "a.jsonl", RECORDS)
    done = run_tool("score_responses.py", "--input", path, "--output", tmp_path / "s.json")
    assert done.returncode == 0, done.stderr
    assert "50.0%" in done.stdout
    assert json.loads((tmp_path / "s.json").read_text())["overall"]["num_right"] == 3


@pytest.mark.slow
def test_slow_comparisons_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [{"answer": "5.5", "model_answer": "\\boxed{1000000000!}"}]
    report = score(write_lines(tmp_path / "a.jsonl", records), time_limit_s=0.5)
    assert verdicts(report) == [["wrong"]]
    assert "1 comparisons took over 0.5 s" in caplog.text


def test_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "PAIRS_PER_PROCESS", 2)
    records = [{"answer": str(i), "model_answer": str(i - i % 3)} for i in range(12)]
    report = score_responses(write_lines(tmp_path / "a.jsonl", records), num_workers=2)
    assert [one[0] == "right" for one in verdicts(report)] == [i % 3 == 0 for i in range(12)]


@pytest.mark.slow
def test_real_problems(tmp_path: Path) -> None:
    records = read_jsonl(real_problems() / "test.jsonl")
    shapes = ("{}", "The answer is {}.", "So \\boxed{{{}}}.", "**Answer:** {}")
    for shape in shapes:
        right = [one | {"model_answer": shape.format(one["answer"])} for one in records]
        report = score(write_lines(tmp_path / "right.jsonl", right))
        assert report.overall.accuracy == 1.0, shape
        assert report.overall.num_right == len(records)
    letters = [one for one in records if one["options"]]
    assert letters
    for shape in shapes:
        wrong = [
            one | {"model_answer": shape.format("ABCDEA"["ABCDE".index(one["answer"]) + 1])}
            for one in letters
        ]
        assert score(write_lines(tmp_path / "wrong.jsonl", wrong)).overall.num_right == 0, shape
    texts = [
        one | {"model_answer": f"\\boxed{{{one['options']['ABCDE'.index(one['answer'])]}}}"}
        for one in letters
    ]
    assert score(write_lines(tmp_path / "texts.jsonl", texts)).overall.accuracy == 1.0


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_paths_without_a_name(path: str) -> None:
    with pytest.raises(InputError, match="an empty name"):
        score_responses(path)
