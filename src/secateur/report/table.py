"""The rows that a run is told in: dense, pruned, retrained; and what each pruning cost. From the manifest alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.recipe.names import LEAVES_MODEL

Entry = Mapping[str, Any]
"""One stage of a manifest, or its `dense`."""


@dataclass(frozen=True)
class Row:
    """One artefact: its quality, its counts and its time.

    Args:
        label: what the row is called in a table: "dense", "pruned", "retrained", or a stage's name.
        stage: the stage's name; "given" for the model as it came.
        kind: given, train, prune or evaluate.
        split: what it was measured on; empty when it was not.
        metrics: name -> {value, low, high, unit, higher_is_better}.
        counts: {counted_ratio, stored_ratio, num_parameters, num_bytes}.
        seconds: the stage's time, evaluation included.
        hash: of the weights that were measured, or none.
    """

    label: str
    stage: str
    kind: str
    split: str
    metrics: Mapping[str, Mapping[str, Any]]
    counts: Mapping[str, Any]
    seconds: float
    hash: str | None


@dataclass(frozen=True)
class Cost:
    """What one prune stage cost by the main metric, and what the training after it brought back.

    Args:
        stage: the prune stage's name.
        groups: its groups as they are in the manifest.
        before: the figure before pruning.
        pruned: right after pruning.
        retrained: after the training that follows, or none when none does.
        drop: share of `before` lost right after pruning; may be negative, and is none when `before` is 0.
        left: share of `before` still lost after retraining.
    """

    stage: str
    groups: Sequence[Mapping[str, Any]]
    before: Mapping[str, Any]
    pruned: Mapping[str, Any]
    retrained: Mapping[str, Any] | None
    drop: float | None
    left: float | None


def main_metric(manifest: Entry) -> str | None:
    """Name the metric that quality is told by: the first in the order of evaluation that has a direction.

    Args:
        manifest: a run's manifest.

    Returns:
        Its name; none when nothing was measured that has one.

    >>> figure = {"value": 1.0, "low": 1.0, "high": 1.0, "unit": "", "higher_is_better": None}
    >>> main_metric({"stages": [{"metrics": {"mean_length": figure, "per": figure | {"higher_is_better": False}}}]})
    'per'
    """
    named = (directed(entry.get("metrics", {})) for entry in all_entries(manifest))
    return next((name for name in named if name), None)


def auto_class(manifest: Entry) -> str:
    """Name the class of transformers that loads a run's model.

    Args:
        manifest: a run's manifest.

    Returns:
        The name.

    >>> auto_class({}), auto_class({"classes": ["devel", "doc"]})
    ('AutoModelForSeq2SeqLM', 'AutoModelForSequenceClassification')
    """
    return f"AutoModelFor{'SequenceClassification' if manifest.get('classes') else 'Seq2SeqLM'}"


def directed(figures: Mapping[str, Entry]) -> str | None:
    """Name the first figure that is better when it is higher, or when it is lower.

    Args:
        figures: metric -> figure, in the order of evaluation.

    Returns:
        Its name; none where no figure has a direction.
    """
    return next((name for name, figure in figures.items() if figure.get("higher_is_better") is not None), None)


def all_entries(manifest: Entry) -> list[Entry]:
    """List the model as given, if it was measured, and every finished stage."""
    dense = manifest.get("dense")
    return ([dense] if dense else []) + list(manifest.get("stages") or [])


def row(entry: Entry, label: str = "") -> Row:
    """Make a row of a stage.

    Args:
        entry: a stage of the manifest, or its `dense`.
        label: what to call it; empty for the stage's own name.

    Returns:
        The row, with empty figures where the stage was not measured.
    """
    return Row(
        label=label or entry["name"],
        stage=entry["name"],
        kind=entry["kind"],
        split=entry.get("split") or "",
        metrics=entry.get("metrics") or {},
        counts=entry.get("counts") or {},
        seconds=float(entry.get("seconds") or 0.0),
        hash=entry.get("hash"),
    )


def stage_rows(manifest: Entry) -> list[Row]:
    """Make one row of every stage, the model as given first."""
    return [row(entry) for entry in all_entries(manifest)]


def summary_rows(manifest: Entry) -> list[Row]:
    """Make the few rows that sum a run up.

    Args:
        manifest: a run's manifest, also of one that is not finished.

    Returns:
        dense: the last state before the first pruning; pruned: right after the last pruning; retrained: the last
        training after it; and every evaluate stage after that. Without pruning: given, trained. What there is not
        is left out.

    >>> stages = [{"name": name, "kind": name.split("-")[0]} for name in ("train", "prune-a", "train-a")]
    >>> [(row.label, row.stage) for row in summary_rows({"stages": stages})]
    [('dense', 'train'), ('pruned', 'prune-a'), ('retrained', 'train-a')]
    """
    entries = all_entries(manifest)
    changed = [index for index, entry in enumerate(entries) if entry["kind"] not in LEAVES_MODEL]
    prunes = [index for index in changed if entries[index]["kind"] == "prune"]
    trains = [index for index in changed if entries[index]["kind"] == "train"]
    if prunes:
        dense = [index for index in changed if index < prunes[0]][-1:]
        retrained = [index for index in trains if index > prunes[-1]][-1:]
        chosen = [*_label(dense, "dense"), (prunes[-1], "pruned"), *_label(retrained, "retrained")]
    else:
        chosen = [
            *_label([index for index in changed[:1] if entries[index]["kind"] == "given"], "given"),
            *_label(trains[-1:], "trained"),
        ]
    last = max((index for index, _ in chosen), default=-1)
    more = [(index, entries[index]["name"]) for index in range(last + 1, len(entries))]
    return [row(entries[index], label) for index, label in chosen + more]


def _label(indexes: Sequence[int], label: str) -> list[tuple[int, str]]:
    return [(index, label) for index in indexes]


def relative_drop(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    """Say which share of a figure was lost.

    Args:
        before: a figure with a value and a direction.
        after: the same metric later.

    Returns:
        Positive when it got worse, in shares of `before`; none when `before` is 0 or either is not finite.

    >>> relative_drop({"value": 0.4, "higher_is_better": True}, {"value": 0.3})
    0.25
    >>> relative_drop({"value": 10.0, "higher_is_better": False}, {"value": 30.0})
    2.0
    """
    old, new = before["value"], after["value"]
    if old is None or new is None or not old or not math.isfinite(old) or not math.isfinite(new):
        return None
    lost = (old - new) if before.get("higher_is_better") else (new - old)
    return round(lost / abs(old), 12)


def costs(manifest: Entry) -> list[Cost]:
    """Tell for every prune stage what it cost and what the training after it brought back.

    Args:
        manifest: a run's manifest.

    Returns:
        One each, in the run's order, of those with a figure before and after. Only figures of one split are compared.
    """
    name = main_metric(manifest)
    changed = [entry for entry in all_entries(manifest) if entry["kind"] not in LEAVES_MODEL]
    entries = [entry for entry in changed if name in entry.get("metrics", {})]
    found: list[Cost] = []
    for index, entry in enumerate(entries):
        if entry["kind"] != "prune" or index == 0 or entries[index - 1].get("split") != entry.get("split"):
            continue
        before, pruned = entries[index - 1]["metrics"][name], entry["metrics"][name]
        later = _retrained(entries, index)
        retrained = later["metrics"][name] if later else None
        left = relative_drop(before, retrained) if retrained else None
        drop = relative_drop(before, pruned)
        found.append(Cost(entry["name"], entry.get("groups") or [], before, pruned, retrained, drop, left))
    return found


def _retrained(entries: Sequence[Entry], index: int) -> Entry | None:
    """Find the last training between a pruning and the next."""
    found = None
    for entry in entries[index + 1 :]:
        if entry["kind"] == "prune":
            break
        found = entry if entry["kind"] == "train" else found
    return found


def costliest(found: Sequence[Cost]) -> Cost | None:
    """Find the pruning with the largest relative drop; none when no drop is known."""
    known = [cost for cost in found if cost.drop is not None]
    return max(known, key=lambda cost: cost.drop or 0.0) if known else None


def figure_text(figure: Mapping[str, Any] | None, *, interval: bool = True) -> str:
    """Write a figure with its unit and its interval.

    Args:
        figure: {value, low, high, unit}, or none.
        interval: whether to write it.

    Returns:
        The value with 2 or 4 digits after the point; a dash for no figure.

    >>> figure_text({"value": 11.6, "low": 11.21, "high": 12.0, "unit": "%"})
    '11.60 % [11.21, 12.00]'
    >>> figure_text({"value": 0.22534, "low": 0.2, "high": 0.25, "unit": ""}, interval=False)
    '0.2253'
    >>> figure_text(None)
    '–'
    """
    if not figure or figure.get("value") is None:
        return "–"
    percent = figure.get("unit") == "%"
    digits = 2 if percent or abs(figure["value"]) >= 10 else 4
    unit = f" {figure['unit']}" if figure.get("unit") else ""
    text = f"{figure['value']:.{digits}f}{unit}"
    if interval and figure.get("low") is not None and figure.get("high") is not None:
        text += f" [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"
    return text


def share_text(share: float | None) -> str:
    """Write a share as per cent, with enough digits to see a small one.

    >>> share_text(0.9377), share_text(-0.004), share_text(None)
    ('93.8 %', '-0.4 %', '–')
    """
    return "–" if share is None else f"{100 * share:.1f} %"


def ratio_text(ratio: float | None) -> str:
    """Write a ratio to the seven digits that the report used.

    >>> ratio_text(0.81283671), ratio_text(1.0)
    ('0.8128367', '1.0')
    """
    return "–" if ratio is None else "1.0" if ratio == 1 else f"{ratio:.7f}"


def bytes_text(num_bytes: float | None) -> str:
    """Write a number of bytes in MB of a million.

    >>> bytes_text(242_000_000), bytes_text(7_340_032), bytes_text(40_000)
    ('242 MB', '7.34 MB', '0.04 MB')
    """
    if num_bytes is None:
        return "–"
    megabytes = num_bytes / 1e6
    return f"{megabytes:.0f} MB" if megabytes >= 100 else f"{megabytes:.2f} MB"


def seconds_text(seconds: float) -> str:
    """Write a duration in the two largest units that say something.

    >>> seconds_text(1.23), seconds_text(75), seconds_text(122_400)
    ('1.2 s', '1 min 15 s', '34 h 0 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
