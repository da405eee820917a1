"""Extraction of final answers from responses as models write them."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathcanvas_lightning.evaluation.extraction import (
    clean,
    extract_answer,
    extract_answers,
    reference_parts,
    split_list,
)

RAMBLING = (
    "and here follow many words about the figure that tell nothing at all of its answer, " * 3
)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        # boxes
        (r"So \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"First \boxed{3}, later we get \boxed{4}.", "4"),
        (r"\boxed{1}, \boxed{2}", "1, 2"),
        (r"$\boxed{1}$ and $\boxed{2}$", "1, 2"),
        (r"\boxed{5} \boxed{5}", "5"),
        (r"\boxed{\text{(B)}}", "B"),
        (r"\boxed{\textbf{B}}", "B"),
        (r"\boxed{B.}", "B"),
        (r"\boxed{\{x : x>0\}}", r"\{x : x>0\}"),
        (r"\fbox{7}", "7"),
        (r"\boxed{\boxed{5}}", "5"),
        ("\\[ \\boxed{\n5\n} \\]", "5"),
        (r"{ \boxed{6}", "6"),
        (r"\boxed{} The answer is 7.", "7"),
        (r"\boxed{5", ""),
        (r"The answer is 3. Check: \boxed{4", "3"),
        # phrases
        ("Answer: (B)", "B"),
        ("**Answer:** B", "B"),
        ("**Answer**: B", "B"),
        ("The answer is **(C)**.", "C"),
        ("Answer\N{FULLWIDTH COLON}12", "12"),
        ("The final answer is 42", "42"),
        ("the correct answer (E)", "E"),
        ("### Final Answer\n\n$12$", "12"),
        ("**Final Answer**\n\n\\boxed{C}", "C"),
        ("The correct answer is option D because it fits.", "D"),
        ("The final answer is $\\boxed{5}$. I hope it is correct.", "5"),
        ("The answer is 3.14.", "3.14"),
        ("The answer is $x = 5$. Done.", "x = 5"),
        ("Answer: B. 12 cm", "B. 12 cm"),
        ("The answer to the question is 5", "5"),
        ("The answer is:\n\\[\n\\frac{1}{2}\n\\]\n", r"\frac{1}{2}"),
        ("The answer is approximately 3.2 cm, since it holds", "3.2 cm"),
        ("The answer is 5? No. The answer is 6.", "6"),
        ("The answer is not 5.\nThus the area equals $7$.", "7"),
        ("The answer is 5.\nThis answer is consistent with the figure.", "5"),
        ("Answer: Red", "Red"),
        ("Answer: 1,000", "1,000"),
        ("The answers are 3 and 4.", "3 and 4"),
        ("Option A is wrong. Option C is right.\n", "C"),
        (f"I choose (B). {RAMBLING}", "B"),
        (f"Option B is wrong. I select D. Option C is wrong. {RAMBLING}", "D"),
        # conclusions without a phrase
        ("So the total area is 24.", "24"),
        ("It is 0.5", "0.5"),
        ("Area = 5", "5"),
        ("AB = 5", "AB = 5"),
        ("We compute.\nTherefore, x = 5.", "5"),
        ("One line\nand another\n**12**", "12"),
        # nothing but an answer
        ("B", "B"),
        ("(B)", "B"),
        ("12 cm", "12 cm"),
        ("2**3", "2**3"),
        ("X=0, Y=0", "X=0, Y=0"),
        ("It is impossible to complete.", "It is impossible to complete"),
        # thoughts
        ("<think>The answer is 4</think>The answer is 5", "5"),
        ("the answer is 4</think>\nB", "B"),
        ("<think>the answer is 4", ""),
        # none
        ("I can't see the image.", ""),
        ("Sorry, there is no picture.", ""),
        ("", ""),
        ("  \n ", ""),
        (RAMBLING, ""),
        (f"The answer is {RAMBLING}", ""),
    ],
)
def test_extraction(response: str, answer: str) -> None:
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    ("response", "answers"),
    [
        (r"\boxed{1}, \boxed{2}", ("1", "2")),
        (r"\boxed{9} is dropped: \boxed{1} and later \boxed{2}", ("1", "2")),
        (r"\boxed{(1) 5; (2) 7}", ("5", "7")),
        (r"\boxed{5, 7}", ("5", "7")),
        ("(1) we find x = 5. (2) so the area is 7.", ("5", "7")),
        ("(1) draft (2) draft\n\nSo: (1) 5 (2) 7", ("5", "7")),
        ("<1>5</1><2>x=7</2>", ("5", "x=7")),
        ("<2>7</2>", ("", "7")),
        ("Part (a): 5\nPart (b): 7", ("5", "7")),
        ("(i) 5\n(ii) 7", ("5", "7")),
        ("Answers:\n1. 5\n2. 7", ("5", "7")),
        ("The answer is 5 and 7.", ("5", "7")),
        ("<think>(1) 3 (2) 4</think>(1) 5 (2) 7", ("5", "7")),
        (rf"(1) \boxed{{5}} (2) {RAMBLING}", ("5", "")),
        (r"f(1)=5, f(2)=7 hence \boxed{12}", ("12", "")),
        (RAMBLING, ("", "")),
    ],
)
def test_extraction_of_two_parts(response: str, answers: tuple[str, ...]) -> None:
    assert extract_answers(response, 2) == answers


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        (5, ("5",)),
        (0.5, ("0.5",)),
        ("B", ("B",)),
        (["1", "$2$"], ("1", "2")),
        ([1, None], ("1", "")),
        ("<1>5</1> <2>6</2>", ("5", "6")),
        ("(1) 5; (2) 7", ("5", "7")),
        ("(1, 2)", ("(1, 2)",)),
        ("f(1)=2 and f(2)=3", ("f(1)=2 and f(2)=3",)),
        (r"$\boxed{\frac{121}{180}}$", (r"\frac{121}{180}",)),
        (r"\boxed{1},\boxed{2}", ("1", "2")),
        (float("nan"), ()),
        (None, ()),
        (" ", ()),
        ([], ()),
        ([None, ""], ()),
    ],
)
def test_parts_of_a_reference(reference: object, parts: tuple[str, ...]) -> None:
    assert reference_parts(reference) == parts


def test_lists_are_split_outside_brackets() -> None:
    assert split_list("1, 4 and 7") == ["1", "4", "7"]
    assert split_list("(1,2); (3,4) or 5") == ["(1,2)", "(3,4)", "5"]
    assert split_list(r"\{1,2\}") == [r"\{1,2\}"]
    assert split_list("") == []


PIECES = st.sampled_from(
    [
        *("\\boxed{", "}", "{", "$", "$$", "\\[", "\\]", "**", "answer", " is ", ": ", "\n", ". "),
        *(
            "(1)",
            "(2)",
            "(B)",
            "B",
            "=",
            ",",
            " and ",
            "5",
            "x",
            "<think>",
            "</think>",
            "<1>",
            "</1>",
        ),
        *("\\text{", "option ", "Therefore", " because ", "\\", "not", "\N{FULLWIDTH COLON}", "`"),
    ]
)


@given(st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=25).map("".join)))
def test_extraction_is_idempotent(response: str) -> None:
    answer = extract_answer(response)
    assert extract_answer(answer) == answer
    assert clean(answer) == answer
    assert "\n" not in answer
    assert len(extract_answers(response, 3)) == 3
    reference_parts(response)


@pytest.mark.parametrize(
    "piece",
    ["\\boxed{", "{", "answer is ", "<think>", "(1)(2)", "option ", "**", "<1>", "a,", "\\"],
)
def test_extraction_takes_linear_time(piece: str) -> None:
    start = time.process_time()
    extract_answer(piece * 10_000)
    extract_answers(piece * 10_000, 2)
    assert time.process_time() - start < 5
