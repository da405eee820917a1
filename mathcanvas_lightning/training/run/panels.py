"""Which metrics of a run are drawn together."""

from collections.abc import Iterable, Mapping

TITLES: Mapping[str, str] = {
    "ce": "text loss (ce)",
    "mse": "drawing loss (mse)",
    "loss": "loss",
    "accuracy": "accuracy",
    "answers": "sampled answers (shares)",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
    "tokens_per_s": "tokens/s",
}
"""Group of metrics -> title of its panel; other groups have their name."""
LAST = ("grad_norm", "lr", "tokens_per_s")
"""Groups at the end; those of `TITLES` are at the start, others in between."""
SECTIONS = ("data", "memory", "speed")
"""Sections whose metrics are not drawn, but for the speed."""


def group_metrics(names: Iterable[str]) -> dict[str, list[str]]:
    """Groups metrics by what they measure: the last part of their names, or a section of its own.

    Args:
        names: Names such as `train/ce`, `val/puzzles/ce`, `lr`.

    Returns:
        Title -> names, in the order of the panels. Counts, and the losses of single training sets,
        are left out; so is the weighted loss if its two parts are there.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        if (group := _group(name)) is not None:
            groups.setdefault(group, []).append(name)
    if "ce" in groups or "mse" in groups:
        groups.pop("loss", None)
    order = [*TITLES]
    ranked = sorted(groups, key=lambda g: (g in LAST, order.index(g) if g in order else 99, g))
    return {TITLES.get(group, group.replace("_", " ")): groups[group] for group in ranked}


def _group(name: str) -> str | None:
    parts = name.split("/")
    if name == "speed/tokens_per_s":
        return "tokens_per_s"
    is_count = parts[-1].endswith(("tokens", "_steps", "seconds"))
    if parts[0] in ("grad_norm", "lr", "answers") and not is_count:
        return parts[0]
    is_set = parts[0] == "train" and len(parts) > 2
    return None if is_count or is_set or parts[0] in SECTIONS else parts[-1]
