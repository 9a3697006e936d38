"""Measure a model on pairs, and keep what it wrote."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from secateur.errors import DataError
from secateur.evaluation.collapse import Collapse, signs_of_collapse
from secateur.evaluation.generate import HuggingFaceEngine, Prediction, predict
from secateur.evaluation.metrics import Figure, UserMetric, check_metrics, score_predictions
from secateur.files import write_bytes
from secateur.tasks.pairs import Pairs


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found.

    Args:
        figures: name -> figure, in the order of the metrics.
        predictions: one per row, in the order of the pairs.
        collapse: signs that the model no longer writes.
        seconds: generation and scoring together.
    """

    figures: dict[str, Figure]
    predictions: list[Prediction]
    collapse: Collapse
    seconds: float


def evaluate_model(
    model: Any,
    tokenizer: Any,
    pairs: Pairs,
    *,
    metrics: Sequence[str | UserMetric],
    max_source_tokens: int,
    max_new_tokens: int,
    num_beams: int = 1,
    batch_size: int = 16,
    seed: int = 0,
    device: str | torch.device | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> EvalResult:
    """Let a model write an output for every pair, and score them.

    Args:
        model: an encoder-decoder of transformers. Its training flags and generation settings are as before afterwards.
        tokenizer: the model's own.
        pairs: sources, prefix applied, and references.
        metrics: names of `metrics.METRICS`, or functions; see `score_predictions`.
        max_source_tokens: longer sources are cut.
        max_new_tokens: the longest output; the start token is not counted.
        num_beams: 1 is greedy.
        batch_size: rows at once.
        seed: of the bootstrap.
        device: where the model is moved to; None leaves it.
        on_batch: is told (rows done, rows in all) after each batch.

    Returns:
        Figures with 95 % intervals, the outputs, and signs of collapse.

    Raises:
        DataError: there are no pairs, or the tokenizer belongs to another model.
        SecateurError: no such metric, or a batch does not fit into the memory.
    """
    started = time.perf_counter()
    check_metrics(metrics)
    if not len(pairs):
        raise DataError("there are no rows to evaluate on.")
    engine = HuggingFaceEngine(model, tokenizer, device=device)
    predictions = predict(
        engine,
        tokenizer,
        pairs.sources,
        max_source_tokens=max_source_tokens,
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        batch_size=batch_size,
        vocab_size=model.get_input_embeddings().num_embeddings,
        on_batch=on_batch,
    )
    figures = score_predictions(metrics, predictions, pairs.references, seed=seed)
    return EvalResult(figures, predictions, signs_of_collapse(predictions), time.perf_counter() - started)


def write_predictions(path: Path | str, pairs: Pairs, predictions: Sequence[Prediction]) -> Path:
    """Write one JSON object a row: source, references, prediction, num_tokens, truncated.

    Args:
        path: the file; it is replaced in one step.
        pairs: what was asked.
        predictions: what was written, in the same order.

    Returns:
        The file's path.

    Raises:
        CheckpointError: the file cannot be written.
    """
    rows = zip(pairs.sources, pairs.references, predictions, strict=True)
    lines = [
        json.dumps(
            {
                "source": source,
                "references": list(references),
                "prediction": prediction.text,
                "num_tokens": prediction.num_tokens,
                "truncated": prediction.truncated,
            },
            ensure_ascii=False,
        )
        for source, references, prediction in rows
    ]
    return write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
