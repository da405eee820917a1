"""A self-contained page of a run: curves, drawings over the steps, settings."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from mathcanvas_lightning.common.html_page import PagePicture, write_page
from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.training.run.curves import as_svg, draw, save
from mathcanvas_lightning.training.run.folder import RunFolder, next_commands
from mathcanvas_lightning.training.run.metrics import read_metrics
from mathcanvas_lightning.training.run.panels import group_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_PICTURES, MAX_WIDTH_PX = 12, 320


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPage:
    """A page that was written."""

    path: Path
    num_curves: int
    """Metrics with a curve."""
    num_pictures: int
    """Drawings of validations."""


def write_run_page(run: RunFolder) -> RunPage:
    """Writes `curves.png` and `report.html` of a run.

    Args:
        run: The run.

    Returns:
        The page and what is on it.

    Raises:
        InputError: If the run has no metrics.
        ConfigError: If matplotlib is missing.
    """
    metrics = read_metrics(run.path)
    name = run.path.resolve().name
    figure = draw({name: metrics})
    save(figure, run.curves)
    groups = group_metrics(metrics)
    pictures = [_picture(step, path) for step, path in _chosen(run.pictures())]
    write_page(
        run.page,
        "training/run/report.html.j2",
        title=f"Training run {run.path.resolve().parent.name}/{name}",
        curves=curves_picture(figure),
        values={
            title: [(n, f"{metrics[n][0][1]:.4g}", f"{metrics[n][-1][1]:.4g}") for n in names]
            for title, names in groups.items()
        },
        last_step=max((points[-1][0] + 1 for points in metrics.values()), default=0),
        pictures=pictures,
        commands=next_commands(run.path),
        config=_config_text(run),
    )
    return RunPage(
        path=run.page,
        num_curves=sum(len(names) for names in groups.values()),
        num_pictures=len(pictures),
    )


def curves_picture(figure: "Figure") -> PagePicture:
    """The curves of a run, for a page."""
    return PagePicture(data=as_svg(figure), format="svg+xml", caption="Curves of the run")


def _chosen(pictures: dict[int, Path]) -> list[tuple[int, Path]]:
    """The first, the last, and evenly spaced pictures between them."""
    found = list(pictures.items())
    if len(found) <= MAX_PICTURES:
        return found
    last = len(found) - 1
    return [found[round(i * last / (MAX_PICTURES - 1))] for i in range(MAX_PICTURES)]


def _picture(step: int, path: Path) -> PagePicture:
    caption = f"step {step:,}"
    with Image.open(path) as picture:
        if picture.width <= MAX_WIDTH_PX:
            return PagePicture(data=path.read_bytes(), format="png", caption=caption)
        small = picture.convert("RGB")
        small.thumbnail((MAX_WIDTH_PX, 8 * MAX_WIDTH_PX))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return PagePicture(data=buffer.getvalue(), format="jpeg", caption=caption)


def _config_text(run: RunFolder) -> str:
    try:
        run.settings()
    except InputError:
        return ""
    return run.config_file().read_text(encoding="utf-8")
