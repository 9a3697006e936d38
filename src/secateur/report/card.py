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
from secateur.report.sections import (
    cell,
    code,
    collapse_table,
    costs_table,
    groups_text,
    markdown_table,
    matrices_table,
    metric_names,
    roles_table,
    rows_table,
    trainings_table,
)
from secateur.report.table import Cost, Entry

CARD = "card.md"
PICTURE = "picture.png"
MANIFEST = "manifest.json"
_MAX_NOTE = 2_000  # characters


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
        f"**Which group costs most?** {groups_text(worst)} (stage {cell(worst.stage)}): {metric} got worse by "
        f"{table.share_text(worst.drop)} right after pruning"
    )
    text += f"; {_left_text(worst)} ({path})." if worst.retrained else f", and was not retrained ({path})."
    lasting = [cost for cost in found if cost.left is not None and cost.left > 0]
    dearest = max(lasting, key=lambda cost: cost.left or 0.0, default=None)
    if dearest is not None and dearest is not worst:
        text += f" Most of what stays lost is owed to {groups_text(dearest)}: {table.share_text(dearest.left)}."
    return text


def _left_text(cost: Cost) -> str:
    if cost.left is None:
        return "what is left after retraining is not known"
    if cost.left <= 0:
        return f"after retraining nothing of that is left: it is better by {table.share_text(-cost.left)}"
    assert cost.retrained is not None
    within = _overlap(cost.before, cost.retrained)
    return f"{table.share_text(cost.left)} is left after retraining" + (", within the intervals" if within else "")


def _overlap(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    ends = [figure.get(key) for figure in (one, other) for key in ("low", "high")]
    if any(end is None for end in ends):
        return False
    return one["low"] <= other["high"] and other["low"] <= one["high"]


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
        "ragged": bool(manifest.get("ragged")),
        "auto_class": table.auto_class(manifest),
        "summary": rows_table(table.summary_rows(manifest), hashes=False),
        "costliest": costliest_sentence(found, cell(main or "")),
        "picture": picture,
        "main": cell(main or ""),
        "higher": bool(found and found[0].before.get("higher_is_better")),
        "stages": rows_table(rows, hashes=True),
        "costs": costs_table(found),
        "trainings": trainings_table(manifest),
        "roles": roles_table(final.get("sparsity") or []),
        "num_matrices": len(final.get("sparsity") or []),
        "matrices": matrices_table(final.get("sparsity") or []),
        "collapse": collapse_table(manifest),
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
    stages = manifest.get("stages") or []
    prunes = [entry for entry in stages if entry["kind"] in ("prune", "import")]
    counts = _final(manifest).get("counts") or {}
    text = f"Made from {code(manifest.get('model', '?'))} by Secateur"
    text += f" in {len(stages)} {'stage' if len(stages) == 1 else 'stages'}" if complete else ""
    for taken in (entry["import"] for entry in stages if entry.get("import")):
        text += f"; what is removed was taken over from {code(taken['checkpoint'])} ({cell(taken['form'])})"
    if prunes and counts.get("counted_ratio") is not None:
        counted, stored = (table.ratio_text(counts.get(key)) for key in ("counted_ratio", "stored_ratio"))
        text += f". Of the dense model's weights, {counted} are counted as kept and {stored} are stored as non-zeros"
        text += f", in {table.bytes_text(counts.get('num_bytes'))}"
    return text + "."


def _notice(manifest: Entry) -> str:
    done = len(manifest.get("stages") or [])
    if manifest.get("status") == "complete":
        return ""
    state = "was interrupted" if manifest.get("status") == "interrupted" else "has not finished"
    return f"This run {state}: {done} stages are done, the figures are theirs. `secateur run FOLDER --resume` goes on."


def _examples(manifest: Entry) -> tuple[str, str]:
    """Put the same rows' outputs of the dense and of the final model beside the references."""
    entries = [entry for entry in table.all_entries(manifest) if entry.get("examples")]
    if not entries:
        return "", ""
    dense = _dense(manifest)
    known = dense.get("examples") or [] if dense else []
    before = {_row(example): example["prediction"] for example in known}
    final = next((e for e in reversed(entries) if before.keys() & {_row(x) for x in e["examples"]}), entries[-1])
    header = ["source", "reference", *(["dense"] if before else []), "final"]
    lines = []
    for example in final["examples"][:5]:
        middle = [cell(before.get(_row(example), "–"))] if before else []
        lines.append([_source(example), cell(example["reference"]), *middle, cell(example["prediction"])])
    names = f"dense is stage {cell(dense['name'])}, " if dense and before else ""
    where = f"The first rows of {cell(final.get('split') or 'the evaluation split')}; {names}"
    where += f"final is stage {cell(final['name'])}. Long texts are cut; `predictions.jsonl` holds them whole."
    return markdown_table(header, lines), where


def _row(example: Entry) -> tuple[object, str]:
    """Tell an example from others: JSON gives a source of two texts as a list."""
    source = example["source"]
    return source if isinstance(source, str) else tuple(source), example["reference"]


def _source(example: Entry) -> str:
    """Show a source, of two texts both, each cut by itself."""
    source = example["source"]
    return cell(source, 160) if isinstance(source, str) else "<br>".join(cell(text, 80) for text in source)


def _dense(manifest: Entry) -> Entry | None:
    """Find the stage that the summary calls dense or given."""
    first = next((row for row in table.summary_rows(manifest) if row.label in ("dense", "given")), None)
    return next((entry for entry in table.all_entries(manifest) if first and entry["name"] == first.stage), None)


def _facts_table(manifest: Entry) -> str:
    environment, data = manifest.get("environment") or {}, manifest.get("data") or {}
    rows = [["command", code(environment.get("command") or "–")], ["seed", _or_dash(manifest.get("seed"))]]
    recipe = manifest.get("recipe", "recipe.yaml")
    rows += [
        ["recipe", code(recipe) + ", beside this card, with every default" if recipe else "none: no task is known"]
    ]
    rows += [[cell(key), cell(value)] for key, value in environment.items() if key != "command"]
    rows += [["data", code(_or_dash(data.get("path")))]]
    rows += [[f"data: {cell(split)}", code(value)] for split, value in (data.get("hashes") or {}).items()]
    rows += [
        [f"left out: {cell(split)}", f"{count:,} rows without a text"]
        for split, count in (data.get("skipped") or {}).items()
    ]
    evaluation = _final(manifest).get("evaluation") or {}
    settings = ", ".join(f"{cell(key)} {cell(value)}" for key, value in evaluation.items() if key != "seconds")
    classes = manifest.get("classes")
    rows += [["classification" if classes else "generation", settings]] if settings else []
    rows += [["head", f"{'new, ' if manifest.get('new_head') else ''}for {len(classes)} classes"]] if classes else []
    return markdown_table(["", ""], rows)


def _or_dash(value: object) -> str:
    return "–" if value is None else str(value)


def _notes(manifest: Entry, final: Entry) -> Iterable[str]:
    """Say what a reader would otherwise have to find out."""
    dense = _dense(manifest) or {}
    imports = [entry["import"] for entry in manifest.get("stages") or [] if entry.get("import")]
    yield from (cell(note, _MAX_NOTE) for taken in imports for note in taken.get("notes") or [])
    if imports and not metric_names(table.stage_rows(manifest)):
        yield (
            "Nothing was measured, as there was no data: this card says nothing of quality. `secateur evaluate RUN "
            "--recipe FILE` measures it."
        )
    counts, before = final.get("counts") or {}, dense.get("counts") or {}
    ties = {group.get("tie") for entry in manifest.get("stages") or [] for group in entry.get("groups") or []}
    size, dense_size = counts.get("num_bytes"), before.get("num_bytes")
    if size is not None and dense_size is not None and size > dense_size:
        why = ": the head is stored as its own table" if ties & {"view", "untie"} else ""
        sizes = f"{table.bytes_text(size)} against {table.bytes_text(dense_size)}"
        yield f"This folder is larger than the dense one ({sizes}){why}."
    num_prunes = sum(entry["kind"] == "prune" for entry in manifest.get("stages") or [])
    if num_prunes > 1:
        yield "What a group costs holds for this order and these shares: a later group meets a model pruned already."
    if num_prunes or imports:
        yield "Zeros are stored as values: a plain folder gets neither smaller nor faster by them."
    if "view" in ties:
        yield (
            "The counted ratio takes the head's removed entries off, though the embedding needs their table whole; "
            "the stored ratio counts what is in the folder."
        )
    cut = [entry["name"] for entry in manifest.get("stages") or [] if (entry.get("train") or {}).get("cut_sources")]
    if cut:
        stages = cell(", ".join(cut))
        yield f"Some sources were longer than the recipe allows and were cut in training (stages {stages})."
    if metric_names(table.stage_rows(manifest)):
        yield "The intervals come from resampling the rows; they do not hold what another seed would change."
    splits = {row.split for row in table.stage_rows(manifest) if row.split}
    if len(splits) > 1:
        yield f"Rows measured on different splits ({cell(', '.join(sorted(splits)))}) do not compare."
