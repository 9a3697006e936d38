"""Measure what each group of weights costs at each sparsity, cell by cell, resumable: `secateur sensitivity`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.anatomy.roles import Anatomy
from secateur.artefact import find_artefact
from secateur.artifacts.claim import differing_keys, read_claim, refuse_differing
from secateur.artifacts.lock import lock_folder
from secateur.artifacts.manifest import environment
from secateur.errors import RunInterrupted, SecateurError
from secateur.evaluation.metrics import settings_of
from secateur.files import read_json, write_json
from secateur.masks.scores import needs, source_hash
from secateur.masks.statistics import GRADIENTS, LEARNED
from secateur.measure import recipe_of
from secateur.probe import Probe, Subject, open_dense
from secateur.processes import pick_device
from secateur.recipe.names import Scope, Tie, words
from secateur.recipe.names import Score as ScoreName
from secateur.recipe.open import open_recipe
from secateur.recipe.schema import Calibration, Group, Recipe
from secateur.registry import suggest
from secateur.report.sensitivity import write_report
from secateur.run_folder import dense_model
from secateur.search.curves import Curve, Measure
from secateur.short_runs import calibration_of
from secateur.tasks.precision import resolve_precision

SENSITIVITY = "sensitivity.json"
FORMAT = "secateur-sensitivity"
SPARSITIES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
NUM_ROWS = 512  # of the split, on which the loss is measured
ROLES = ("self_attention", "cross_attention", "feed_forward", "lm_head")


def sensitivity(
    model: str,
    recipe: Recipe | str | Path | None = None,
    *,
    out: str | Path,
    sparsities: Sequence[float] = SPARSITIES,
    score: str = "magnitude",
    scope: Scope = "global",
    tie: Tie = "view",
    per_layer: bool = False,
    quality: bool = False,
    rows: int = NUM_ROWS,
    overrides: Sequence[str] = (),
    split: str | None = None,
    calibration: Calibration | None = None,
    device: str = "auto",
    on_cell: Callable[[int, int, str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Prune each group of weights alone, without retraining, and measure what that costs.

    Groups are role x stack, and the head; with `per_layer` role x stack x layer. A cell that is done stands in a file
    of its own, so that a call that was stopped goes on with the next one, and a later call may ask for more.

    Args:
        model: a run folder, a stage folder, a Hugging Face folder, or a hub id; dense.
        recipe: says task and data; by default that of the run that `model` belongs to.
        out: the folder of the measurement: new, empty, or that of the same one.
        sparsities: of the group's original elements, each above 0 and below 1.
        score: of single weights; see `masks.scores`.
        scope: one threshold for the whole group, or for each of its tensors, or for each of their rows.
        tie: what happens to the table that a head shares with the embedding.
        per_layer: every layer for itself.
        quality: measure the recipe's metrics by generation too.
        rows: of the split, from its beginning, on which all is measured.
        overrides: `a.b=c`, as `--set` takes them.
        split: train, validation, test, or a split's own name; by default the recipe's.
        calibration: rows that the score asks; by default those of the recipe's first pruning.
        device: auto, cpu, cuda or mps.
        on_cell: is told (cells done, cells in all, the next cell's name).
        should_stop: asked before every cell.

    Returns:
        What sensitivity.json holds: the model and its hash, `dense_loss` in nats per target token, and one entry a
        cell, with `rise`, the loss above the dense one, and `divergence` from the dense model's outputs.

    Raises:
        CheckpointError: the folder is foreign, or holds a measurement of something else.
        RunInterrupted: stopped on request; the same call goes on.
        SecateurError: a sparsity is out of range, or the score judges no single weights.
    """
    check_request(sparsities, score)
    path = dense_model(model)
    artefact, folder, chosen = find_artefact(model), Path(out).expanduser().resolve(), pick_device(device)
    checked = open_recipe(recipe if recipe is not None else recipe_of(model), overrides)
    wanted = split or checked.evaluation.split
    state, live = open_dense(checked, path, folder, device=chosen, tie=tie)
    pairs = state.load(wanted).head(rows)
    asked = calibration or calibration_of(checked)
    named = list(checked.evaluation.metrics) if quality else []
    computing = {"precision": resolve_precision(asked.precision, chosen)}  # auto of another machine may be another
    about = {
        "format": FORMAT,
        "version": 1,
        "model": model,
        "hash": artefact.hash,
        "split": wanted,
        "rows": len(pairs),
        "data_hash": pairs.fingerprint(),
        "score": score,
        "score_code": source_hash(score),
        "scope": scope,
        "tie": tie,
        "per_layer": per_layer,
        "calibration": asked.model_dump() | computing if needs(score) else None,
        "metrics": settings_of(named),
        "seed": checked.seed,
        "task": checked.task.model_dump(mode="json", exclude={"data"}),
        "evaluation": checked.evaluation.model_dump(mode="json") if quality else None,
        "calibration_hash": state.load("train").fingerprint() if needs(score) else None,
        "environment": environment(chosen),
    }
    subjects = subjects_of(live.anatomy, score=score, scope=scope, tie=tie, per_layer=per_layer)
    _prepare(folder, about)
    with lock_folder(folder):
        cells = [(None, 0.0), *((subject, sparsity) for subject in subjects for sparsity in sorted(sparsities))]
        probe = Probe(state, live, pairs, named, asked, subjects)
        for done, (subject, sparsity) in enumerate(cells):
            name = f"{subject.name} {sparsity:g}" if subject else "dense"
            if should_stop and should_stop():
                raise RunInterrupted(f"Stopped after {done} of {len(cells)} cells. The same command goes on.")
            if on_cell:
                on_cell(done, len(cells), name)
            file = folder / f"{subject.key}-{sparsity:g}.json" if subject else folder / "dense.json"
            if not file.exists() or (subject and "divergence" not in read_json(file)):  # an earlier version's
                write_json(file, probe.measure(subject, sparsity))
        content = about | _collect(folder, subjects, sparsities)
        write_json(folder / SENSITIVITY, content)
        write_report(content, folder)
    return content


def curves_of(content: Mapping[str, Any], measure: Measure = "loss") -> list[Curve]:
    """Turn what sensitivity.json holds into curves of the loss's rise, or of the divergence from the dense model."""
    key = "rise" if measure == "loss" else measure
    names = dict.fromkeys(cell["name"] for cell in content["cells"])
    return [
        Curve(
            name,
            next(cell["num_elements"] for cell in content["cells"] if cell["name"] == name),
            tuple((cell["sparsity"], cell[key]) for cell in content["cells"] if cell["name"] == name),
        )
        for name in names
    ]


def subjects_of(anatomy: Anatomy, *, score: str, scope: Scope, tie: Tie, per_layer: bool) -> list[Subject]:
    """List the groups of a model.

    Args:
        anatomy: its map.
        score: of every group; a whole shared table that it cannot judge, for it asks activations, is judged by taylor.
        scope: of every group.
        tie: of the head, where it shares the table.
        per_layer: every layer for itself.

    Returns:
        In the order of the roles; names are like "encoder feed_forward", "decoder.3 self_attention", "lm_head".
    """
    found: list[Subject] = []
    for role in ROLES:
        weights = [weight for weight in anatomy.weights if weight.role == role]
        for stack, layer in dict.fromkeys((weight.stack, weight.layer if per_layer else None) for weight in weights):
            keys: dict[str, Any] = {"role": role, "stack": stack, "score": score, "scope": scope}
            if layer is not None:
                keys["layers"] = (layer,)
            if role == "lm_head" and anatomy.shares_head:
                keys["tie"] = tie
                if tie == "both" and not needs(score) <= {*GRADIENTS}:
                    keys["score"] = "taylor"  # what a table reads are numbers of tokens: no score of activations fits
            place = stack if layer is None else f"{stack}.{layer}"
            found.append(Subject(f"{place} {role}" if stack else role, Group(**keys)))
    return found


def check_request(sparsities: Sequence[float], score: str) -> None:
    """Refuse what cannot be measured.

    Args:
        sparsities: of a group.
        score: of single weights.

    Raises:
        SecateurError: a sparsity is out of range, or nothing judges single weights by that name without a training.
    """
    if not sparsities or not all(0 < sparsity < 1 for sparsity in sparsities):
        listed = ", ".join(f"{sparsity:g}" for sparsity in sparsities) or "nothing"
        raise SecateurError(f"sparsities: must be shares above 0 and below 1, and are {listed}.")
    if score in words(ScoreName) and not needs(score).isdisjoint(LEARNED):
        raise SecateurError(f"score: {score} is learned by training, and nothing is trained here. Choose lamp or obs.")
    if score not in words(ScoreName) and ":" not in score:
        near = suggest(score, words(ScoreName))
        raise SecateurError(f"score: no {score!r}. {near}Of single weights there are: {', '.join(words(ScoreName))}.")


_SAME = (
    "hash", "data_hash", "split", "score", "score_code", "scope", "tie", "per_layer", "calibration", "calibration_hash",
    "metrics", "evaluation", "task", "seed",
)  # fmt: skip


def _prepare(folder: Path, about: Mapping[str, Any]) -> None:
    """Refuse a folder that is not this measurement's; write what it is into a new one."""
    there = read_claim(folder, SENSITIVITY, format=FORMAT, what="sensitivity")
    if there is None:
        write_json(folder / SENSITIVITY, {**about, "dense_loss": None, "cells": []})
        return
    names = _SAME if about["hash"] else ("model", *_SAME)
    refuse_differing(folder, differing_keys(there, about, names), what="sensitivity")


def _collect(folder: Path, subjects: Sequence[Subject], sparsities: Sequence[float]) -> dict[str, Any]:
    """Read all cells that were asked for, and those that earlier calls left of the same groups.

    An earlier version's, which lack the divergence, stay aside until they are asked for and measured anew.
    """
    dense = read_json(folder / "dense.json")
    cells = []
    for subject in subjects:
        found = [read_json(file) for file in folder.glob(f"{subject.key}-*.json")]
        own = (cell for cell in found if cell["name"] == subject.name and "divergence" in cell)
        cells += sorted(own, key=lambda cell: cell["sparsity"])
    risen = [cell | {"rise": cell["loss"] - dense["loss"]} for cell in cells]
    return {"dense_loss": dense["loss"], "dense_metrics": dense["metrics"], "cells": risen}


__all__ = ["SPARSITIES", "check_request", "curves_of", "sensitivity", "subjects_of"]
