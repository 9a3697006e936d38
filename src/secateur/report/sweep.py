"""A sweep's table and picture, from its sweep.json alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.files import write_text
from secateur.report.drawing import line_style, new_figure, plain, quality_label, write_png
from secateur.report.sections import environment_line, markdown_table
from secateur.report.table import directed, figure_text

Cell = Mapping[str, Any]


def write_report(content: Mapping[str, Any], folder: Path) -> None:
    """Write sweep.md, and sweep.png where a metric has a direction.

    Args:
        content: what sweep.json holds.
        folder: where they go.
    """
    if main_metric(content["cells"]):
        draw(content, folder / "sweep.png")
    write_text(folder / "sweep.md", text(content))


def main_metric(cells: Sequence[Cell]) -> str | None:
    """Name the first metric that has a direction, or none."""
    return directed(cells[0]["metrics"]) if cells else None


def reading(cells: Sequence[Cell]) -> str:
    """Say in one sentence what a sweep shows: the best cell, and the fastest whose interval reaches its figure.

    >>> figure = {"value": 0.3, "low": 0.2, "high": 0.4, "unit": "", "higher_is_better": True}
    >>> cell = {"num_beams": 1, "max_new_tokens": 20, "metrics": {"rouge1": figure}, "latency_ms": 9.0}
    >>> reading([cell])
    'rouge1 is best with greedy, 20 tokens: 0.3000 [0.2000, 0.4000], 9 ms.'
    """
    name = main_metric(cells)
    if name is None:
        return "No metric of this sweep has a direction."
    sign = 1 if cells[0]["metrics"][name]["higher_is_better"] else -1
    best = max(cells, key=lambda cell: sign * cell["metrics"][name]["value"])
    wanted = best["metrics"][name]["value"]
    end = "high" if sign > 0 else "low"
    near = [cell for cell in cells if _reaches(cell["metrics"][name], wanted, end, sign)]
    fastest = min(near, key=lambda cell: cell["latency_ms"])
    told = f"{name} is best with {_label(best)}: {figure_text(best['metrics'][name])}, {best['latency_ms']:,.0f} ms"
    if fastest is best:
        return told + "."
    ratio = best["latency_ms"] / fastest["latency_ms"]
    return (
        f"{told}. The fastest whose interval reaches that is {_label(fastest)}: "
        f"{figure_text(fastest['metrics'][name])}, {fastest['latency_ms']:,.0f} ms, {ratio:.1f} times faster."
    )


def _reaches(figure: Mapping[str, Any], wanted: float, end: str, sign: int) -> bool:
    bound = figure[end] if figure[end] is not None else figure["value"]
    return sign * bound >= sign * wanted


def _label(cell: Cell) -> str:
    beams = "greedy" if cell["num_beams"] == 1 else f"{cell['num_beams']} beams"
    return f"{beams}, {cell['max_new_tokens']} tokens"


def cells_table(content: Mapping[str, Any]) -> str:
    """Lay out the cells of a sweep, one a row.

    Args:
        content: what sweep.json holds.

    Returns:
        A Markdown table, and one sentence that says what its columns are.
    """
    cells = content["cells"]
    names = list(cells[0]["metrics"]) if cells else []
    header = ["beams", "new tokens", *names, "truncated", "ms a text", "latency ms"]
    rows = [
        [
            str(cell["num_beams"]),
            str(cell["max_new_tokens"]),
            *(figure_text(cell["metrics"][name]) for name in names),
            f"{cell['collapse']['truncated'] / content['rows']:.1%}",
            f"{cell['ms_per_text']:,.1f}",
            f"{cell['latency_ms']:,.0f}",
        ]
        for cell in cells
    ]
    return (
        f"{markdown_table(header, rows)}\n\n"
        "New tokens do not count the start token; truncated: outputs that the limit ended. ms a text: wall clock "
        f"in batches of {content['batch_size']}; latency: median of single texts. 95 % intervals."
    )


def text(content: Mapping[str, Any]) -> str:
    """Write a sweep as Markdown: what was measured, the sentence, the table, the environment.

    Args:
        content: what sweep.json holds.

    Returns:
        The whole file.
    """
    cells = content["cells"]
    picture = ["![Quality against latency](sweep.png)", ""] if main_metric(cells) else []
    return "\n".join(
        [
            "# Generation length and beams",
            "",
            f"Model `{content['model']}` on {content['rows']:,} rows of {content['split']}. {reading(cells)}",
            "",
            *picture,
            cells_table(content),
            "",
            environment_line(content["environment"]),
            "",
        ]
    )


def draw(content: Mapping[str, Any], path: Path) -> Path:
    """Draw the main metric over the latency: one line for each number of beams, one mark for each length.

    Args:
        content: what sweep.json holds; a metric of it has a direction.
        path: the PNG to write.

    Returns:
        The path.
    """
    cells, name = content["cells"], main_metric(content["cells"])
    figure = new_figure(8, 5)
    axes = figure.subplots()
    for index, beams in enumerate(dict.fromkeys(cell["num_beams"] for cell in cells)):
        line = sorted((cell for cell in cells if cell["num_beams"] == beams), key=lambda cell: cell["latency_ms"])
        _line(axes, line, str(name), line_style(index))
    axes.set_ylabel(quality_label(str(name), cells[0]["metrics"][name]))
    axes.set_xlabel("median latency of one text, ms" + _scale(axes, [cell["latency_ms"] for cell in cells]))
    plain(axes)
    axes.margins(x=0.08, y=0.12)
    axes.legend(frameon=False)
    figure.suptitle(f"{name} on {content['split']}, by limit of new tokens (numbers), with 95 % intervals", fontsize=11)
    return write_png(figure, path)


def _scale(axes: Any, latencies: Sequence[float]) -> str:
    """Spread latencies that differ widely."""
    if max(latencies) <= 4 * min(latencies):
        return ""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    return ", log scale"


def _line(axes: Any, line: Sequence[Cell], name: str, style: Mapping[str, str]) -> None:
    figures = [cell["metrics"][name] for cell in line]
    xs, ys = [cell["latency_ms"] for cell in line], [figure["value"] for figure in figures]
    lows = [0.0 if figure["low"] is None else max(0.0, figure["value"] - figure["low"]) for figure in figures]
    highs = [0.0 if figure["high"] is None else max(0.0, figure["high"] - figure["value"]) for figure in figures]
    beams = line[0]["num_beams"]
    label = "greedy" if beams == 1 else f"{beams} beams"
    axes.errorbar(xs, ys, yerr=[lows, highs], **style, linewidth=1.2, capsize=3, label=label)
    for x, y, cell in zip(xs, ys, line, strict=True):
        told, colour = str(cell["max_new_tokens"]), style["color"]
        axes.annotate(told, (x, y), xytext=(9, 7), textcoords="offset points", fontsize=9, color=colour)
