"""Measure what each group of weights costs at each sparsity, cell by cell, resumable: `secateur sensitivity`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from secateur.anatomy.check import anatomy_of
from secateur.anatomy.roles import Anatomy, Weight
from secateur.artefact import find_artefact
from secateur.artifacts.checkpoint import load_model, load_tokenizer
from secateur.artifacts.lock import lock_folder
from secateur.artifacts.manifest import environment, resolve_model
from secateur.errors import CheckpointError, SecateurError
from secateur.evaluation.evaluate import evaluate_model
from secateur.evaluation.metrics import settings_of
from secateur.fields import encode_rows, evaluation_arguments
from secateur.files import PARTIAL, read_json, write_json
from secateur.masks.group import prune_group
from secateur.masks.mask import MaskSet
from secateur.masks.scores import needs
from secateur.masks.statistics import IGNORED, Statistics
from secateur.masks.tie import untie
from secateur.measure import recipe_of
from secateur.plan_groups import Target, head_policy, target_of
from secateur.processes import Processes, pick_device
from secateur.recipe.names import Scope, Tie, words
from secateur.recipe.names import Score as ScoreName
from secateur.recipe.open import open_recipe
from secateur.recipe.schema import Calibration, Group, Recipe
from secateur.registry import suggest
from secateur.report.sensitivity import write_report
from secateur.reporter import Reporter
from secateur.run_folder import RunFolder
from secateur.search.curves import Curve
from secateur.shaping import gather, make_up
from secateur.state import Inputs, Live, Run
from secateur.tasks.encode import Collator, EncodedPairs
from secateur.tasks.pairs import Pairs

SENSITIVITY = "sensitivity.json"
FORMAT = "secateur-sensitivity"
SPARSITIES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
NUM_ROWS = 512  # of the split, on which the loss is measured
ROLES = ("self_attention", "cross_attention", "feed_forward", "lm_head")


@dataclass(frozen=True)
class Subject:
    """A group whose sensitivity is measured: its name, and the recipe's group without a sparsity."""

    name: str
    group: Group

    @property
    def key(self) -> str:
        """The name as part of a file's."""
        return self.name.replace(" ", "-")


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
        scope: one threshold for the whole group, or one for each of its tensors.
        tie: what happens to the table that a head shares with the embedding.
        per_layer: every layer for itself.
        quality: measure the recipe's metrics by generation too.
        rows: of the split, from its beginning, on which all is measured.
        overrides: `a.b=c`, as `--set` takes them.
        split: train, validation, test, or a split's own name; by default the recipe's.
        calibration: rows that the score asks.
        device: auto, cpu, cuda or mps.
        on_cell: is told (cells done, cells in all, the next cell's name).

    Returns:
        What sensitivity.json holds: the model and its hash, `dense_loss` in nats per target token, and one entry a
        cell, with `rise`, the loss above the dense one.

    Raises:
        CheckpointError: the folder is foreign, or holds a measurement of something else.
        SecateurError: a sparsity is out of range, or the score judges no single weights.
    """
    _check(sparsities, score)
    artefact, folder, chosen = find_artefact(model), Path(out).expanduser().resolve(), pick_device(device)
    checked = open_recipe(recipe if recipe is not None else recipe_of(model), overrides)
    wanted = split or checked.evaluation.split
    state, live = open_dense(checked, resolve_model(model), folder, device=chosen, tie=tie)
    pairs = state.load(wanted).head(rows)
    asked = calibration or Calibration()
    named = list(checked.evaluation.metrics) if quality else []
    about = {
        "format": FORMAT,
        "version": 1,
        "model": model,
        "hash": artefact.hash,
        "split": wanted,
        "rows": len(pairs),
        "data_hash": pairs.fingerprint(),
        "score": score,
        "scope": scope,
        "tie": tie,
        "per_layer": per_layer,
        "calibration": asked.model_dump() if needs(score) else None,
        "metrics": settings_of(named),
        "environment": environment(chosen),
    }
    subjects = subjects_of(live.anatomy, score=score, scope=scope, tie=tie, per_layer=per_layer)
    _prepare(folder, about)
    with lock_folder(folder):
        cells = [(None, 0.0), *((subject, sparsity) for subject in subjects for sparsity in sorted(sparsities))]
        bench = _Bench(state, live, pairs, named, asked, subjects)
        for done, (subject, sparsity) in enumerate(cells):
            name = f"{subject.name} {sparsity:g}" if subject else "dense"
            if on_cell:
                on_cell(done, len(cells), name)
            file = folder / f"{subject.key}-{sparsity:g}.json" if subject else folder / "dense.json"
            if not file.exists():
                write_json(file, bench.measure(subject, sparsity))
        content = about | _collect(folder, subjects, sparsities)
        write_json(folder / SENSITIVITY, content)
        write_report(content, folder)
    return content


def curves_of(content: Mapping[str, Any]) -> list[Curve]:
    """Turn what sensitivity.json holds into curves."""
    names = dict.fromkeys(cell["name"] for cell in content["cells"])
    return [
        Curve(
            name,
            next(cell["num_elements"] for cell in content["cells"] if cell["name"] == name),
            tuple((cell["sparsity"], cell["rise"]) for cell in content["cells"] if cell["name"] == name),
        )
        for name in names
    ]


def subjects_of(anatomy: Anatomy, *, score: str, scope: Scope, tie: Tie, per_layer: bool) -> list[Subject]:
    """List the groups of a model.

    Args:
        anatomy: its map.
        score: of every group.
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
            if role == "lm_head" and not anatomy["lm_head.weight"].owns:
                keys["tie"] = tie
            place = stack if layer is None else f"{stack}.{layer}"
            found.append(Subject(f"{place} {role}" if stack else role, Group(**keys)))
    return found


@contextmanager
def pruned(
    state: Run,
    live: Live,
    target: Target,
    *,
    sparsity: float,
    score: str,
    scope: Scope,
    statistics: Mapping[str, Statistics],
    calibration: Calibration,
) -> Iterator[MaskSet]:
    """Prune weights of a dense model for a while; afterwards every weight is what it was, bit for bit.

    Args:
        state: the run; its seed is that of scores that draw numbers.
        live: the dense model, without masks.
        target: the weights, and how they are masked.
        sparsity: share of them that goes.
        score: of single weights; what `obs` does not remove it adjusts.
        scope: one threshold for all of them, or one for each.
        statistics: what the score asks, of the dense model.
        calibration: rows that obs adjusts on.

    Yields:
        The masks.

    Raises:
        MaskError: the score cannot judge the weights.
    """
    masks = prune_group(
        live.model,
        target.weights,
        already=MaskSet.empty(),
        sparsity=sparsity,
        score=score,
        scope=scope,
        seed=state.recipe.seed,
        statistics=statistics,
    )
    before = {path: live.model.get_parameter(path).detach().clone() for path in masks}
    found = MaskSet(masks, dict.fromkeys(masks, target.mode), live.masks.owner)
    try:
        if score == "obs" and target.mode == "hold":
            owned = {replace(weight, storage=weight.path): masks[weight.path] for weight in target.weights}
            make_up(state, live, owned, calibration)
        live.lay(found)
        yield found
    finally:
        live.lay(MaskSet.empty(live.masks.owner))
        with torch.no_grad():
            for path, value in before.items():
                live.model.get_parameter(path).copy_(value)


class _Bench:
    """A dense model that is pruned, measured and restored, again and again."""

    def __init__(
        self,
        state: Run,
        live: Live,
        pairs: Pairs,
        metrics: Sequence[str],
        calibration: Calibration,
        subjects: Sequence[Subject],
    ) -> None:
        self.state, self.live, self.pairs, self.metrics = state, live, pairs, metrics
        self.calibration, self.subjects = calibration, subjects
        self.rows: EncodedPairs = encode_rows(state.recipe, pairs, live.tokenizer, live.model)
        self._statistics: dict[str, Statistics] | None = None

    def measure(self, subject: Subject | None, sparsity: float) -> dict[str, Any]:
        """Measure the model with one group pruned, or dense."""
        if subject is None:
            return {"loss": self._loss(), "metrics": self._quality()}
        with self._pruned(subject, sparsity) as removed:
            return {
                "name": subject.name,
                "sparsity": sparsity,
                "num_elements": sum(weight.numel for weight in self._weights(subject)),
                "num_removed": removed,
                "loss": self._loss(),
                "metrics": self._quality(),
            }

    def _weights(self, subject: Subject) -> tuple[Weight, ...]:
        return target_of(subject.group, self.live.anatomy, self.live.head).weights

    def _known(self) -> Mapping[str, Statistics]:
        """What calibration rows tell of the dense model, gathered once, when a score first asks."""
        if self._statistics is None:
            names = needs(self.subjects[0].group.score)
            wanted = {weight: names for subject in self.subjects for weight in self._weights(subject)} if names else {}
            self._statistics = gather(self.state, self.live, wanted, self.calibration)
        return self._statistics

    @contextmanager
    def _pruned(self, subject: Subject, sparsity: float) -> Iterator[int]:
        live, group = self.live, subject.group
        target = target_of(group, live.anatomy, live.head)
        with pruned(
            self.state,
            live,
            target,
            sparsity=sparsity,
            score=group.score,
            scope=group.scope,
            statistics=self._known(),
            calibration=self.calibration,
        ) as masks:
            yield masks.num_removed

    @torch.inference_mode()
    def _loss(self) -> float:
        """Mean cross-entropy per target token over all rows, in nats."""
        live, rows = self.live, self.rows
        live.model.to(self.state.inputs.device).eval()
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
        collate, size = Collator(live.tokenizer.pad_token_id), self.state.recipe.evaluation.batch_size
        total, count = 0.0, 0
        for start in range(0, len(order), size):
            batch = collate([rows[index] for index in order[start : start + size]])
            batch = {name: tensor.to(self.state.inputs.device) for name, tensor in batch.items()}
            labels = batch["labels"]
            logits = live.model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                decoder_input_ids=live.model.prepare_decoder_input_ids_from_labels(labels),
                use_cache=False,
            ).logits
            total += float(
                torch.nn.functional.cross_entropy(
                    logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
                )
            )
            count += int((labels != IGNORED).sum())
        live.model.to("cpu")
        return total / count

    def _quality(self) -> dict[str, Any]:
        if not self.metrics:
            return {}
        recipe, live = self.state.recipe, self.live
        result = evaluate_model(
            live.model,
            live.tokenizer,
            self.pairs,
            metrics=self.metrics,
            **evaluation_arguments(recipe, recipe.evaluation),
            device=self.state.inputs.device,
        )
        live.model.to("cpu")
        return {name: asdict(figure) for name, figure in result.figures.items()}


class _Reader(Run):
    """A run without a manifest: what reads its rows leaves no trace."""

    def _record_rows(self, split: str, pairs: Pairs) -> None:
        pass


def open_dense(recipe: Recipe, path: str, folder: Path, *, device: str, tie: Tie = "view") -> tuple[Run, Live]:
    """Load a dense model, and what the functions of a run want to know; nothing is written.

    Args:
        recipe: says task and data; its paths are whole.
        path: a Hugging Face folder or a hub id.
        folder: of the measurement.
        device: cpu, cuda or mps.
        tie: untie gives the head a table of its own now.

    Returns:
        A run that has no manifest, and the model without masks.

    Raises:
        CheckpointError: there is no such model.
    """
    remote = recipe.trust_remote_code
    model = load_model(path, trust_remote_code=remote)
    anatomy = anatomy_of(model)
    head = head_policy(anatomy)
    if head == "untied" or tie == "untie":
        untie(model)  # guards one that is its own already: transformers ties it again at every occasion
        head = "untied"
    inputs = Inputs({}, (), (), Reporter(), None, device, Processes())
    state = _Reader(recipe, RunFolder(folder, recipe), inputs, anatomy, {})
    tokenizer = load_tokenizer(path, trust_remote_code=remote)
    return state, Live(model, MaskSet.empty(anatomy.fingerprint()), head, anatomy, tokenizer)


def _check(sparsities: Sequence[float], score: str) -> None:
    if not sparsities or not all(0 < sparsity < 1 for sparsity in sparsities):
        listed = ", ".join(f"{sparsity:g}" for sparsity in sparsities) or "nothing"
        raise SecateurError(f"sparsities: must be shares above 0 and below 1, and are {listed}.")
    if score not in words(ScoreName) and ":" not in score:
        near = suggest(score, words(ScoreName))
        raise SecateurError(f"score: no {score!r}. {near}Of single weights there are: {', '.join(words(ScoreName))}.")


_SAME = ("hash", "data_hash", "split", "score", "scope", "tie", "per_layer", "calibration", "metrics")


def _prepare(folder: Path, about: Mapping[str, Any]) -> None:
    """Refuse a folder that is not this measurement's; write what it is into a new one."""
    if (folder / SENSITIVITY).exists():
        there = read_json(folder / SENSITIVITY)
        if not isinstance(there, dict) or there.get("format") != FORMAT:
            raise CheckpointError(
                f"{folder / SENSITIVITY}: is not one of Secateur's; left alone. Choose another --out."
            )
        names = _SAME if about["hash"] else ("model", *_SAME)
        if differing := [key for key in names if there.get(key) != about[key]]:
            raise CheckpointError(
                f"{folder}: holds a measurement with another {' and another '.join(differing)}. Choose another --out."
            )
        return
    items = [folder] if folder.is_file() else folder.iterdir() if folder.is_dir() else ()
    if any(item.name != ".lock" and not item.name.startswith(PARTIAL) for item in items):
        raise CheckpointError(f"{folder}: exists and holds no sensitivity; it is left alone. Choose another --out.")
    write_json(folder / SENSITIVITY, {**about, "dense_loss": None, "cells": []})


def _collect(folder: Path, subjects: Sequence[Subject], sparsities: Sequence[float]) -> dict[str, Any]:
    """Read all cells that were asked for, and those that earlier calls left of the same groups."""
    dense = read_json(folder / "dense.json")
    cells = []
    for subject in subjects:
        found = [read_json(file) for file in folder.glob(f"{subject.key}-0.*.json")]
        cells += sorted((cell for cell in found if cell["name"] == subject.name), key=lambda cell: cell["sparsity"])
    risen = [cell | {"rise": cell["loss"] - dense["loss"]} for cell in cells]
    return {"dense_loss": dense["loss"], "dense_metrics": dense["metrics"], "cells": risen}


__all__ = ["SPARSITIES", "Subject", "curves_of", "open_dense", "pruned", "sensitivity", "subjects_of"]
