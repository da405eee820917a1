"""A run card as a short page of Markdown."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

UNKNOWN = "not known"
MAX_CHARACTERS = 500
"""Longer values are cut; the JSON file has all of them."""


def card_markdown(card: Mapping[str, Any]) -> str:
    """Formats a card.

    Args:
        card: Content of `make_card`.
    """
    scores, commands = card["scores"], card["commands"]
    low, high = (f"{100 * bound:.1f}" for bound in scores["interval"])
    share = "-" if scores["accuracy"] is None else f"{100 * scores['accuracy']:.1f} %"
    lines = [
        f"# {scores['file']}",
        "",
        f"Accuracy {share} (95 %: {low} to {high} %), {scores['records']:,} records.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {_cell(name)} | {_cell(text)} |" for name, text in _rows(card)),
        "",
        "The same answers and scores again:",
        "",
        "```bash",
        commands["answers"] or "# the command that answered is not known",
        commands["scores"],
        "```",
    ]
    return "\n".join(lines) + "\n"


def _rows(card: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("model", "data", "prompt", "settings", "sampling", "answers"):
        value = card[name]
        known = {n: v for n, v in (value or {}).items() if v not in (None, "", [], {})}
        text = ", ".join(f"{name}: {_text(one)}" for name, one in known.items())
        yield name, text or UNKNOWN
    yield "seed", UNKNOWN if card["seed"] is None else str(card["seed"])
    for step, versions in card["software"].items():
        known = {n: v for n, v in (versions or {}).items() if v is not None}
        text = ", ".join(f"{name} {version}" for name, version in known.items())
        yield f"software of the {step}", text or UNKNOWN


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}..."


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
