"""Equal and different answers, and time limits for pathological ones."""

import re
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mathcanvas_lightning.errors import ConfigError, WorkerError
from mathcanvas_lightning.evaluation.comparison import comparer as comparer_module
from mathcanvas_lightning.evaluation.comparison.comparer import Comparer, Pair
from mathcanvas_lightning.evaluation.comparison.equivalence import (
    Comparison,
    choice_letter,
    compare,
    vote_of,
)
from mathcanvas_lightning.evaluation.comparison.notation import canonical
from tests.conftest import examples

METRES = ("$0.8 \\mathrm{~m}$", "$1 \\mathrm{~m}$", "$1.1 \\mathrm{~m}$", "$1.2 \\mathrm{~m}$")
VARIABLES = ("$a$", "$c$", "$b$")
EQUAL = [
    # numbers
    ("12\\frac{1}{2}", "12.5"),
    ("1 1/2", "1.5"),
    ("1\N{VULGAR FRACTION ONE HALF}", "3/2"),
    ("1,000", "1000"),
    ("1{,}000", "1000"),
    ("3\\times 10^5", "300000"),
    ("1.5e-3", "0.0015"),
    ("0.333333", "1/3"),
    ("3.0", "3"),
    ("007", "7"),
    ("\N{MINUS SIGN}1/2", "\\frac{-1}{2}"),
    ("\\dfrac12", "0.5"),
    ("3:2", "3/2"),
    # units
    ("12 cm", "12"),
    ("120 cm", "1.2 m"),
    ("1/2 m^2", "5000 cm\N{SUPERSCRIPT TWO}"),
    ("90 minutes", "1.5 hours"),
    ("2 l", "2000 cm^3"),
    ("5 apples", "5"),
    ("\\$100", "100 dollars"),
    ("30 degrees", "$30^\\circ$"),
    ("30", "30^{\\circ}"),
    ("75 \\%", "75%"),
    ("75", "75 percent"),
    ("0.75", "75\\%"),
    ("75%", "3/4"),
    ("6\\sqrt{3} \\text{ cm}", "6\\sqrt{3}"),
    ("12\\pi\\text{ cubic units}", "12\\pi"),
    # names
    ("x=5", "5"),
    ("5", "x = 5"),
    ("\\angle ABC = 30^\\circ", "30"),
    ("x = 2+3 = 5", "5"),
    # lists
    ("X=0, Y=0", "Y=0,X=0"),
    ("2,1", "1 and 2"),
    ("\\{1,2\\}", "2,1"),
    ("(0.5, 1)", "(1/2, 1)"),
    ("1,2", "(1,2)"),
    ("x=2 or x=-2", "-2, 2"),
    ("\\pm 2", "2,-2"),
    ("[1,2)", "[1, 2)"),
    # formulas
    ("6\\sqrt{3}+4\\pi", "4\\pi+6\\sqrt3"),
    ("\\frac{1}{\\sqrt[4]{12}}", "12^{-1/4}"),
    ("2*sqrt(3)", "2\\sqrt{3}"),
    ("2\N{SQUARE ROOT}3", "2\\sqrt{3}"),
    ("pi/2", "\\frac{\\pi}{2}"),
    ("n(n+1)/2", "\\frac{n^2+n}{2}"),
    ("2x+y=3", "4x+2y=6"),
    ("H=L-S", "L-S"),
    ("AB", "BA"),
    ("x>5", "5<x"),
    ("10!", "3628800"),
    # texts
    ("The red one.", "the red one"),
    ("\\text{no solution}", "No solution"),
    ("**Red**", "red"),
]
DIFFERENT = [
    ("0.33", "1/3"),
    ("3.14", "\\pi"),
    ("1000000", "1000001"),
    ("12345678901234567890123", "12345678901234567890124"),
    ("0.0000001", "0.0000002"),
    ("-5", "5"),
    ("5!", "5"),
    ("1 2", "12"),
    ("1 1/2", "11/2"),
    ("1/0", "5"),
    ("0.5", "50"),
    ("50", "0.5"),
    ("12 cm", "12 m"),
    ("12 cm", "12 cm^2"),
    ("5 seconds", "5 minutes"),
    ("5 apples", "5 oranges"),
    ("6\\sqrt{3}\\text{ cm}", "6\\sqrt{3}\\text{ m}"),
    ("x=5", "y=6"),
    ("X=0, Y=1", "X=1, Y=0"),
    ("(1,2)", "(2,1)"),
    ("[1,2)", "(1,2)"),
    ("1,1,2", "1,2,2"),
    ("1,2,3", "1,2"),
    ("2", "2,-2"),
    ("(1,2)", "1.2"),
    ("x>5", "x<5"),
    ("x\\ge 5", "x>5"),
    ("\\sqrt{2}", "\\sqrt{3}"),
    ("Q=\\sqrt{S s}", "Q=\\sqrt{s s}"),
    ("r", "R"),
    ("Red", "Blue"),
    ("listen", "silent"),
    ("no", "on"),
    ("ABC", "BAC"),
    ("", "5"),
    ("5", ""),
]


@pytest.fixture(scope="module")
def comparer() -> Iterator[Comparer]:
    with Comparer(time_limit_s=1.2) as made:
        yield made


def processor_time() -> float:
    """Seconds that ended child processes have worked."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime


@pytest.mark.parametrize(("first", "second"), EQUAL)
def test_equal(first: str, second: str) -> None:
    assert compare(first, second).is_right
    assert compare(second, first).is_right


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_different(first: str, second: str) -> None:
    assert not compare(first, second).is_right
    assert not compare(second, first).is_right


@pytest.mark.parametrize(
    ("answer", "expected", "options", "is_right", "how"),
    [
        ("C", "C", METRES, True, "choice"),
        ("(C)", "C", METRES, True, "choice"),
        ("c", "(C)", METRES, True, "choice"),
        ("option C", "C", METRES, True, "choice"),
        ("C. 1.1 m", "C", METRES, True, "choice"),
        ("C) 1.2 m", "C", METRES, True, "choice"),
        ("B", "C", METRES, False, "choice"),
        ("1.1 m", "C", METRES, True, "choice"),
        ("1.2 m", "C", METRES, False, "choice"),
        ("1.1", "C", METRES, True, "option"),
        ("\\frac{11}{10}", "C", METRES, True, "option"),
        ("110 cm", "C", METRES, True, "option"),
        ("1.2", "C", METRES, False, "option"),
        ("C", "$1.1$ m", METRES, True, "choice"),
        ("D", "$1.1$ m", METRES, False, "choice"),
        ("b", "C", VARIABLES, True, "choice"),  # the text of C, no letter
        ("b", "B", VARIABLES, False, "choice"),
        ("B", "B", VARIABLES, True, "choice"),
        ("T", "B", ("none", "T", "M", "H"), True, "choice"),
        ("$D$", "D", ("$A$", "$B$", "$C$", "$D$", "none of them"), True, "choice"),
        ("BC", "B", ("1", "2", "3"), False, "choice"),
        ("C, A", "AC", ("1", "2", "3"), True, "choice"),
        ("3 and 1", "AC", ("1", "2", "3"), True, "option"),
        ("12 cm", "A", ("A. 12 cm", "B. 15 cm"), True, "choice"),
        ("12", "A", ("A. 12 cm", "B. 15 cm"), True, "option"),
        ("A", "A. 12 cm", (), True, "choice"),
        ("①③", "13", (), False, "choice"),
        ("5", "5", METRES, True, "text"),
        ("F", "F", METRES, True, "text"),
        ("b", "B", (), True, "choice"),
        ("B. 12", "B", (), True, "choice"),
        ("12", "B", (), False, "math"),
    ],
)
def test_choices(
    answer: str, expected: str, options: tuple[str, ...], is_right: bool, how: str
) -> None:
    assert compare(answer, expected, options) == Comparison(is_right, how)  # type: ignore[arg-type]


def test_only_a_different_letter_is_certainly_wrong() -> None:
    assert compare("5", "5").is_certain
    assert compare("B", "C", METRES).is_certain
    assert not compare("a long story", "5").is_certain


def test_equivalent_answers_share_a_vote() -> None:
    assert vote_of("(C)", METRES) == vote_of("$1.1$ m", METRES) == "C"
    assert vote_of("1/2") == vote_of("x = 0.5") == vote_of("\\frac12 cm")
    assert vote_of("0.5") != vote_of("5")
    assert choice_letter("", METRES) is None


@given(st.text(max_size=40))
def test_canonical_form_is_a_line_of_single_spaces(text: str) -> None:
    form = canonical(text)
    assert "$" not in form
    assert " ".join(form.split()) == form
    assert re.search(r"[\\$\d]", text) or canonical(f"${text}$") == form


ODD = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.sampled_from(
            [*"0123456789xyAB{}()[]^_=+-*/,.!%$ ", "\\frac", "\\sqrt", "\\int", " and "]
        ),
        max_size=12,
    ).map("".join),
)


@settings(
    max_examples=examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(ODD, ODD)
def test_nothing_is_raised(comparer: Comparer, first: str, second: str) -> None:
    assert comparer.compare(first, second).is_right in (True, False)
    if first.strip() and compare(first, "").how != "none":
        assert not comparer.compare(first, "").is_right


@pytest.mark.parametrize(
    "answer",
    [
        "(10^{10^{10}}+x)^{1000}",
        pytest.param("1000000000!", marks=pytest.mark.slow),
        "10**10**10",
        pytest.param("9" * 400 + "^{" + "9" * 50 + "}", marks=pytest.mark.slow, id="a power"),
        pytest.param("{" * 400, id="braces"),
        "\\sqrt{" * 80,
        "\ud800^2",
    ],
)
def test_pathological_answers_end_at_the_time_limit(comparer: Comparer, answer: str) -> None:
    before = processor_time()
    assert not comparer.compare(answer, "5.5").is_right
    assert processor_time() - before < 30
    assert comparer.compare("\\frac{4}{2}", "2").is_right  # still works


def test_comparisons_work_in_any_thread_and_keep_their_order(comparer: Comparer) -> None:
    pairs = [Pair(f"{i}\\sqrt{{2}}", f"\\sqrt{{2}}\\cdot {i % 7}") for i in range(14)]
    found: list[Comparison] = []
    thread = threading.Thread(target=lambda: found.extend(comparer.compare_all(pairs)))
    thread.start()
    thread.join()
    assert [one.is_right for one in found] == [True] * 7 + [False] * 7


@pytest.mark.slow
def test_closing_ends_the_processes() -> None:
    before = set(psutil.Process().children())
    made = Comparer(2)
    assert made.compare("1", "1").is_right
    assert not set(psutil.Process().children()) - before  # integers need none
    assert made.compare("x", "x").is_right
    assert len(set(psutil.Process().children()) - before) == 1
    made.close()
    assert not set(psutil.Process().children()) - before
    assert made.compare("y", "y").is_right
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["sympy", *(pytest.param(n, marks=pytest.mark.slow) for n in ("math_verify", "json"))]
)
def test_modules_in_the_working_folder_are_not_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{name}.py").write_text("open('was_run', 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with Comparer() as made:
        assert made.compare("x+1", "1+x").is_right
    assert not (tmp_path / "was_run").exists()


def test_settings_out_of_range() -> None:
    with pytest.raises(ConfigError, match="time_limit_s"):
        Comparer(time_limit_s=0)


def test_a_process_that_can_not_start_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparer_module.sys, "executable", "/bin/false")
    with pytest.raises(WorkerError, match="exited at its start"):
        Comparer().compare("x", "2")
