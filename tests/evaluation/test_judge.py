"""A model as judge: its requests, and the rulings from its replies."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mathcanvas_lightning.errors import ConfigError, OutputError
from mathcanvas_lightning.evaluation.judge import Case, Judge, Ruling, load_judge
from mathcanvas_lightning.generation.backends.base import BackendError, EchoBackend
from mathcanvas_lightning.generation.backends.server.backend import ServerBackend
from mathcanvas_lightning.generation.requests import GenerationResponse, Output, Sampling
from tests.evaluation.judging import FailingBackend, MarkedBackend, MortalBackend
from tests.generation.misbehaving import ChatServer, chat_server


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
    assert not first.sampling.guide_strictly
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


CASES = [case(f"it is [[{number}]]", str(number % 3)) for number in range(6)]
NUM_REQUESTS = 12


def test_equal_requests_are_asked_once() -> None:
    backend, done = MarkedBackend(), []
    rulings = Judge(backend).judge([*CASES, *CASES], done.append)
    assert rulings[:6] == rulings[6:]
    assert [ruling.parts[0] for ruling in rulings[:6]] == [True] * 3 + [False] * 3
    assert len(backend.requests) == NUM_REQUESTS
    assert sum(done) == 2 * NUM_REQUESTS


@pytest.mark.parametrize("lives", [0, 4, 9, NUM_REQUESTS - 1])
def test_a_judge_that_died_continues(tmp_path: Path, lives: int) -> None:
    """Every reply is kept; the same call asks only the others."""
    with pytest.raises(BackendError, match="its end"):
        Judge(MortalBackend(lives)).judge(CASES, folder=tmp_path)
    backend = MarkedBackend()
    rulings = Judge(backend).judge(CASES, folder=tmp_path)
    assert rulings == Judge(MarkedBackend()).judge(CASES)
    assert len(backend.requests) == NUM_REQUESTS - lives
    again = MortalBackend(0)
    assert Judge(again).judge(CASES, folder=tmp_path) == rulings
    assert again.requests == []


def test_failed_requests_are_asked_again(tmp_path: Path) -> None:
    rulings = Judge(FailingBackend()).judge(CASES, folder=tmp_path)
    assert [ruling.parts for ruling in rulings] == [(None,)] * 6
    backend = MarkedBackend()
    assert Judge(backend).judge(CASES, folder=tmp_path)[0].parts == (True,)
    assert len(backend.requests) == 6


def test_replies_of_another_judge_are_not_used(tmp_path: Path) -> None:
    Judge(MarkedBackend()).judge(CASES, folder=tmp_path)
    with pytest.raises(OutputError, match="another --output, or delete"):
        Judge(MarkedBackend("other")).judge(CASES, folder=tmp_path)
    with pytest.raises(OutputError):
        Judge(MarkedBackend(), max_tokens=9).judge(CASES, folder=tmp_path)


def test_models_that_think_get_room() -> None:
    backend = MarkedBackend()
    options = {"enable_thinking": False}
    judge = Judge(backend, max_tokens=9000, template_options=options, guided=False)
    assert judge.judge([case("[[7]]", "7")])[0].parts == (True,)
    for request in backend.requests:
        assert request.sampling == Sampling(max_tokens=9000, guide_strictly=False) or (
            request.sampling == Sampling(max_tokens=9000)
        )
        assert request.template_options == options


@pytest.mark.parametrize("reply", ["", "<think>It is 7, but", "<think>7</think>"])
def test_an_extraction_without_text_is_undecided(reply: str) -> None:
    """The model ran out of tokens: this says nothing about the answer."""
    (ruling,) = Judge(SayingBackend(reply)).judge([case("[[7]]", "7")])
    assert ruling.parts == (None,)
    assert ruling.failures == ("extraction: a reply without text; raise max_tokens",)


class SayingBackend(EchoBackend):
    """Answers everything with the same text."""

    def __init__(self, reply: str) -> None:
        super().__init__()
        self.reply = reply

    def collect(self) -> list[GenerationResponse]:
        responses = [
            GenerationResponse(uid=request.uid, outputs=(Output(text=self.reply),))
            for request in self.waiting
        ]
        self.waiting.clear()
        return responses


def refuse_guide(body: dict[str, Any]) -> str | None:
    found = "structured_outputs" in body
    return "Unrecognized request argument supplied: structured_outputs" if found else None


def test_a_server_without_guided_output() -> None:
    def shape(answer: dict[str, Any]) -> dict[str, Any]:
        message = {"content": "**1**\n\nBoth are 7."}
        return answer | {"choices": [answer["choices"][0] | {"message": message}]}

    with chat_server(ChatServer(refuse=refuse_guide, shape=shape)) as chat:
        backend = ServerBackend(chat.url)
        cases = [case(f"it is [[{number}]]", "7") for number in range(9)]
        rulings = Judge(backend).judge(cases)
        backend.close()
    assert [ruling.parts for ruling in rulings] == [(True,)] * 9


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
