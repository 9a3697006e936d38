"""What all pictures share: colours, marks, axes without clutter, and the file they go to."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.files import write_bytes

# Okabe and Ito's colours, which colour-blind readers tell apart; marks, fillings and dashes say the same again.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
AMBER, SKY, BLACK, GREY = "#E69F00", "#56B4E9", "#000000", "#999999"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, AMBER, SKY, BLACK, GREY)
MARKERS = "osD^vPX*"
_DOTS_PER_INCH = 150


def new_figure(width: float, height: float) -> Any:
    """Make an empty figure of matplotlib's, in inches; no pyplot, because a library leaves the user's figures alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def line_style(index: int) -> dict[str, str]:
    """Choose colour and mark of the so-many-th line; the first 64 differ.

    >>> line_style(0), line_style(8)
    ({'color': '#0072B2', 'marker': 'o'}, {'color': '#0072B2', 'marker': 's'})
    """
    turn, place = divmod(index, len(COLOURS))
    return {"color": COLOURS[place], "marker": MARKERS[(place + turn) % len(MARKERS)]}


def plain(axes: Any) -> None:
    """Give axes a light grid behind the data, and no frame above and to the right."""
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def quality_label(name: str, figure: Mapping[str, Any]) -> str:
    """Label an axis with a metric, its unit and its direction.

    >>> quality_label("per", {"unit": "%", "higher_is_better": False})
    'per (%), lower is better'
    """
    unit = f" ({figure['unit']})" if figure.get("unit") else ""
    return f"{name}{unit}, {'higher' if figure.get('higher_is_better') else 'lower'} is better"


def in_points(axes: Any, marks: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Say where marks (x, y) lie on paper, in typographic points, once the layout is made."""
    axes.figure.canvas.draw()
    scale = 72 / axes.figure.dpi
    return [(float(x) * scale, float(y) * scale) for x, y in axes.transData.transform(list(marks))]


def write_png(figure: Any, path: str | Path) -> Path:
    """Write a figure.

    Args:
        figure: as `new_figure` makes it.
        path: the PNG.

    Returns:
        The path.
    """
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # Told by the clock: on a busy machine a legend of three lines is "slow", and an error where warnings are.
        warnings.filterwarnings("ignore", message="Creating legend with loc")
        figure.savefig(stream, format="png", dpi=_DOTS_PER_INCH)
    return write_bytes(path, stream.getvalue())
