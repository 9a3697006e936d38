"""A bench's table and picture, from its bench.json alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.files import write_text
from secateur.report.drawing import COLOURS, in_points, new_figure, plain, write_png
from secateur.report.sections import environment_line, markdown_table
from secateur.report.table import directed, figure_text

_LENGTHS = {
    True: "No engine may write an end token, so that all write as many tokens.",
    False: "Outputs are as they come: compare tokens a text before milliseconds, or read per token.",
}


def write_report(content: Mapping[str, Any], folder: Path) -> None:
    """Write bench.md and bench.png.

    Args:
        content: what bench.json holds.
        folder: where they go.
    """
    draw(content, folder / "bench.png")
    write_text(folder / "bench.md", text(content))


def text(content: Mapping[str, Any]) -> str:
    """Write a bench as Markdown: what was measured, the table, what was skipped, the environment.

    Args:
        content: what bench.json holds.

    Returns:
        The whole file.
    """
    names = list(next((row["metrics"] for row in content["rows"] if row["metrics"]), {}))
    header = ["model", "engine", "hash", "batch", "threads", "ms", "p90", "first token", "a token", "tokens/s"]
    header += ["tokens a text", "MB", "peak MiB", "times faster", "per token", *names]
    rows = [
        [
            row["model"],
            row["engine"],
            (row["hash"] or "-")[:12],
            str(row["batch"]),
            str(row["threads"]),
            *(_number(row[key]) for key in ("latency_ms", "latency_p90_ms", "first_token_ms", "ms_per_token")),
            *(_number(row[key]) for key in ("tokens_per_second", "tokens_per_text")),
            _number(row["num_bytes"] and row["num_bytes"] / 1e6),
            "not measured" if row["peak_memory_mib"] is None else _number(row["peak_memory_mib"]),
            *(_number(row[key], 2) for key in ("times_faster", "times_faster_per_token")),
            *(figure_text(row["metrics"][name]) if name in row["metrics"] else "-" for name in names),
        ]
        for row in content["rows"]
    ]
    skipped = [
        f"- {item['model']} in {item['engine']}: {' '.join(item['reason'].split())}" for item in content["skipped"]
    ]
    return "\n".join(
        [
            "# Speed",
            "",
            f"{content['inputs']}, {_length(content)} new tokens, greedy, {content['repeats']} rounds in turns. "
            f"Times faster: than the fastest engine of `{content['dense']}` with as many texts and threads.",
            "",
            "![Milliseconds](bench.png)",
            "",
            markdown_table(header, rows),
            "",
            f"Milliseconds are of a batch. {_LENGTHS[content['exactly']]} MB: weight files. Peak: a fresh process with "
            "all its libraries. 95 % intervals; quality is of outputs as they come, greedy too.",
            "",
            *(["Skipped:", "", *skipped, ""] if skipped else []),
            environment_line(content["environment"]),
            "",
        ]
    )


def _length(content: Mapping[str, Any]) -> str:
    return f"{'exactly' if content['exactly'] else 'at most'} {content['new_tokens']}"


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def draw(content: Mapping[str, Any], path: Path) -> Path:
    """Draw quality (bytes without it) over the milliseconds of the first batch size and number of threads.

    Args:
        content: what bench.json holds, with at least one row.
        path: the PNG to write.

    Returns:
        The path.
    """
    from matplotlib.ticker import FuncFormatter

    head = content["rows"][0]
    rows = [row for row in content["rows"] if (row["batch"], row["threads"]) == (head["batch"], head["threads"])]
    name = directed(head["metrics"])
    rows = [row for row in rows if (name in row["metrics"] if name else row["num_bytes"] is not None)]
    figure = new_figure(8, 5)
    axes = figure.subplots()
    labels: list[tuple[float, float, str, str]] = []
    for index, model in enumerate(content["models"]):
        colour = COLOURS[index % len(COLOURS)]
        mine = [row for row in rows if row["model"] == model]
        ys = [row["metrics"][name]["value"] if name else row["num_bytes"] / 1e6 for row in mine]
        label = f"{Path(model).name} (dense)" if model == content["dense"] else Path(model).name
        xs = [row["latency_ms"] for row in mine]
        axes.scatter(xs, ys, color=colour, marker="s" if model == content["dense"] else "o", label=label)
        for x, y, row in zip(xs, ys, mine, strict=True):
            if name and row["metrics"][name]["low"] is not None:  # a difference within the intervals is none
                figures = row["metrics"][name]
                axes.vlines(x, figures["low"], figures["high"], color=colour, alpha=0.35, linewidth=1)
            labels.append((x, y, row["engine"], colour))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # else 10^1
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "2357" else ""))
    threads = f"{head['threads']} thread{'s' if head['threads'] > 1 else ''}"
    axes.set_xlabel(f"median ms of batch {head['batch']}, {_length(content)} new tokens, {threads}, log scale")
    better = name and ("higher" if head["metrics"][name]["higher_is_better"] else "lower")
    axes.set_ylabel(f"{name} ({better} is better)" if name else "weight files, MB")
    plain(axes)
    axes.margins(x=0.12, y=0.12)
    write_beside(axes, labels)
    axes.legend(frameon=False)
    return write_png(figure, path)


# Points from a mark to its label, in the order of preference.
_BESIDE = [(6, 5), (6, -11), (-6, 5), (-6, -11), (6, 15), (6, -21), (-6, 15), (-6, -21)]
_WIDTH, _HEIGHT = 4.8, 8.0  # of a letter and of a line, in points, rather more than less


def write_beside(axes: Any, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Write the text of each (x, y, text, colour) beside its mark, where it meets no other mark or text if it can."""
    marks = in_points(axes, [(x, y) for x, y, _, _ in labels]) if labels else []
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in marks]
    for mark, (x, y, text, colour) in zip(marks, labels, strict=True):
        boxes = [_box(mark, place, text) for place in _BESIDE]
        index = next((index for index, box in enumerate(boxes) if not any(_meet(box, other) for other in taken)), 0)
        taken.append(boxes[index])
        place, side = _BESIDE[index], "left" if _BESIDE[index][0] > 0 else "right"
        axes.annotate(text, (x, y), xytext=place, textcoords="offset points", fontsize=8, color=colour, ha=side)


def _box(mark: Sequence[float], place: tuple[int, int], text: str) -> tuple[float, float, float, float]:
    x, y, width = mark[0] + place[0], mark[1] + place[1], _WIDTH * len(text)
    return (x, y, x + width, y + _HEIGHT) if place[0] > 0 else (x - width, y, x, y + _HEIGHT)


def _meet(one: Sequence[float], other: Sequence[float]) -> bool:
    """Say whether two boxes (left, low, right, high) overlap.

    >>> _meet((0, 0, 2, 1), (1, 0, 3, 1)), _meet((0, 0, 2, 1), (2, 0, 3, 1))
    (True, False)
    """
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
