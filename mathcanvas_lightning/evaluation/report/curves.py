"""Curves of a training run as lines of a chart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mathcanvas_lightning.training.run.metrics import read_metrics

WIDTH, HEIGHT = 300, 120
"""Size of a chart in its own units; the page scales it."""
CHARTS = {
    "training losses": ("train/", ("train/ce", "train/mse")),
    "validation losses": ("val/", ("/ce", "/mse")),
    "validation token accuracy": ("val/", ("/accuracy",)),
    "held-out answers right": ("answers/", ("/accuracy", "/states", "/drawings", "/everything")),
}
"""Title -> how the names of the metrics begin, and how they may end."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line of a chart."""

    name: str
    points: str
    """Coordinates of an SVG polyline."""
    first: float
    last: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Curves with common axes; the vertical one starts at 0."""

    title: str
    curves: tuple[Curve, ...]
    last_step: int
    top: float
    """Value at the upper end of the vertical axis."""


def read_charts(path: Path) -> list[Chart]:
    """Reads the curves of a run.

    Args:
        path: The folder of a run, or its metrics.csv.

    Returns:
        A chart for each entry of `CHARTS` that the run has metrics for.

    Raises:
        InputError: If the file can't be read, or has no steps.
    """
    metrics = read_metrics(path)
    charts = []
    for title, (start, ends) in CHARTS.items():
        found = {
            name: points
            for name, points in metrics.items()
            if name.startswith(start) and name.endswith(ends) and len(points) > 1
        }
        if found:
            charts.append(_chart(title, found))
    return charts


def _chart(title: str, metrics: Mapping[str, Points]) -> Chart:
    last_step = max(step for points in metrics.values() for step, _ in points)
    top = max(value for points in metrics.values() for _, value in points)
    return Chart(
        title=title,
        curves=tuple(_curve(name, metrics[name], last_step, top) for name in sorted(metrics)),
        last_step=int(last_step) + 1,
        top=top,
    )


def _curve(name: str, points: Points, last_step: float, top: float) -> Curve:
    placed = (
        f"{WIDTH * step / max(last_step, 1):.1f},{HEIGHT * (1 - value / (top or 1)):.1f}"
        for step, value in points
    )
    return Curve(name=name, points=" ".join(placed), first=points[0][1], last=points[-1][1])
