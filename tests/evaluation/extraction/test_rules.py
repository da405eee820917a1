"""The table of rules: each reads its own example, in the table and as a whole response."""

import re

import pytest

from mathcanvas_lightning.evaluation.extraction import clean, extract_answer
from mathcanvas_lightning.evaluation.extraction.rules import TABLES, Rule, first, last

RULES = [(name, rule) for name, rules in TABLES.items() for rule in rules]


@pytest.mark.parametrize(("name", "rule"), RULES, ids=[rule.example for _, rule in RULES])
def test_example(name: str, rule: Rule) -> None:
    wanted = re.findall("«(.*?)»", rule.example)
    text = re.sub("[«»]", "", rule.example)
    plain = text.replace("**", "")
    assert [clean(first([rule], plain))] == wanted
    assert (
        clean((last if name in ("CORRECT", "CHOSEN", "GUESSED") else first)(TABLES[name], plain))
        == wanted[0]
    )
    assert extract_answer(f"{text}{'' if plain.endswith(tuple('.。')) else '.'}") == wanted[
        0
    ].replace("3 out of 8", "3/8")


def test_the_last_letter_counts() -> None:
    assert last(TABLES["CORRECT"], "A is correct. No: B is correct, and C is not.") == "B"
    assert last(TABLES["CHOSEN"], "nothing") == first(TABLES["LINE"], "nothing") == ""
