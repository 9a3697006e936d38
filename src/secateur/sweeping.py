"""Measure one model at several generation lengths and beams: quality against milliseconds, cell by cell, resumable."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from secateur.artefact import find_artefact
from secateur.artifacts.claim import differing_keys, read_claim, refuse_differing
from secateur.artifacts.lock import lock_folder
from secateur.artifacts.manifest import environment
from secateur.errors import SecateurError
from secateur.evaluation.evaluate import engine_of, evaluate_model, write_predictions
from secateur.evaluation.generate import predict
from secateur.evaluation.metrics import UserMetric, settings_of
from secateur.fields import evaluation_arguments, load_split, refuse_classes
from secateur.files import read_json, write_json
from secateur.measure import recipe_of
from secateur.recipe.open import open_recipe
from secateur.recipe.schema import Recipe
from secateur.report.sweep import write_report
from secateur.tasks.pairs import spread

SWEEP = "sweep.json"
FORMAT = "secateur-sweep"
NUM_LATENCIES = 20  # texts, one at a time, whose median is a cell's latency


def sweep(
    model: str,
    recipe: Recipe | str | Path | None = None,
    *,
    out: str | Path,
    max_new_tokens: Sequence[int],
    num_beams: Sequence[int] = (1,),
    overrides: Sequence[str] = (),
    split: str | None = None,
    rows: Iterable[Mapping[str, Any]] | None = None,
    metrics: Sequence[UserMetric] = (),
    device: str = "auto",
    on_cell: Callable[[int, int, str], None] | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure a model at every pair of a generation length and a number of beams.

    A cell that is done stands in a file of its own; a sweep that was stopped goes on with the next one.

    Args:
        model: a run folder (its final model), a stage folder, a Hugging Face folder, an export, a packed file, or a
            hub id.
        recipe: says task, data and metrics; by default the recipe of the run that `model` belongs to.
        out: the sweep's folder: new, empty, or that of the same sweep, which it goes on with.
        max_new_tokens: lengths, the start token not counted, each at least 1.
        num_beams: numbers of beams, each at least 1; 1 is greedy.
        overrides: `a.b=c`, as `--set` takes them.
        split: train, validation, test, or a split's own name; by default the recipe's. Choose lengths on validation.
        rows: rows of your own instead of the recipe's data.
        metrics: functions of your own, beside the recipe's metrics.
        device: auto, cpu, cuda or mps.
        on_cell: is told (cells done, cells in all, the next cell's name).
        on_batch: is told (rows done, rows in all) of the cell at work.

    Returns:
        What sweep.json holds: the model and its hash, the split, the environment, and one entry a cell, with
        `ms_per_text` (wall clock over rows, in the recipe's batches) and `latency_ms` (median of single texts).

    Raises:
        CheckpointError: the folder is foreign, or holds a sweep of another model, data or metrics.
        SecateurError: lengths or beams are missing, doubled or not positive; otherwise as `evaluate`.
    """
    artefact, folder = find_artefact(model), Path(out).expanduser().resolve()
    _check("max_new_tokens", max_new_tokens)
    _check("num_beams", num_beams)
    checked = open_recipe(recipe if recipe is not None else recipe_of(model), overrides)
    refuse_classes(checked, "sweep: it varies the lengths and beams of what is generated")
    task, settings, chosen = checked.task, checked.evaluation, artefact.device(device)
    wanted = split or settings.split
    pairs = load_split(checked, wanted, rows)
    named = [*settings.metrics, *metrics]
    about = {
        "format": FORMAT,
        "version": 1,
        "model": model,
        "hash": artefact.hash,
        "split": wanted,
        "rows": len(pairs),
        "data_hash": pairs.fingerprint(),
        "batch_size": settings.batch_size,
        "max_source_tokens": task.max_source_tokens,
        "metrics": settings_of(named),
        "environment": environment(chosen),
    }
    _prepare(folder, about)
    trust = checked.trust_remote_code
    with lock_folder(folder), artefact.opened(threads=torch.get_num_threads(), trust_remote_code=trust) as opened:
        writer, tokenizer = opened
        pairs_of = [(beams, tokens) for beams in num_beams for tokens in max_new_tokens]
        for done, (beams, tokens) in enumerate(pairs_of):
            name = cell_name(beams, tokens)
            if on_cell:
                on_cell(done, len(pairs_of), name)
            if (folder / name / "cell.json").exists():
                continue
            result = evaluate_model(
                writer,
                tokenizer,
                pairs,
                metrics=named,
                **evaluation_arguments(
                    checked, settings.model_copy(update={"max_new_tokens": tokens, "num_beams": beams})
                ),
                device=chosen,
                on_batch=on_batch,
            )
            engine, _ = engine_of(writer, tokenizer, device=chosen)
            latency = _latency(engine, tokenizer, pairs.texts, source=task.max_source_tokens, new=tokens, beams=beams)
            cell = {
                "num_beams": beams,
                "max_new_tokens": tokens,
                "metrics": {name: asdict(figure) for name, figure in result.figures.items()},
                "collapse": result.collapse and asdict(result.collapse),
                "ms_per_text": 1000 * result.generation_seconds / len(pairs),
                "latency_ms": latency,
                "environment": about["environment"],
            }
            write_predictions(folder / name / "predictions.jsonl", pairs, result.predictions)
            write_json(folder / name / "cell.json", cell)
        content = about | {"cells": [read_json(folder / cell_name(*pair) / "cell.json") for pair in pairs_of]}
        write_json(folder / SWEEP, content)
        write_report(content, folder)
    return content


def cell_name(num_beams: int, max_new_tokens: int) -> str:
    """Name a cell's folder.

    >>> cell_name(5, 63)
    'beams-5-tokens-63'
    """
    return f"beams-{num_beams}-tokens-{max_new_tokens}"


def _check(name: str, values: Sequence[int]) -> None:
    if not values or min(values) < 1 or len(set(values)) < len(values):
        raise SecateurError(f"{name}: must be numbers of at least 1, each once, and is {list(values)}.")


# What must be equal for two sweeps to be one: milliseconds of two machines do not stand in one table.
# A model is its weights, wherever they lie; a hub id, which has no hash, is its name.
_SAME = ("hash", "data_hash", "split", "batch_size", "max_source_tokens", "metrics")
_SAME_MACHINE = ("processor", "threads", "device", "torch")


def _prepare(folder: Path, about: Mapping[str, Any]) -> None:
    """Refuse a folder that is not this sweep's; write what it is into a new one."""
    there = read_claim(folder, SWEEP, format=FORMAT, what="sweep")
    if there is None or not any(folder.glob("*/cell.json")):
        write_json(folder / SWEEP, {**about, "cells": []})
        return
    mine, theirs = about["environment"], there.get("environment") or {}
    differing = differing_keys(there, about, _SAME if about["hash"] else ("model", *_SAME))
    refuse_differing(folder, [*differing, *differing_keys(theirs, mine, _SAME_MACHINE)], what="sweep")


def _latency(engine: Any, tokenizer: Any, sources: Sequence[str], *, source: int, new: int, beams: int) -> float:
    """Time texts one at a time, spread evenly over the lengths; the first, untimed, warms up. In milliseconds."""
    chosen = spread(sources, NUM_LATENCIES)

    def write(text: str) -> float:
        started = time.perf_counter()
        predict(engine, tokenizer, [text], max_source_tokens=source, max_new_tokens=new, num_beams=beams)
        return 1000 * (time.perf_counter() - started)

    write(chosen[0])
    return statistics.median(write(text) for text in chosen)
