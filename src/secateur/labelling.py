"""Pseudo-labels: a teacher writes the targets of a training, part by part, and what it wrote is kept."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from secateur.artefact import find_artefact, identity
from secateur.errors import RunInterrupted
from secateur.evaluation.evaluate import engine_of
from secateur.evaluation.generate import predict
from secateur.fields import needed
from secateur.files import read_json, write_json
from secateur.recipe.schema import PseudoLabels, Train
from secateur.state import Run
from secateur.tasks.pairs import Pairs

FOLDER = "pseudo-labels"  # in the run folder
PART = 512  # sources whose outputs stand in one file: what a kill may lose


def label(state: Run, settings: Train, pairs: Pairs) -> tuple[Pairs, dict[str, Any]]:
    """Let a training's teacher write targets, unless the training asks for none.

    The outputs stand in the run folder, in a folder that is named after all that they depend on: a run that is gone on
    with, and another stage that asks for the same, read them there. An output that is empty, or that the limit ended,
    teaches nothing good: such a row keeps the data's targets.

    Args:
        state: the run.
        settings: of the training.
        pairs: its rows.

    Returns:
        The rows to train on, and JSON-ready facts; the rows as they are and no facts where nothing was asked for.

    Raises:
        CheckpointError: the teacher is missing or damaged.
        RunInterrupted: stopped on request, between two batches.
        SecateurError: a batch does not fit into the memory.

    Source: Kim and Rush 2016 (sequence-level distillation), arXiv:1606.07947, sec. 3.2; for summaries Shleifer and
    Rush 2020, arXiv:2010.13002.
    """
    asked = settings.pseudo_labels
    if asked is None or settings.teacher is None:
        return pairs, {}
    path = state.folder.teacher(settings.teacher)
    written = _written(state, path, asked, pairs)
    references = tuple(
        (*theirs, text) if usable and asked.use == "add" else (text,) if usable else theirs
        for theirs, (text, usable) in zip(pairs.references, written, strict=True)
    )
    left = sum(not usable for _, usable in written)
    facts = {"model": settings.teacher, "rows": len(pairs), "left": left, **asked.model_dump(exclude={"batch_size"})}
    return Pairs(pairs.sources, references), {"pseudo_labels": facts}


def _written(state: Run, path: str, asked: PseudoLabels, pairs: Pairs) -> list[tuple[str, bool]]:
    """Give the teacher's output for every row, and whether it is a target; writes what is not there yet."""
    teacher, task, inputs = find_artefact(path), state.recipe.task, state.inputs
    limit = needed(task.max_target_tokens)
    about = {
        "teacher": identity(teacher),
        "rows": pairs.fingerprint(),
        "part": PART,
        "num_beams": asked.num_beams,
        "max_source_tokens": task.max_source_tokens,
        "max_new_tokens": limit,
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    place = state.folder.path / FOLDER / key[:16]
    starts = range(0, len(pairs), PART)
    files = {start: place / f"{start:08d}.json" for start in starts}
    missing = state.processes.first(lambda: [start for start in starts if not files[start].exists()])
    if missing:
        trust = state.recipe.trust_remote_code
        with teacher.opened(trust_remote_code=trust) as (model, tokenizer):
            engine, vocab_size = engine_of(model, tokenizer, device=inputs.device)

            def heard(done: int, start: int) -> None:
                inputs.reporter.labelling(start + done, len(pairs))
                if inputs.stopping():
                    raise RunInterrupted("Stopped while the teacher writes pseudo-labels.")

            for start in missing:
                heard(0, start)
                found = predict(
                    engine,
                    tokenizer,
                    pairs.texts[start : start + PART],
                    num_beams=asked.num_beams,
                    batch_size=asked.batch_size,
                    vocab_size=vocab_size,
                    on_batch=lambda done, _, start=start: heard(done, start),
                    processes=state.processes,
                    max_source_tokens=task.max_source_tokens,
                    max_new_tokens=limit,
                )
                lines = [[each.text, bool(each.text) and not each.truncated] for each in found]
                state.processes.first(lambda file=files[start], lines=lines: str(write_json(file, lines)))
    return [(text, usable) for start in starts for text, usable in read_json(files[start])]


__all__ = ["label"]
