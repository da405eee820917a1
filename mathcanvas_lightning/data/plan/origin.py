"""Everything that a plan depends on: compared when a run resumes, and named if it differs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DATASET_TOPIC = "data set "
"""Start of the topic of a data set, before its name."""
Topics = Mapping[str, Mapping[str, str]]
"""Topic -> setting, as users write it -> its value as a short text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOrigin:
    """Everything that the plan of a run depends on."""

    fingerprint: Mapping[str, str]
    """Topic -> hash of its values."""
    values: Topics
    """The same values to show."""


def explain(
    topics: Sequence[str],
    saved: Topics,
    ours: Topics,
) -> str:
    """The settings of some topics that differ, each with both values.

    Args:
        topics: Topics whose hashes differ.
        saved: Values of a checkpoint; empty in those of earlier versions.
        ours: Values of this run.
    """
    return "; ".join(text for topic in topics for text in _explained(topic, saved, ours))


def _explained(topic: str, saved: Topics, ours: Topics) -> list[str]:
    if topic not in saved or topic not in ours:
        if not saved:
            return [topic]
        return [f"{topic}, which {'is new' if topic in ours else 'is missing now'}"]
    old, new = saved[topic], ours[topic]
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    return [f"{n}: {old.get(n, 'none')}, now {new.get(n, 'none')}" for n in names] or [topic]
