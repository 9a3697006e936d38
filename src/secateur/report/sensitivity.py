"""Sensitivity's table, picture and sentence, from its sensitivity.json alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.files import write_text
from secateur.report.drawing import COLOURS, GREY, line_style, new_figure, plain, write_png
from secateur.report.sections import environment_line, markdown_table
from secateur.report.sweep import main_metric
from secateur.report.table import figure_text

TOLERATED = 0.05  # share of the dense loss by which the sentence lets the loss rise


def write_report(content: Mapping[str, Any], folder: Path) -> None:
    """Write sensitivity.md and sensitivity.png.

    Args:
        content: what sensitivity.json holds, with at least one cell.
        folder: where they go.
    """
    draw(content, folder / "sensitivity.png")
    write_text(folder / "sensitivity.md", text(content))


def reading(content: Mapping[str, Any]) -> str:
    """Say in one sentence which group limits first, and which last.

    Args:
        content: what sensitivity.json holds, with at least one cell.

    Returns:
        One sentence.

    >>> cells = [{"name": "a", "sparsity": 0.5, "rise": 1.0}, {"name": "b", "sparsity": 0.5, "rise": 0.01}]
    >>> reading({"dense_loss": 2.0, "cells": cells})
    'a limits first: it alone raises the loss by 5 % at a sparsity of 0.05; b limits last: by less at 0.50.'
    """
    rise = TOLERATED * content["dense_loss"]
    reached = {name: _reach(points, rise) for name, points in _lines(content).items()}
    highest = {name: points[-1] for name, points in _lines(content).items()}
    never = 1.0
    order = sorted(reached, key=lambda name: (never if reached[name] is None else reached[name], -highest[name][1]))
    first, last = order[0], order[-1]
    if (place := reached[first]) is None:
        return f"No group alone raises the loss by {TOLERATED * 100:g} %; {first} costs most."
    told = f"{first} limits first: it alone raises the loss by {TOLERATED * 100:g} % at a sparsity of {place:.2f}"
    if first == last:
        return f"{told}."
    end = f"by less at {highest[last][0]:.2f}" if reached[last] is None else f"at {reached[last]:.2f}"
    return f"{told}; {last} limits last: {end}."


def _lines(content: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Group name -> (sparsity, rise of the loss), in the order of the groups."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for cell in content["cells"]:
        lines.setdefault(cell["name"], []).append((cell["sparsity"], cell["rise"]))
    return lines


def _reach(points: Sequence[tuple[float, float]], rise: float) -> float | None:
    """Find the sparsity at which the loss has first risen by so much, between points in a straight line."""
    left, low = 0.0, 0.0
    for right, high in points:
        if high >= rise:
            return right if high <= low else left + (right - left) * (rise - low) / (high - low)
        left, low = right, high
    return None


def text(content: Mapping[str, Any]) -> str:
    """Write a measurement as Markdown: the sentence, the picture, the table, the environment.

    Args:
        content: what sensitivity.json holds.

    Returns:
        The whole file.
    """
    lines = _lines(content)
    sparsities = sorted({sparsity for points in lines.values() for sparsity, _ in points})
    rows = [
        [name, *(f"{dict(points)[sparsity]:+.4f}" if sparsity in dict(points) else "–" for sparsity in sparsities)]
        for name, points in lines.items()
    ]
    metric = main_metric(content["cells"]) if content["cells"][0].get("metrics") else None
    table = markdown_table(["group", *(f"{sparsity:g}" for sparsity in sparsities)], rows)
    parts = [
        "# Sensitivity",
        "",
        f"Model `{content['model']}`: each group alone pruned by `{content['score']}` (scope {content['scope']}), "
        f"nothing retrained; the loss on {content['rows']:,} rows of {content['split']} is "
        f"{content['dense_loss']:.4f} nats per target token when dense. {reading(content)}",
        "",
        "![Rise of the loss by sparsity](sensitivity.png)",
        "",
        "Rise of the loss, in nats per target token, by the group's sparsity:",
        "",
        table,
        "",
    ]
    if all("divergence" in cell for cell in content["cells"]):
        distances = {(cell["name"], cell["sparsity"]): f"{cell['divergence']:.4f}" for cell in content["cells"]}
        table = [[name, *(distances.get((name, sparsity), "–") for sparsity in sparsities)] for name in lines]
        parts += [
            "Divergence from the dense model's outputs, in nats per target token:",
            "",
            markdown_table(["group", *(f"{sparsity:g}" for sparsity in sparsities)], table),
            "",
        ]
    if metric:
        parts += [
            f"{metric} (dense: {figure_text(content['dense_metrics'][metric])}):",
            "",
            _quality(content, metric),
            "",
        ]
    parts += [environment_line(content["environment"]), ""]
    return "\n".join(parts)


def _quality(content: Mapping[str, Any], metric: str) -> str:
    rows = [[cell["name"], f"{cell['sparsity']:g}", figure_text(cell["metrics"][metric])] for cell in content["cells"]]
    return markdown_table(["group", "sparsity", metric], rows)


def draw(content: Mapping[str, Any], path: Path) -> Path:
    """Draw the rise of the loss over the sparsity, one line a group; where layers were measured, one panel a role.

    Args:
        content: what sensitivity.json holds.
        path: the PNG to write.

    Returns:
        The path.
    """
    lines = _lines(content)
    roles = list(dict.fromkeys(name.rpartition(" ")[2] for name in lines)) if content["per_layer"] else [""]
    figure = new_figure(8, 5) if len(roles) == 1 else new_figure(12, 8)
    columns = 1 if len(roles) == 1 else 2
    panels = figure.subplots(-(-len(roles) // columns), columns, squeeze=False, sharey=True).flat
    for axes, role in zip(panels, roles, strict=False):
        _panel(axes, {name: points for name, points in lines.items() if name.endswith(role)}, content["dense_loss"])
        axes.set_title(role, fontsize=10)
    for axes in list(figure.axes)[len(roles) :]:
        axes.set_visible(False)
    figure.supxlabel("sparsity of the group, all others dense", fontsize=10)
    figure.supylabel("rise of the loss, nats per target token", fontsize=10)
    title = f"What each group costs alone, by {content['score']}, before any retraining ({content['split']})"
    figure.suptitle(title, fontsize=11)
    return write_png(figure, path)


def _panel(axes: Any, lines: Mapping[str, Sequence[tuple[float, float]]], dense_loss: float) -> None:
    for index, (name, points) in enumerate(lines.items()):
        xs, ys = zip(*[(0.0, 0.0), *points], strict=True)
        style = ("-", "--", ":")[index // len(COLOURS) % 3]
        axes.plot(xs, ys, **line_style(index), linestyle=style, linewidth=1.2, markersize=5, label=name)
    axes.axhline(TOLERATED * dense_loss, color=GREY, linewidth=0.8, linestyle=":")
    label = f"+{TOLERATED * 100:g} % of the dense loss"
    axes.annotate(
        label, (0, TOLERATED * dense_loss), xytext=(2, 3), textcoords="offset points", fontsize=8, color="#666666"
    )
    linear = max(TOLERATED * dense_loss, 1e-4)  # below it the axis is not logarithmic: rises may be 0, or falls
    axes.set_yscale("symlog", linthresh=linear)
    lowest = min(rise for points in lines.values() for _, rise in points)
    axes.set_ylim(bottom=min(1.5 * lowest, -0.3 * linear))
    axes.set_yticks([tick for tick in axes.get_yticks() if tick == 0 or abs(tick) >= linear])
    plain(axes)
    axes.legend(frameon=False, fontsize=8)
