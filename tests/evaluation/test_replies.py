"""Verdicts and answers in the words of a judge."""

import pytest

from mathcanvas_lightning.evaluation.judging.replies import extracted_answer, read_verdict

YES = [
    "1",
    "1.",
    "**1**",
    " 1\n",
    "Yes",
    "yes.",
    "YES!",
    "Correct",
    "True",
    "[1]",
    "(1)",
    "`1`",
    '"1"',
    "\\boxed{1}",
    "$\\boxed{1}$",
    "Verdict: 1",
    "**Verdict:** 1",
    "Answer: 1",
    "Final answer: **1**",
    "The answer is 1",
    "The verdict is 1.",
    "Score: 1",
    "1 (same value)",
    "1 - both say 7",
    "1, because both are 7",
    "Yes, both are 7.",
    "Yes. Both say 7.",
    "Correct. 0.5 is 1/2.",
    "<think>0? no, 0</think>1",
    "<think>\nhm 0\n</think>\n\n**1**",
    '{"verdict": 1}',
    '```json\n{"correct": true}\n```',
    "1\n\nExplanation: both are 7.",
    "Both are 7.\n\n1",
    "Both are 7.\nVerdict: **1**",
    "1. The reference says 5.\n2. The student says 5.\nSo: 1",
    "The student's answer is correct.",
    "The answers are equivalent.",
    "Both say the same.",
    "The student's answer matches the reference answer.",
    "是",
    "正确",
    "答案\uff1a1",
    "\uff11",
    "So the answer is 1.",
    "Therefore, 1",
    "They say the same, so 1.\n1",
    "The two answers agree.",
    "right",
    "equivalent",
]
NO = [
    "0",
    "0.",
    "**0**",
    "No",
    "no.",
    "Incorrect",
    "False",
    "Wrong",
    "Verdict: 0",
    "**Verdict:** 0 (different)",
    "0 (different)",
    "0: they differ",
    "No, 7 is not 8.",
    "No. The values differ.",
    "<think>1</think>0",
    '{"verdict": 0}',
    '{"is_correct": "no"}',
    "The student's answer is incorrect.",
    "The student's answer is not correct.",
    "The answers do not match.",
    "They don't agree.",
    "不正确",
    "错误",
    "否",
    "Both are listed.\n\n0",
    "1. The reference says 5.\n2. The student says 6.\n0",
    "1. The reference says 5.\n2. The student says 6.\nSo the verdict is 0.",
    "The answers are different.",
    "not the same",
    "The answer is not the same as the reference.",
]
NEITHER = [
    "",
    "perhaps",
    "10",
    "1.5",
    "0.5",
    "100",
    "<think>1",
    "1\n0",
    "Yes\nNo",
    "The reference says 1",
    "Compare both answers.",
    "1. Compare the answers.",
    "Is it correct?",
    "0 and 1",
    "Yes or no",
    "It is different in notation but equal.",
    "2",
    "01",
    "-1",
    "1/2",
    "I cannot decide.",
    "Not sure",
    "1 or 0",
    "Write 1 if the answers are equal, else 0.",
    "It may be correct.",
]


@pytest.mark.parametrize("reply", YES)
def test_right(reply: str) -> None:
    assert read_verdict(reply) is True


@pytest.mark.parametrize("reply", NO)
def test_wrong(reply: str) -> None:
    assert read_verdict(reply) is False


@pytest.mark.parametrize("reply", NEITHER)
def test_undecided(reply: str) -> None:
    assert read_verdict(reply) is None


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("<think>5?</think> 7 apples", "7 apples"),
        ("NONE", ""),
        ("**NONE**", ""),
        ("None.", ""),
        ("none of these", "none of these"),
        ("", None),
        ("<think>5", None),
    ],
)
def test_extracted_answers(reply: str, answer: str | None) -> None:
    assert extracted_answer(reply) == answer
