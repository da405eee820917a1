"""Draws the curves of runs with matplotlib."""

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mathcanvas_lightning.common.atomic import written_whole
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.training.run.folder import RunFolder, find_run
from mathcanvas_lightning.training.run.metrics import Points, read_metrics
from mathcanvas_lightning.training.run.panels import group_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS, PANEL_INCHES, DPI = 3, (4.6, 2.9), 110
SMOOTHED_FROM, SMOOTHING = 60, 0.9
"""Number of points from which a training curve has a smooth line too, and its decay."""
LOG_RATIO = 50.0
"""Ratio of highest to lowest value from which an axis is logarithmic."""
Metrics = Mapping[str, Points]


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvesReport:
    """A picture of curves."""

    path: str
    """The picture."""
    last: Mapping[str, Mapping[str, float]]
    """Run -> metric -> its last value, of the metrics that are drawn."""
    steps: Mapping[str, int]
    """Run -> number of its last step with metrics."""


def draw_curves(runs: Sequence[str], *, output: str | None = None) -> CurvesReport:
    """Draws the curves of a run, or of several runs over each other.

    Args:
        runs: Folders of runs, names of runs below runs/, or metrics.csv files.
        output: Picture to write (.png, .svg or .pdf); by default curves.png in the folder of the
            run, or in the working folder for several runs.

    Returns:
        The picture and the last values.

    Raises:
        InputError: If a run has no metrics.
        ConfigError: If there is no run, or matplotlib is missing.
    """
    if not runs:
        raise ConfigError(
            "runs", found="no run", wanted="folders of runs", remedy="Name one or more."
        )
    sources = [_place(run) for run in runs]
    metrics = dict(zip(_labels(sources), map(read_metrics, sources), strict=True))
    if output is None:
        is_one_run = len(sources) == 1 and sources[0].is_dir()
        output = str(RunFolder(sources[0] if is_one_run else Path()).curves)
    path = local_path(output)
    save(draw(metrics), path)
    shown = group_metrics({name for found in metrics.values() for name in found})
    names = [name for group in shown.values() for name in group]
    return CurvesReport(
        path=str(path),
        last={r: {n: m[n][-1][1] for n in names if n in m} for r, m in metrics.items()},
        steps={r: max((p[-1][0] + 1 for p in m.values()), default=0) for r, m in metrics.items()},
    )


def draw(runs: Mapping[str, Metrics]) -> "Figure":
    """Draws one panel for each kind of metric.

    Args:
        runs: Label of a run -> its metrics.

    Returns:
        The figure; its labels name the runs if there are several.

    Raises:
        ConfigError: If matplotlib is missing.
    """
    figure = _new_figure()
    panels = group_metrics({name for metrics in runs.values() for name in metrics})
    rows = max(1, -(-len(panels) // COLUMNS))
    figure.set_size_inches(COLUMNS * PANEL_INCHES[0], rows * PANEL_INCHES[1])
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, names) in zip(axes, panels.items(), strict=False):
        axis.set_title(title, fontsize=10, loc="left")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        for number, (run, metrics) in enumerate(runs.items()):
            own = [name for name in names if name in metrics]
            for place, name in enumerate(own):
                label = name if len(runs) == 1 else f"{run}: {name}"
                colour = f"C{(number if len(runs) > 1 else place) % 10}"
                style = ("-", "--", ":", "-.")[place % 4] if len(runs) > 1 else "-"
                _line(axis, metrics[name], label, colour, style)
        _finish(axis, [value for m in runs.values() for n in names for _, value in m.get(n, [])])
    return figure


def save(figure: "Figure", path: Path) -> None:
    """Writes a figure atomically, in the format of the file's suffix.

    Args:
        figure: The figure.
        path: The file.

    Raises:
        ConfigError: If matplotlib can't write this format.
    """
    kind = path.suffix.removeprefix(".").lower() or "png"
    known = figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise ConfigError(
            "--output",
            found=str(path),
            wanted=f"a picture: {', '.join(sorted(known))}",
            remedy="Choose another suffix.",
        )
    with written_whole(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=DPI)


def as_svg(figure: "Figure") -> bytes:
    """Renders a figure as SVG with its texts as texts."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "curves"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _new_figure() -> "Figure":
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError(
            "curves",
            found=f"a package that is missing ({error})",
            wanted="matplotlib",
            remedy="pip install matplotlib",
        ) from None
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _line(axis: Any, points: Points, label: str, colour: str, style: str) -> None:
    steps, values = [step + 1 for step, _ in points], [value for _, value in points]
    few = len(points) < SMOOTHED_FROM
    marker = "." if len(points) <= 12 else ""
    axis.plot(
        steps,
        values,
        style,
        color=colour,
        marker=marker,
        alpha=1.0 if few else 0.3,
        linewidth=1.3 if few else 0.8,
        label=label if few else None,
    )
    if not few:
        axis.plot(steps, _smooth(values), style, color=colour, linewidth=1.5, label=label)


def _smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average without a bias to the first value."""
    smooth, average, weight = [], 0.0, 0.0
    for value in values:
        average = SMOOTHING * average + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        smooth.append(average / weight)
    return smooth


def _finish(axis: Any, values: Sequence[float]) -> None:
    axis.legend(fontsize=7, frameon=False)
    axis.tick_params(labelsize=8)
    axis.set_xlabel("step", fontsize=8)
    if values and min(values) > 0 and max(values) / min(values) > LOG_RATIO:
        axis.set_yscale("log")


def _place(run: str) -> Path:
    path = local_path(run)
    if path.suffix == ".csv" and not path.is_file():
        raise InputError(
            run, found="no such file", wanted="the metrics of a run", remedy="Check the path."
        )
    return path if path.is_file() else find_run(run).path


def _labels(sources: Sequence[Path]) -> list[str]:
    """Names of runs; their paths where names are equal."""
    names = [place.parent.name if place.is_file() else place.resolve().name for place in sources]
    paths = [str(place) for place in sources]
    labels = names if len(set(names)) == len(names) else paths
    return (
        labels
        if len(set(labels)) == len(labels)
        else [f"{label} ({number})" for number, label in enumerate(labels, 1)]
    )
