"""The card of a run: what it is, what it costs, what it lost, and how it was made. From the manifest alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from secateur.errors import CheckpointError
from secateur.files import read_json, write_text
from secateur.report import table
from secateur.report.picture import draw
from secateur.report.table import Cost, Entry, Row

CARD = "card.md"
PICTURE = "picture.png"
MANIFEST = "manifest.json"
_MAX_CELL = 300  # characters of an output that a table shows; predictions.jsonl holds the whole


def write_card(run_folder: str | Path) -> Path:
    """Write a run's card and its picture from its manifest.

    Args:
        run_folder: a run folder, finished or not.

    Returns:
        The card's path; `picture.png` stands beside it when there is something to draw.

    Raises:
        CheckpointError: the folder holds no manifest of ours.
    """
    folder = Path(run_folder)
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != "secateur-run":
        raise CheckpointError(f"{folder / MANIFEST}: is not the manifest of a Secateur run.")
    picture = draw(manifest, folder / PICTURE)
    return write_text(
        folder / CARD, card_text(manifest, title=folder.resolve().name, picture=PICTURE if picture else "")
    )


def card_text(manifest: Entry, *, title: str, picture: str = "") -> str:
    """Write a card's Markdown.

    Args:
        manifest: a run's manifest.
        title: the card's first line.
        picture: the picture's file name as seen from the card; empty for none.

    Returns:
        Markdown with tables, as GitHub and the Hugging Face hub show it.
    """
    loader = PackageLoader("secateur.report", package_path="")
    environment = Environment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    text = environment.get_template("card.md.j2").render(_content(manifest, title=title, picture=picture))
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def cell(text: object, limit: int = _MAX_CELL) -> str:
    """Make any text fit one cell of a Markdown table.

    Args:
        text: anything; a model's output may hold what Markdown or HTML would take for its own.
        limit: characters after which it is cut.

    >>> cell("a | b\\n<br> *c*")
    'a \\\\| b &lt;br&gt; \\\\*c\\\\*'
    """
    line = " ".join(str(text).split())
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|*_`\[\]#~$])", r"\\\1", line) or "*(empty)*"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a Markdown table; its cells are Markdown already.

    >>> print(markdown_table(["a", "b"], [["1", "2"]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def costliest_sentence(found: Sequence[Cost], metric: str) -> str:
    """Answer which group costs most.

    Args:
        found: every pruning's cost.
        metric: the name that the cost is told by.

    Returns:
        One or two sentences of Markdown; empty when no cost is known.
    """
    worst = table.costliest(found)
    if worst is None or worst.drop is None:
        return ""
    if worst.drop <= 0:
        return f"**Which group costs most?** None: {metric} did not get worse right after any pruning."
    figures = [worst.before, worst.pruned] + ([worst.retrained] if worst.retrained else [])
    path = " → ".join(table.figure_text(figure, interval=False) for figure in figures)
    text = (
        f"**Which group costs most?** {_groups_text(worst)} (stage {cell(worst.stage)}): {metric} got worse by "
        f"{table.share_text(worst.drop)} right after pruning"
    )
    text += f"; {_left_text(worst)} ({path})." if worst.retrained else f", and was not retrained ({path})."
    lasting = [cost for cost in found if cost.left is not None and cost.left > 0]
    dearest = max(lasting, key=lambda cost: cost.left or 0.0, default=None)
    if dearest is not None and dearest is not worst:
        text += f" Most of what stays lost is owed to {_groups_text(dearest)}: {table.share_text(dearest.left)} after retraining."
    return text


def _left_text(cost: Cost) -> str:
    if cost.left is None:
        return "what is left after retraining is not known"
    if cost.left <= 0:
        return f"after retraining nothing is left of that (better by {table.share_text(-cost.left)})"
    assert cost.retrained is not None
    within = _overlap(cost.before, cost.retrained)
    return f"{table.share_text(cost.left)} is left after retraining" + (", within the intervals" if within else "")


def _overlap(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    ends = [figure.get(key) for figure in (one, other) for key in ("low", "high")]
    if any(end is None for end in ends):
        return False
    return one["low"] <= other["high"] and other["low"] <= one["high"]


def _groups_text(cost: Cost) -> str:
    parts = [
        f"{cell(group.get('role', 'a group'))} {group['sparsity']:g}" for group in cost.groups if group.get("sparsity")
    ]
    return " with ".join(parts) or cell(cost.stage)


def _content(manifest: Entry, *, title: str, picture: str) -> dict[str, Any]:
    """Gather everything that the template prints."""
    main = table.main_metric(manifest)
    found = table.costs(manifest)
    rows = table.stage_rows(manifest)
    final = _final(manifest)
    examples, examples_from = _examples(manifest)
    complete = manifest.get("status") == "complete"
    return {
        "title": cell(title),
        "intro": _intro(manifest, complete=complete),
        "notice": _notice(manifest),
        "complete": complete and bool(rows),
        "model_folder": manifest.get("model_folder") or "model",
        "prefix_hint": "The path is as seen from this folder.",
        "summary": _rows_table(table.summary_rows(manifest), hashes=False),
        "costliest": costliest_sentence(found, cell(main or "")),
        "picture": picture,
        "main": cell(main or ""),
        "higher": bool(found and found[0].before.get("higher_is_better")),
        "stages": _rows_table(rows, hashes=True),
        "costs": _costs_table(found),
        "trainings": _trainings_table(manifest),
        "roles": _roles_table(final.get("sparsity") or []),
        "num_matrices": len(final.get("sparsity") or []),
        "matrices": _matrices_table(final.get("sparsity") or []),
        "collapse": _collapse_table(manifest),
        "examples": examples,
        "examples_from": examples_from,
        "facts": _facts_table(manifest),
        "notes": list(_notes(manifest, final)),
    }


def _final(manifest: Entry) -> Entry:
    """The last state that is known; nothing is known of a run that has just begun."""
    entries = table.all_entries(manifest)
    return entries[-1] if entries else {}


def _intro(manifest: Entry, *, complete: bool) -> str:
    prunes = [entry for entry in manifest.get("stages") or [] if entry["kind"] == "prune"]
    counts = _final(manifest).get("counts") or {}
    text = f"Made from `{manifest.get('model', '?')}` by Secateur"
    text += f" in {len(manifest.get('stages') or [])} stages" if complete else ""
    if prunes and counts.get("counted_ratio") is not None:
        text += (
            f". Of the dense model's weights, {table.ratio_text(counts['counted_ratio'])} are counted as kept and "
            f"{table.ratio_text(counts.get('stored_ratio'))} are stored as non-zeros, in {table.bytes_text(counts.get('num_bytes'))}"
        )
    return text + "."


def _notice(manifest: Entry) -> str:
    done = len(manifest.get("stages") or [])
    if manifest.get("status") == "complete":
        return ""
    state = "was interrupted" if manifest.get("status") == "interrupted" else "has not finished"
    return f"This run {state}: {done} stages are done, and the figures are theirs. Its command with --resume goes on."


def _metric_names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.metrics))


def _rows_table(rows: Sequence[Row], *, hashes: bool) -> str:
    if not rows:
        return ""
    metrics = _metric_names(rows)
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


def _costs_table(found: Sequence[Cost]) -> str:
    if not found:
        return ""
    header = ["stage", "removed", "before", "right after", "drop", "retrained", "brought back", "still lost"]
    return markdown_table(header, map(_cost_cells, found))


def _cost_cells(cost: Cost) -> list[str]:
    back = cost.drop - cost.left if cost.drop is not None and cost.left is not None else None
    return [
        cell(cost.stage),
        _groups_text(cost),
        table.figure_text(cost.before, interval=False),
        table.figure_text(cost.pruned, interval=False),
        table.share_text(cost.drop),
        table.figure_text(cost.retrained, interval=False),
        table.share_text(back),
        table.share_text(cost.left),
    ]


def _trainings_table(manifest: Entry) -> str:
    rows = []
    for entry in manifest.get("stages") or []:
        facts = entry.get("train")
        if facts:
            losses = [f"{facts[key]:.4f}" if facts.get(key) is not None else "–" for key in ("first_loss", "last_loss")]
            epochs = f"{facts['epochs']:g}" if facts.get("epochs") is not None else "–"
            rows.append([cell(entry["name"]), epochs, f"{facts.get('steps', 0):,}", *losses])
    return markdown_table(["stage", "epochs", "steps", "first loss", "last loss"], rows) if rows else ""


def _sparsity_cells(elements: int, removed: int) -> list[str]:
    return [f"{elements:,}", f"{removed:,}", f"{removed / elements:.4f}" if elements else "–"]


def _roles_table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    sums: dict[str, list[int]] = {}
    for entry in rows:
        known = sums.setdefault(entry["role"], [0, 0, 0])
        for place, amount in enumerate((1, entry["num_elements"], entry["num_removed"])):
            known[place] += amount
    lines = [[cell(role), str(n), *_sparsity_cells(elements, removed)] for role, (n, elements, removed) in sums.items()]
    return markdown_table(["role", "matrices", "weights", "removed", "sparsity"], lines)


def _matrices_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [[f"`{entry['path']}`", *_sparsity_cells(entry["num_elements"], entry["num_removed"])] for entry in rows]
    return markdown_table(["matrix", "weights", "removed", "sparsity"], lines)


def _collapse_table(manifest: Entry) -> str:
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


def _examples(manifest: Entry) -> tuple[str, str]:
    """Put the same rows' outputs of the dense and of the final model beside the references."""
    entries = [entry for entry in table.all_entries(manifest) if entry.get("examples")]
    if not entries:
        return "", ""
    dense = _dense(manifest)
    known = dense.get("examples") or [] if dense else []
    rows = {(example["source"], example["reference"]) for example in known}
    final = next(
        (e for e in reversed(entries) if rows & {(x["source"], x["reference"]) for x in e["examples"]}), entries[-1]
    )
    before = {(example["source"], example["reference"]): example["prediction"] for example in known}
    header = ["source", "reference", *(["dense"] if before else []), "final"]
    lines = []
    for example in final["examples"][:5]:
        middle = [cell(before.get((example["source"], example["reference"]), "–"))] if before else []
        lines.append([cell(example["source"], 160), cell(example["reference"]), *middle, cell(example["prediction"])])
    names = f"dense is stage {cell(dense['name'])}, " if dense and before else ""
    where = f"The first rows of {cell(final.get('split') or 'the evaluation split')}; {names}final is stage {cell(final['name'])}."
    return markdown_table(header, lines), where + " Long texts are cut; `predictions.jsonl` holds them whole."


def _dense(manifest: Entry) -> Entry | None:
    """Find the stage that the summary calls dense or given."""
    first = next((row for row in table.summary_rows(manifest) if row.label in ("dense", "given")), None)
    return next((entry for entry in table.all_entries(manifest) if first and entry["name"] == first.stage), None)


def _facts_table(manifest: Entry) -> str:
    environment, data = manifest.get("environment") or {}, manifest.get("data") or {}
    rows = [["command", f"`{environment.get('command') or '–'}`"], ["seed", str(manifest.get("seed", "–"))]]
    rows += [["recipe", f"`{manifest.get('recipe', 'recipe.yaml')}`, beside this card, with every default"]]
    rows += [[cell(key), cell(value)] for key, value in environment.items() if key != "command"]
    rows += [["data", f"`{data.get('path', '–')}`"]]
    rows += [[f"data: {cell(split)}", f"`{value}`"] for split, value in (data.get("hashes") or {}).items()]
    evaluation = _final(manifest).get("evaluation") or {}
    settings = ", ".join(f"{cell(key)} {cell(value)}" for key, value in evaluation.items() if key != "seconds")
    rows += [["generation", settings]] if settings else []
    return markdown_table(["", ""], rows)


def _notes(manifest: Entry, final: Entry) -> Iterable[str]:
    """Say what a reader would otherwise have to find out."""
    dense = _dense(manifest) or {}
    counts, before = final.get("counts") or {}, dense.get("counts") or {}
    ties = {group.get("tie") for entry in manifest.get("stages") or [] for group in entry.get("groups") or []}
    size, dense_size = counts.get("num_bytes"), before.get("num_bytes")
    if size is not None and dense_size is not None and size > dense_size:
        why = ": the head is stored as its own table" if ties & {"view", "untie"} else ""
        yield f"This folder is larger than the dense one ({table.bytes_text(size)} against {table.bytes_text(dense_size)}){why}."
    if any(entry["kind"] == "prune" for entry in manifest.get("stages") or []):
        yield "Zeros are stored as values: a plain folder gets neither smaller nor faster by them."
    if "view" in ties:
        yield (
            "The counted ratio takes the head's removed entries off, though the table that it shares with the embedding is "
            "needed whole; the stored ratio counts what is in the folder."
        )
    cut = [entry["name"] for entry in manifest.get("stages") or [] if (entry.get("train") or {}).get("cut_sources")]
    if cut:
        yield f"Some sources were longer than the recipe allows and were cut in training (stages {cell(', '.join(cut))})."
    if _metric_names(table.stage_rows(manifest)):
        yield "The intervals come from resampling the rows; they do not hold what another seed would change."
    splits = {row.split for row in table.stage_rows(manifest) if row.split}
    if len(splits) > 1:
        yield f"Rows measured on different splits ({cell(', '.join(sorted(splits)))}) do not compare."
