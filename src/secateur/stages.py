"""Do one stage of a run and write all of it. This file alone turns the fields of a stage into arguments."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from secateur.anatomy.check import anatomy_of
from secateur.anatomy.roles import Anatomy
from secateur.artefact import Artefact, find_artefact
from secateur.artifacts.checkpoint import load_live, round_weights, save_live, save_plain
from secateur.artifacts.counts import Counts, count_folder, count_model, counted_ratio
from secateur.artifacts.loading import load_tokenizer
from secateur.artifacts.manifest import (
    STAGE,
    artefact_hash,
    resolve_model,
)
from secateur.artifacts.pack import read_packed_facts
from secateur.errors import CheckpointError, RunInterrupted
from secateur.evaluation.evaluate import EvalResult, evaluate_model, write_predictions
from secateur.evaluation.metrics import settings_of
from secateur.fields import (
    encode_rows,
    encoding_limits,
    evaluation_arguments,
    evaluation_facts,
    evaluation_settings,
    needed,
)
from secateur.files import read_json, remove_partial, write_json
from secateur.gradual import GradualPruner
from secateur.labelling import label
from secateur.masks.mask import MaskSet
from secateur.masks.tie import counted_removed
from secateur.nni_stage import steps_of
from secateur.pruning import prune_live
from secateur.recipe.schema import Cut, Evaluation, Prune, Stage, Train
from secateur.retrain.schedule import GradualCallback
from secateur.retrain.trainer import train
from secateur.rewinding import rewind
from secateur.run_folder import IMPORT, LIVE, WORK
from secateur.shaping import cut_live, width_of
from secateur.shipping import export_stage, pack_stage
from secateur.state import Inputs, Live, Run
from secateur.tasks.corrupt import denoise
from secateur.tasks.encode import Collator
from secateur.tasks.precision import SLOW_BF16, computes_bf16
from secateur.tasks.sampler import LengthSampler
from secateur.teaching import hold_teacher, load_distiller

NUM_EXAMPLES = 5
_FOR_OTHERS = {  # what a train block does not say to the trainer
    "group_by_length", "denoising", "weights", "teacher", "distillation", "nni_distiller", "pseudo_labels", "rewind",
}  # fmt: skip


def stage_seed(seed: int, name: str) -> int:
    """Derive a stage's own seed; it does not change when other stages come or go.

    >>> stage_seed(42, "dense") == stage_seed(42, "dense") != stage_seed(42, "final")
    True
    """
    return int(hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()[:8], 16)


def measure_given(state: Run, live: Live) -> None:
    """Evaluate the model as it was given, once.

    Args:
        state: the run; its manifest gets the entry.
        live: the given model.
    """
    reporter = state.inputs.reporter
    place = state.folder.stage(0)
    earlier = state.processes.first(lambda: read_json(place / STAGE) if (place / STAGE).exists() else None)
    path = Path(resolve_model(state.recipe.model))
    digest = artefact_hash(str(path))
    if earlier is not None:
        if earlier["hash"] != digest:
            raise CheckpointError(
                f"{path}: not the weights that the run was started with. Bring them back, start it anew with "
                "--overwrite, or choose another --out."
            )
        state.manifest["dense"] = earlier
        reporter.stage_skipped("given")
        return
    reporter.stage_started(0, len(state.recipe.stages), "given", "given")
    started = time.monotonic()
    if len(live.masks):
        counts = _counts(state, live, path, find_artefact(str(path)))
    else:
        counts = count_model(live.model, path if path.is_dir() else None)
    result = _evaluate(state, live.model, live.tokenizer, state.recipe.evaluation)
    entry = {
        "name": "given",
        "kind": "given",
        "folder": place.name,
        "hash": digest,
        "seconds": time.monotonic() - started,
        "counts": counts.as_json(),
        "sparsity": sparsity_rows(live.masks, live.anatomy),
        **_quality(state, state.recipe.evaluation, result),
    }
    _close_stage(state, place, entry, result)
    state.manifest["dense"] = entry
    state.write("running")
    reporter.stage_finished(entry)


def run_stage(state: Run, live: Live, index: int, stage: Stage) -> None:
    """Do one stage and write all of it; stage.json comes last and says that the rest is there.

    Args:
        state: the run; its manifest gets the entry.
        live: the model, which a train or prune stage changes.
        index: of the stage, 1 for the first.
        stage: what to do.

    Raises:
        RunInterrupted: stopped on request.
        SecateurError: anything else that the message tells how to mend.
    """
    started = time.monotonic()
    place = state.folder.stage(index)
    facts: dict[str, Any] = {}
    weights_are_there = state.processes.first(lambda: _open_stage(place))
    if stage.changes_model:
        if weights_are_there:
            facts = restore(state, live, place)
        else:
            if stage.train:
                done = _train(state, live, place, stage.name, stage.train)
            elif stage.prune:
                done = _prune(state, live, place, stage.name, stage.prune)
            else:
                done = _cut(state, live, stage.cut)
            seconds = done.get("work_seconds", 0.0) + time.monotonic() - started
            facts = _save(state, live, place, done | {"work_seconds": seconds}, stage.training)
    done, measuring = dict(facts.get("done", {})), time.monotonic()
    if stage.export or stage.pack:
        done = state.processes.first(lambda: _ship(state, live, stage, index))
    settings = evaluation_settings(state.recipe.evaluation, stage.evaluate)
    # What is measured is what is kept on disk: loaded anew, as a user would.
    artefact = find_artefact(str(state.folder.newest_artefact(index)))
    with artefact.opened(trust_remote_code=state.recipe.trust_remote_code) as (writer, tokenizer):
        result = _evaluate(state, writer, tokenizer, settings)
    counts = _counts(state, live, state.folder.newest_model(index), artefact)
    entry = {
        "name": stage.name,
        "kind": IMPORT if IMPORT in done else stage.kind,
        "folder": place.name,
        "hash": artefact.hash,
        "seconds": done.pop("work_seconds", 0.0) + time.monotonic() - measuring,
        "counts": counts.as_json(),
        **done,
        "sparsity": sparsity_rows(live.masks, live.anatomy),
        **_quality(state, settings, result),
    }
    _close_stage(state, place, entry, result)
    tidy(state, index)
    state.entries.append(entry)


def _open_stage(place: Path) -> bool:
    """Make a stage's folder; tell whether an earlier process left its weights there."""
    place.mkdir(parents=True, exist_ok=True)
    remove_partial(place)
    return (place / LIVE).exists()


def _close_stage(state: Run, place: Path, entry: Mapping[str, Any], result: EvalResult) -> None:
    """Write what a stage's evaluation found."""

    def write() -> None:
        write_predictions(place / "predictions.jsonl", state.load(entry["split"]), result.predictions)
        write_json(place / STAGE, entry)

    state.processes.first(write)


def tidy(state: Run, index: int) -> None:
    """Remove what a finished stage makes needless; see `RunFolder.tidy`."""
    state.processes.first(lambda: state.folder.tidy(index))


def _prune(state: Run, live: Live, place: Path, name: str, settings: Prune) -> dict[str, Any]:
    """Prune at once, or step by step while the model is trained."""
    if settings.train is None:
        return prune_live(state, live, settings)
    pruner = GradualPruner(state, live, settings)
    done = _train(state, live, place, name, settings.train, GradualCallback(pruner, steps_of(settings)))
    return {"groups": pruner.groups} | done


def _train(
    state: Run, live: Live, place: Path, name: str, settings: Train, gradual: GradualCallback | None = None
) -> dict[str, Any]:
    if settings.rewind is not None:
        rewind(state, live, settings.rewind)
    seed, inputs = stage_seed(state.recipe.seed, name), state.inputs
    state.processes.first(lambda: hold_teacher(state, settings, place / WORK))
    pairs, labelled = label(state, settings, state.load("train"))
    rows = encode_rows(state.recipe, pairs, live.tokenizer, live.model)
    values = settings.model_dump(exclude=_FOR_OTHERS)
    sampler = LengthSampler(rows.length_keys, settings.batch_size, seed=seed, by_length=settings.group_by_length)
    mixture = settings.denoising and denoise(
        rows,
        live.tokenizer,
        sampler=sampler,
        epochs=settings.epochs,
        seed=seed,
        **encoding_limits(state.recipe, live.model),
        **dict(settings.denoising),
    )
    distiller, rows, taught = load_distiller(state, live, settings, pairs, rows)
    if settings.precision == "bf16" and not computes_bf16(inputs.device):
        inputs.reporter.noted(SLOW_BF16)
    result = train(
        live.model,
        mixture or rows,
        collate=Collator(live.tokenizer.pad_token_id),
        sampler=sampler,
        masks=live.masks,
        work=place / WORK,
        seed=seed,
        device=inputs.device,
        callbacks=inputs.callbacks,
        on_progress=inputs.reporter.training,
        should_stop=inputs.should_stop,
        processes=inputs.processes,
        distiller=distiller,
        gradual=gradual,
        **values,
    )
    live.model.to("cpu").eval()
    round_weights(live.model, settings.weights)
    facts = asdict(result) | {"cut_sources": rows.num_cut_sources, "cut_targets": rows.num_cut_targets}
    earlier = facts.pop("earlier_seconds")
    facts |= {**taught, **labelled, "losses": [list(pair) for pair in result.losses]}
    return {"train": facts, "work_seconds": earlier}


def _cut(state: Run, live: Live, settings: Cut | None) -> dict[str, Any]:
    assert settings is not None
    pairs = state.load(state.recipe.evaluation.split).head(settings.rows)
    rows = encode_rows(state.recipe, pairs, live.tokenizer, live.model)
    return {"cut": cut_live(live, rows, width=settings.width or width_of(state.recipe))}


def _save(state: Run, live: Live, place: Path, done: dict[str, Any], settings: Train | None) -> dict[str, Any]:
    """Write the stage's plain model and what resuming needs; live.json comes last."""

    def write() -> dict[str, Any]:
        dtype = settings.weights if settings else "fp32"
        save_plain(live.model, live.tokenizer, place / "model", masks=live.masks, dtype=dtype)
        facts = {"live": save_live(live.model, place, masks=live.masks), "head": live.head, "done": done}
        if live.is_cut:
            facts["is_cut"] = True
        write_json(place / LIVE, facts)
        return facts

    return state.processes.first(write)


def _evaluate(state: Run, model: Any, tokenizer: Any, settings: Evaluation) -> EvalResult:
    inputs = state.inputs
    result = evaluate_model(
        model,
        tokenizer,
        state.load(settings.split),
        metrics=[*settings.metrics, *inputs.metrics],
        **evaluation_arguments(state.recipe, settings),
        device=inputs.device,
        processes=inputs.processes,
        on_batch=lambda done, total: _evaluated(inputs, done, total),
    )
    if isinstance(model, torch.nn.Module):
        model.to("cpu")
    return result


def _evaluated(inputs: Inputs, done: int, total: int) -> None:
    """Report a batch, and stop if that was asked for; the stage's weights are on disk already."""
    inputs.reporter.evaluating(done, total)
    if inputs.stopping():
        raise RunInterrupted("Stopped while evaluating.")


def _quality(state: Run, settings: Evaluation, result: EvalResult) -> dict[str, Any]:
    pairs = state.load(settings.split)
    examples = [
        {"source": source, "reference": " | ".join(references), "prediction": prediction.text}
        for source, references, prediction in zip(pairs.sources, pairs.references, result.predictions, strict=True)
    ][:NUM_EXAMPLES]
    return {
        "metrics": {name: asdict(figure) for name, figure in result.figures.items()},
        "split": settings.split,
        "evaluation": evaluation_facts(state.recipe, settings)
        | {"settings": settings_of([*settings.metrics, *state.inputs.metrics]), "seconds": result.seconds},
        "collapse": result.collapse and asdict(result.collapse),
        "examples": examples,
    }


def _ship(state: Run, live: Live, stage: Stage, index: int) -> dict[str, Any]:
    """Write the artefact of an export or pack stage, unless an earlier process did."""
    model, place = state.folder.newest_model(index), state.folder.stage(index)
    if stage.pack:
        return {"pack": pack_stage(stage.pack, model, place)}
    assert stage.export is not None
    pairs = state.load(state.recipe.evaluation.split).head(stage.export.rows)
    rows = encode_rows(state.recipe, pairs, live.tokenizer, live.model)
    limit = needed(state.recipe.evaluation.max_new_tokens)
    return {"export": export_stage(stage.export, model, place, rows, max_new_tokens=limit)}


def _counts(state: Run, live: Live, folder: Path, artefact: Artefact) -> Counts:
    if not any(folder.glob("*.safetensors")):  # the given model, from a hub or of torch's files: no stage changed it
        return count_model(live.model, folder if folder.is_dir() else None)
    dense, shares_head = state.anatomy.num_parameters, state.anatomy.shares_head
    removed = counted_removed(live.masks, shared=state.anatomy.table.path if shares_head else None)
    if live.is_cut:
        small = anatomy_of(live.model)
        grown = small.table.numel if shares_head and not small.shares_head else 0  # no parameter of the dense model
        removed["cut out"] = dense + grown - small.num_parameters
    counts = count_folder(folder, dense_parameters=dense, counted=counted_ratio(dense, removed))
    if artefact.kind == "packed":
        packed = read_packed_facts(Path(artefact.path))
        return packed.counts(dense_parameters=dense, counted=counts.counted_ratio)
    if artefact.kind != "transformers" and artefact.num_bytes is not None:
        return replace(counts, num_bytes=artefact.num_bytes)
    return counts


def sparsity_rows(masks: MaskSet, anatomy: Anatomy) -> list[dict[str, Any]]:
    """Say of every masked matrix how much of it is removed, as the manifest holds it.

    Args:
        masks: of the model.
        anatomy: of the model.

    Returns:
        One JSON-ready row each: path, role, stack, layer, num_elements, num_removed, mode.
    """
    rows = []
    for path, mask in masks.masks.items():
        weight = anatomy[path]
        rows.append(
            {
                "path": path,
                "role": weight.role,
                "stack": weight.stack,
                "layer": weight.layer,
                "num_elements": mask.numel(),
                "num_removed": masks.removed(path),
                "mode": masks.modes[path],
            }
        )
    return rows


def restore(state: Run, live: Live, place: Path) -> dict[str, Any]:
    """Load a stage's weights and masks into the live model.

    Args:
        state: the run.
        live: gets the stage's model.
        place: the stage's folder.

    Returns:
        What live.json says.

    Raises:
        CheckpointError: the folder is damaged, or its masks belong to another model.
    """
    facts = read_json(place / LIVE)
    model, masks = load_live(place, facts["live"], trust_remote_code=state.recipe.trust_remote_code)
    anatomy = anatomy_of(model)
    is_cut = bool(facts.get("is_cut"))
    if masks.owner != anatomy.fingerprint() or not (is_cut or masks.owner == state.anatomy.fingerprint()):
        raise CheckpointError(f"{place}: its masks belong to another model than the recipe's. Choose another --out.")
    if live.attachment:
        live.attachment.detach()
    live.model, live.head, live.attachment, live.is_cut = model, facts["head"], None, is_cut
    if is_cut:  # before a cut the map is the given model's, whose head may since have got a table of its own
        trust = state.recipe.trust_remote_code
        live.anatomy, live.tokenizer = anatomy, load_tokenizer(str(place / "model"), trust_remote_code=trust)
    live.lay(masks)
    return facts
