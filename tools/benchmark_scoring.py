"""Verdicts on the golden table of answers, beside the rules of other scorers, and scoring speed.

The table is tests/evaluation/pairs.tsv; benchmark_scoring_baseline.py describes the other rules.
inspect_ai and lm-evaluation-harness take part where they are installed. Pairs with options are left
out, since other scorers take none. A verdict that takes too long or
raises an error counts as "different".

Example:
  python tools/benchmark_scoring.py
  python tools/benchmark_scoring.py --num_records 100000 --json figures.json
"""

import argparse
import json
import logging
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmark_scoring_baseline import (
    exact_match,
    installed_scorers,
    math_verify_alone,
    minerva,
)
from rich.console import Console
from rich.table import Table

from mathcanvas_lightning.evaluation.comparison.equivalence import compare
from mathcanvas_lightning.evaluation.extraction import extract_answers, reference_parts
from mathcanvas_lightning.evaluation.scoring import score_responses

sys.path.append(str(Path(__file__).parents[1]))
from tests.evaluation.pairs import PATH, WHOLE_RESPONSES, GoldenPair, read_pairs

TIME_LIMIT_S = 5.0
Verdict = Callable[[GoldenPair], bool]


def ours(pair: GoldenPair) -> bool:
    """The verdict of this library, by the road that `mathcanvas score` takes."""
    if pair.kind not in WHOLE_RESPONSES:
        return compare(pair.given, pair.expected).is_right
    expected = reference_parts(pair.expected)
    given = extract_answers(pair.given, len(expected))
    return all(compare(a, b).is_right for a, b in zip(given, expected, strict=True))


def other(rule: Callable[[str, str], bool]) -> Verdict:
    """The verdict of a rule on two texts."""
    return lambda pair: rule(pair.given, pair.expected)


SCORERS: dict[str, Verdict] = {
    "ours": ours,
    "math-verify": other(math_verify_alone),
    "minerva rules": other(minerva),
    "exact match": other(exact_match),
} | {name: other(rule) for name, rule in installed_scorers().items()}


@contextmanager
def time_limit() -> Iterator[None]:
    """Raises TimeoutError in the main thread after the time limit."""

    def stop(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def measure(verdict: Verdict, pairs: list[GoldenPair]) -> dict[str, float]:
    """Counts wrong verdicts."""
    start, right_for_wrong, wrong_for_right = time.perf_counter(), 0, 0
    for pair in pairs:
        try:
            with time_limit():
                is_right = verdict(pair)
        except Exception:  # other scorers raise many kinds
            is_right = False
        right_for_wrong += is_right and not pair.is_right
        wrong_for_right += pair.is_right and not is_right
    return {
        "verdicts": len(pairs),
        "wrong": right_for_wrong + wrong_for_right,
        "right for a wrong answer": right_for_wrong,
        "wrong for a right answer": wrong_for_right,
        "ms a verdict": 1000 * (time.perf_counter() - start) / len(pairs),
    }


def time_scoring(num_records: int) -> dict[str, float]:
    """Scores a file of many records, made of the table's responses and values."""
    pairs = [pair for pair in read_pairs() if pair.kind not in WHOLE_RESPONSES]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answers.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for number in range(num_records):
                pair = pairs[number % len(pairs)]
                # A different number makes every answer different, so no result is remembered.
                record = {
                    "answer": f"{number % 997}" if number % 4 else pair.expected,
                    "model_answer": f"Step {number}.\nSo the answer is \\boxed{{{number % 991}}}."
                    if number % 4
                    else f"After some work: \\boxed{{{pair.given}}}",
                }
                file.write(json.dumps(record) + "\n")
        start, worked_s = time.perf_counter(), processor_s()
        score_responses(str(path), progress=False)
        return {
            "records": num_records,
            "seconds": time.perf_counter() - start,
            "processor seconds": processor_s() - worked_s,
        }


def processor_s() -> float:
    """Processor time of this process and of child processes that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=Path, default=PATH, help="table of pairs")
    parser.add_argument("--num_records", type=int, default=0, help="also score so many records")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    logging.disable()
    pairs = [pair for pair in read_pairs(options.pairs) if not pair.options]
    figures = {name: measure(verdict, pairs) for name, verdict in SCORERS.items()}
    table = Table("", *next(iter(figures.values())), title=f"Scorers on {options.pairs.name}")
    for name, row in figures.items():
        table.add_row(
            name, *(f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in row.values())
        )
    Console().print(table)
    written: dict[str, Any] = {"scorers": figures}
    if options.num_records:
        written["speed"] = time_scoring(options.num_records)
        Console().print(written["speed"])
    if options.json:
        options.json.write_text(json.dumps(written, indent=1))


if __name__ == "__main__":
    main()
