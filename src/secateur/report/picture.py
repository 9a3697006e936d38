"""One picture: quality against the counts, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secateur.report.drawing import BLACK, BLUE, GREY, VERMILION, in_points, new_figure, plain, quality_label, write_png
from secateur.report.table import Row, main_metric, stage_rows


def draw(manifest: dict[str, Any], path: str | Path) -> Path | None:
    """Draw the main metric over the counted ratio and over the stored ratio.

    The stages are numbered in the run's order and joined by a line; the axis runs from the whole model at the left to
    the smallest at the right. A prune stage is hollow, a train stage filled; bars are the 95 % intervals.

    Args:
        manifest: a run's manifest.
        path: the PNG to write.

    Returns:
        The path; none, and nothing is written, when no stage was measured by a metric that has a direction.
    """
    name = main_metric(manifest)
    rows = points(manifest)
    if name is None or not rows:
        return None
    figure = new_figure(11, 4.6 + 0.17 * ((len(rows) + 2) // 3))
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, rows, name, "counted_ratio", "counted ratio: weights that no mask removes")
    _panel(right, rows, name, "stored_ratio", "stored ratio: non-zero weights in the folder")
    scale = ", log scale" if left.get_yscale() == "log" else ""
    left.set_ylabel(quality_label(name, rows[0].metrics[name]) + scale)
    figure.suptitle(
        f"{name} on {rows[0].split or 'the evaluation split'}, stage by stage, with 95 % intervals", fontsize=11
    )
    _key(figure, rows)
    return write_png(figure, path)


def points(manifest: dict[str, Any]) -> list[Row]:
    """Choose the rows that are drawn: the states of the model that were measured by the main metric on one split.

    Args:
        manifest: a run's manifest.

    Returns:
        In the run's order; an evaluate stage changes nothing and is no point.
    """
    name = main_metric(manifest)
    rows = [row for row in stage_rows(manifest) if row.kind != "evaluate" and name in row.metrics]
    return [row for row in rows if row.split == rows[0].split and row.counts.get("counted_ratio") is not None]


def _panel(axes: Any, rows: Sequence[Row], name: str, count: str, label: str) -> None:
    """Draw one panel: the path through the stages, a mark and a number each."""
    xs = [row.counts[count] for row in rows]
    figures = [row.metrics[name] for row in rows]
    ys = [figure["value"] for figure in figures]
    axes.plot(xs, ys, color=GREY, linewidth=1, zorder=1)
    for x, figure, row in zip(xs, figures, rows, strict=True):
        colour, marker, filled = _mark(row.kind)
        low, high = figure.get("low"), figure.get("high")
        if low is not None and high is not None:
            ends = [[max(0.0, figure["value"] - low)], [max(0.0, high - figure["value"])]]
            axes.errorbar(x, figure["value"], yerr=ends, color=colour, elinewidth=1.4, capsize=3, zorder=2)
        face = colour if filled else "white"
        axes.plot(
            x, figure["value"], marker, color=colour, markerfacecolor=face, markersize=8, markeredgewidth=1.5, zorder=3
        )
    axes.set_xlabel(label)
    plain(axes)
    axes.margins(x=0.09, y=0.12)
    if min(ys) > 0 and max(ys) > _WIDE * min(ys):  # one ruined stage would press all others flat
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.invert_xaxis()
    for number, (x, y) in enumerate(_label_places(axes, xs, ys), start=1):
        row = rows[number - 1]
        axes.annotate(
            str(number),
            (xs[number - 1], ys[number - 1]),
            xytext=(x, y),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9,
            color=_mark(row.kind)[0],
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            zorder=4,
        )


def _mark(kind: str) -> tuple[str, str, bool]:
    """Choose colour, marker and filling of a stage's kind."""
    return {"prune": (VERMILION, "o", False), "train": (BLUE, "o", True)}.get(kind, (BLACK, "s", True))


_WIDE = 8.0  # largest over smallest value, from which the axis is logarithmic
_OFFSETS = [(13, 0), (-13, 0), (12, 10), (-12, 10), (12, -10), (-12, -10), (26, 0), (-26, 0), (24, 12), (-24, -12)]


def _label_places(axes: Any, xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """Find for every point an offset, in typographic points, where its number meets no mark and no other number."""
    marks = in_points(axes, list(zip(xs, ys, strict=True)))
    taken = list(marks)
    places = []
    for mark in marks:
        free = [place for place in _OFFSETS if _clear(mark[0] + place[0], mark[1] + place[1], taken)]
        place = free[0] if free else _OFFSETS[len(places) % len(_OFFSETS)]
        taken.append((mark[0] + place[0], mark[1] + place[1]))
        places.append(place)
    return places


def _clear(x: float, y: float, taken: Sequence[tuple[float, float]]) -> bool:
    return all(abs(x - other_x) > 10 or abs(y - other_y) > 9 for other_x, other_y in taken)


def _key(figure: Any, rows: Sequence[Row]) -> None:
    """Write below the panels which number is which stage."""
    from matplotlib.lines import Line2D

    handles = []
    for number, row in enumerate(rows, start=1):
        colour, marker, filled = _mark(row.kind)
        label = f"{number}  {row.label} ({row.kind})" if row.kind != row.label else f"{number}  {row.label}"
        face = colour if filled else "white"
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="", markerfacecolor=face, label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
