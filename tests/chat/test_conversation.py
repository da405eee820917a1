"""What the next question becomes, and what an answer leaves."""

import pytest

from mathcanvas_lightning.chat.conversation import (
    Conversation,
    Question,
    checked_pictures,
)
from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.generation.events import EndEvent
from mathcanvas_lightning.generation.requests import GenerationResponse, Sampling
from mathcanvas_lightning.records.pictures import Picture
from tests.chat.talking import ScriptedBackend
from tests.conftest import png

RED, BLUE = Picture(png(colour="red")), Picture(png(colour="blue"))


def answered(conversation: Conversation, question: Question) -> GenerationResponse:
    *_, end = ScriptedBackend().stream(conversation.request(question))
    assert isinstance(end, EndEvent)
    return end.response


def test_pictures_stand_at_their_marks_or_first() -> None:
    marked = Question(text="a <image> b", pictures=(RED, BLUE))
    assert marked.message.parts == (BLUE, "a", RED, "b")
    assert Question(text="a", pictures=(RED,)).message.parts == (RED, "a")
    assert Question(text="", pictures=(RED,)).message.parts == (RED,)
    with pytest.raises(InputError, match="Write one"):
        _ = Question(text="  ").message
    with pytest.raises(InputError, match="a picture for each mark"):
        _ = Question(text="<image1> <image3>", pictures=(RED, BLUE)).message


def test_a_question_reads_what_came_before_only_as_a_follow_up() -> None:
    first = Question(text="one", pictures=(RED,))
    conversation = Conversation().with_answer(first, answered(Conversation(), first))
    (turn,) = conversation.turns
    request = conversation.request(Question(text="two"), "be brief")
    assert [message.role for message in request.messages] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert request.messages[2].parts == turn.answer
    alone = conversation.request(Question(text="two", follow_up=False))
    assert [message.parts for message in alone.messages] == [("two",)]
    assert conversation.without_last() == Conversation()


def test_equal_questions_with_equal_seeds_have_equal_random_numbers() -> None:
    def seed(seed: int) -> int:
        question = Question(text="one", sampling=Sampling(seed=seed))
        return Conversation().request(question).seed

    assert seed(1) == seed(1) != seed(2)


def test_a_failed_answer_leaves_no_trace() -> None:
    question = Question(text="fail")
    assert Conversation().with_answer(question, answered(Conversation(), question)).turns == ()


def test_files_that_are_no_pictures_are_refused_by_name() -> None:
    assert checked_pictures([("a.png", png())])[0].data == png()
    for data in (b"text", png()[:40], b"<svg></svg>"):
        with pytest.raises(InputError, match=r"picture b\.png: found .* Choose another file"):
            checked_pictures([("a.png", png()), ("b.png", data)])
