"""When failures of requests are a reason to test the server."""

from hypothesis import given
from hypothesis import strategies as st

from mathcanvas_lightning.generation.backends.server.streak import MAX_FAILURES, FailureStreak


def streak(*results: str) -> FailureStreak:
    """The streak after some results: "" for an answer, else the kind of a failure."""
    made = FailureStreak()
    for kind in results:
        if kind:
            made.add_failure(kind)
        else:
            made.add_answer()
    return made


def test_the_first_refusal_is_tested_at_once() -> None:
    assert streak("http_403").needs_test
    assert not streak("", "http_403").needs_test
    assert not streak("http_400").needs_test
    assert streak("", *["http_403"] * MAX_FAILURES).needs_test


@given(
    before=st.lists(st.sampled_from(["", "http_400", "quota", "prompt_too_long"])),
    kinds=st.lists(st.sampled_from(["http_400", "quota", "timeout"]), max_size=2 * MAX_FAILURES),
)
def test_only_failures_since_the_last_answer_count(before: list[str], kinds: list[str]) -> None:
    assert streak(*before, "", *kinds).needs_test == (len(kinds) >= MAX_FAILURES)
    assert not streak(*before, *kinds, "").needs_test


def test_long_prompts_do_not_count() -> None:
    assert not streak("", *["prompt_too_long"] * 99).needs_test
