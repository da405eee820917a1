"""A model as judge: its requests, and the rulings from its replies."""

from pathlib import Path

import pytest
import yaml

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.evaluation.judge import Case, Judge, Ruling, load_judge
from mathcanvas_lightning.generation.backends.base import EchoBackend
from tests.evaluation.judging import MarkedBackend


def case(response: str, *expected: str) -> Case:
    return Case(question="How {many}?", response=response, expected=expected)


def test_rulings() -> None:
    backend, done = MarkedBackend(), []
    rulings = Judge(backend).judge(
        [
            case("it is [[seven apples]]", "seven"),
            case("it is [[eight]]", "seven"),
            case("it is [[(1) five (2) six]]", "five", "seven"),
            case("no idea", "seven", "eight"),
        ],
        done.append,
    )
    assert rulings == [
        Ruling(extracted="seven apples", parts=(True,)),
        Ruling(extracted="eight", parts=(False,)),
        Ruling(extracted="(1) five (2) six", parts=(True, False)),
        Ruling(parts=(False, False)),
    ]
    assert sum(done) == 4 + 6


def test_failed_requests_leave_parts_undecided() -> None:
    rulings = Judge(MarkedBackend()).judge(
        [
            case("fail here [[7]]", "7", "8"),
            case("[[7 fail there]]", "7"),
            case("[[7 mumble]]", "7"),
        ]
    )
    assert [ruling.parts for ruling in rulings] == [(None, None), (None,), (None,)]
    assert [ruling.failures for ruling in rulings] == [
        ("timeout: too slow",),
        ("timeout: too slow",),
        ("verdict: 'perhaps' is neither 0 nor 1",),
    ]


def test_requests() -> None:
    backend = MarkedBackend()
    Judge(backend).judge([case("<think>[[9]]</think>x {answer} [[7]] {question}", "6", "7")])
    extraction, first, second = backend.requests
    text = extraction.messages[0].text
    assert "How {many}?" in text
    assert "x {answer} [[7]] {question}" in text  # fields in the texts are not filled in
    assert "[[9]]" not in text
    assert first.sampling.choice == second.sampling.choice == ("0", "1")
    assert extraction.sampling.temperature == first.sampling.temperature == 0
    assert "to part (1):\n6\n" in first.messages[0].text
    assert "to part (2):\n7\n" in second.messages[0].text


def test_custom_prompts() -> None:
    backend = MarkedBackend()
    judge = Judge(
        backend,
        extract_prompt="Copy: {response}",
        compare_prompt="Reference answer:\n{reference}\nof the student:\n{answer}\n",
    )
    assert judge.judge([case("[[7]]", "7")])[0].parts == (True,)
    assert backend.requests[0].messages[0].text == "Copy: [[7]]"
    with pytest.raises(ConfigError, match=r"no .answer. and no .reference."):
        Judge(backend, compare_prompt="Is it {response}?")


def test_an_echo_leaves_everything_undecided() -> None:
    (ruling,) = Judge(EchoBackend()).judge([case("7", "7")])
    assert ruling.parts == (None,)


def test_judge_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "judge.yaml"
    backend = {"class_path": "tests.evaluation.judging.MarkedBackend", "init_args": {}}
    path.write_text(yaml.safe_dump({"backend": backend, "max_tokens": 99}))
    judge = load_judge(str(path))
    assert isinstance(judge.backend, MarkedBackend)
    judge.judge([case("7", "7")])
    assert judge.backend.requests[0].sampling.max_tokens == 99


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens: 5",
        "backend: {class_path: collections.Counter}",
        "backend: {class_path: no.such.Thing}",
        "- a list",
        "{broken",
        "",
        "backend: {class_path: tests.evaluation.judging.MarkedBackend}\nmax_tokens: many",
    ],
)
def test_invalid_judge_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "judge.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"judge\.yaml: found .*wanted a YAML file"):
        load_judge(str(path))


def test_a_missing_file() -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        load_judge("nowhere.yaml")
