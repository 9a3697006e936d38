"""The card's parts that are tables, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from secateur.report import table
from secateur.report.table import Cost, Entry, Row

_MAX_CELL = 300  # characters of an output that a table shows; predictions.jsonl holds the whole


def cell(text: object, limit: int = _MAX_CELL) -> str:
    r"""Make any text fit one cell of a Markdown table.

    Args:
        text: anything; a model's output may hold what Markdown or HTML would take for its own.
        limit: characters after which it is cut.

    Returns:
        One line of Markdown; never empty.

    >>> cell("a | b\n<br> *c*")
    'a \\| b &lt;br&gt; \\*c\\*'
    """
    line = " ".join(str(text).split())
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"[\\|*`\[\]~$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line) or "*(empty)*"


def code(text: object) -> str:
    r"""Make any text fit one cell as code.

    >>> code("a | `b`")
    "`a \\| 'b'`"
    """
    return "`" + " ".join(str(text).split()).replace("`", "'").replace("|", "\\|") + "`"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a Markdown table; its cells are Markdown already.

    >>> print(markdown_table(["a", "b"], [["1", "2"]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def environment_line(environment: Mapping[str, Any]) -> str:
    """Say in one line where figures were measured.

    >>> environment_line({"processor": "a", "threads": 2})
    'Environment: processor a, threads 2.'
    """
    return f"Environment: {', '.join(f'{key} {value}' for key, value in environment.items())}."


def metric_names(rows: Sequence[Row]) -> list[str]:
    """List the metrics of all rows, in the order of their first use."""
    return list(dict.fromkeys(name for row in rows for name in row.metrics))


def rows_table(rows: Sequence[Row], *, hashes: bool) -> str:
    """Lay out rows with their quality, counts and times; with or without the hash of the weights."""
    if not rows:
        return ""
    metrics = metric_names(rows)
    header = ["", "on", *map(cell, metrics), "counted", "stored", "parameters", "bytes", "time"] + ["weights"] * hashes
    return markdown_table(header, [_row_cells(row, metrics, hashes=hashes) for row in rows])


def _row_cells(row: Row, metrics: Sequence[str], *, hashes: bool) -> list[str]:
    counts, parameters = row.counts, row.counts.get("num_parameters")
    name = cell(row.label) if row.label in (row.stage, row.kind) else f"{cell(row.label)} ({cell(row.stage)})"
    return [
        name,
        cell(row.split) if row.split else "–",
        *(table.figure_text(row.metrics.get(metric)) for metric in metrics),
        table.ratio_text(counts.get("counted_ratio")),
        table.ratio_text(counts.get("stored_ratio")),
        f"{parameters:,}" if parameters is not None else "–",
        table.bytes_text(counts.get("num_bytes")),
        table.seconds_text(row.seconds),
    ] + [f"`{row.hash[:12]}`" if row.hash else "–"] * hashes


def costs_table(found: Sequence[Cost]) -> str:
    """Lay out what every pruning cost and what retraining brought back."""
    if not found:
        return ""
    header = ["stage", "removed", "before", "right after", "worse by", "retrained", "brought back", "still worse by"]
    return markdown_table(header, map(_cost_cells, found))


def _cost_cells(cost: Cost) -> list[str]:
    back = cost.drop - cost.left if cost.drop is not None and cost.left is not None else None
    return [
        cell(cost.stage),
        groups_text(cost),
        table.figure_text(cost.before, interval=False),
        table.figure_text(cost.pruned, interval=False),
        table.share_text(cost.drop),
        table.figure_text(cost.retrained, interval=False),
        table.share_text(back),
        table.share_text(cost.left),
    ]


def groups_text(cost: Cost) -> str:
    """Name a pruning's groups and their sparsity: `self_attention 0.9`."""
    parts = [
        f"{cell(group.get('role', 'a group'))} {group['sparsity']:g}" for group in cost.groups if group.get("sparsity")
    ]
    return " with ".join(parts) or cell(cost.stage)


def trainings_table(manifest: Entry) -> str:
    """Lay out every training's length and losses; empty when there was none."""
    rows = []
    for entry in manifest.get("stages") or []:
        facts = entry.get("train")
        if facts:
            losses = [f"{facts[key]:.4f}" if facts.get(key) is not None else "–" for key in ("first_loss", "last_loss")]
            epochs = f"{facts['epochs']:g}" if facts.get("epochs") is not None else "–"
            arithmetic = cell(facts.get("precision") or "–")
            rows.append([cell(entry["name"]), epochs, f"{facts.get('steps', 0):,}", arithmetic, *losses])
    header = ["stage", "epochs", "steps", "arithmetic", "first loss", "last loss"]
    return markdown_table(header, rows) if rows else ""


def _sparsity_cells(elements: int, removed: int) -> list[str]:
    return [f"{elements:,}", f"{removed:,}", f"{removed / elements:.4f}" if elements else "–"]


def roles_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Sum the matrices' sparsity up by role."""
    if not rows:
        return ""
    sums: dict[str, list[int]] = {}
    for entry in rows:
        known = sums.setdefault(entry["role"], [0, 0, 0])
        for place, amount in enumerate((1, entry["num_elements"], entry["num_removed"])):
            known[place] += amount
    lines = [[cell(role), str(n), *_sparsity_cells(elements, removed)] for role, (n, elements, removed) in sums.items()]
    return markdown_table(["role", "matrices", "weights", "removed", "sparsity"], lines)


def matrices_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay out every matrix's sparsity."""
    lines = [[f"`{entry['path']}`", *_sparsity_cells(entry["num_elements"], entry["num_removed"])] for entry in rows]
    return markdown_table(["matrix", "weights", "removed", "sparsity"], lines)


def collapse_table(manifest: Entry) -> str:
    """Lay out how many outputs show a sign of collapse, stage by stage."""
    rows = []
    for entry in table.all_entries(manifest):
        signs = entry.get("collapse")
        if signs:
            total = signs.get("rows") or 0
            shown = [_count_text(signs.get(key, 0), total) for key in ("empty", "repeated", "truncated")]
            rows.append([cell(entry["name"]), f"{total:,}", *shown])
    return markdown_table(["stage", "rows", "empty", "repeated", "truncated"], rows) if rows else ""


def _count_text(count: int, total: int) -> str:
    return f"{count:,} ({100 * count / total:.1f} %)" if total and count else f"{count:,}"
