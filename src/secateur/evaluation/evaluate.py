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
from secateur.evaluation.engine import Engine
from secateur.evaluation.figures import Figure, score_predictions
from secateur.evaluation.generate import HuggingFaceEngine, Prediction, predict
from secateur.evaluation.metrics import UserMetric, check_metrics
from secateur.files import write_bytes
from secateur.processes import Processes
from secateur.tasks.pairs import Pairs
from secateur.tasks.readers import read_file


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found.

    Args:
        figures: name -> figure, in the order of the metrics.
        predictions: one per row, in the order of the pairs.
        collapse: signs that the model no longer writes.
        seconds: generation and scoring together.
        generation_seconds: of these, tokenizing and generation.
    """

    figures: dict[str, Figure]
    predictions: list[Prediction]
    collapse: Collapse
    seconds: float
    generation_seconds: float


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
    prefix: str = "",
    seed: int = 0,
    device: str | torch.device | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    processes: Processes = Processes(),  # noqa: B008 - frozen
) -> EvalResult:
    """Let a model write an output for every pair, and score them.

    Args:
        model: an encoder-decoder of transformers, whose training flags and generation settings are as before
            afterwards, or any other engine.
        tokenizer: the model's own.
        pairs: sources, prefix applied, and references.
        metrics: names of `metrics.METRICS`, or functions; see `score_predictions`.
        max_source_tokens: longer sources are cut.
        max_new_tokens: the longest output; the start token is not counted.
        num_beams: 1 is greedy.
        batch_size: rows at once.
        prefix: what the sources begin with and metrics do not count as part of them.
        seed: of the bootstrap.
        device: where the model is moved to; None leaves it.
        on_batch: is told (rows done, rows in all) after each batch.
        processes: which process this is of those that share the work; all of them get the result.

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
    engine, vocab_size = engine_of(model, tokenizer, device=device)
    predictions = predict(
        engine,
        tokenizer,
        pairs.sources,
        max_source_tokens=max_source_tokens,
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        batch_size=batch_size,
        vocab_size=vocab_size,
        on_batch=on_batch,
        processes=processes,
    )
    written = time.perf_counter()
    sources = [source.removeprefix(prefix) for source in pairs.sources]
    figures = score_predictions(metrics, predictions, pairs.references, sources=sources, seed=seed)
    seconds = time.perf_counter() - started
    return EvalResult(figures, predictions, signs_of_collapse(predictions), seconds, written - started)


def engine_of(writer: Any, tokenizer: Any, *, device: str | torch.device | None = None) -> tuple[Engine, int | None]:
    """Give what writes as an engine.

    Args:
        writer: an encoder-decoder of transformers, or an engine already.
        tokenizer: its own.
        device: where a model is moved to; None leaves it.

    Returns:
        The engine, and how many rows its table has, to check ids against; None for other engines than transformers,
        whose tokenizer stands in their own folder.

    Raises:
        DataError: the tokenizer ends or pads texts otherwise than the model.
    """
    if not isinstance(writer, torch.nn.Module):
        return writer, None
    table: Any = writer.get_input_embeddings()  # type: ignore[operator]  # a method that torch's stub does not know
    return HuggingFaceEngine(writer, tokenizer, device=device), table.num_embeddings


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


def read_predictions(path: Path | str) -> tuple[Pairs, list[Prediction]]:
    """Read what `write_predictions` wrote.

    Args:
        path: a file that ends in .jsonl or .jsonl.gz.

    Returns:
        What was asked, sources as the model read them, and what was written.

    Raises:
        DataError: no such file, or one that holds something else; the first faulty line is named.
    """
    path = Path(path)
    rows = read_file(path, "train")
    if not rows:
        raise DataError(f"{path}: holds no predictions.")
    for place, row in rows:
        if "prediction" in row and "references" not in row:
            raise DataError(
                f"{path}: {place} has no references, so nothing can be said of its prediction. Files of "
                "`secateur evaluate --predictions` and the predictions.jsonl of a run's stages have them."
            )
        fault = next((key for key, fits in _FIELDS.items() if not fits(row.get(key))), None)
        if fault is not None:
            raise DataError(
                f"{path}: {place} is no prediction: {fault!r} is {row.get(fault)!r:.60}. Each line must have "
                f"{', '.join(_FIELDS)}, as `secateur evaluate --predictions` writes them."
            )
    pairs = Pairs(tuple(row["source"] for _, row in rows), tuple(tuple(row["references"]) for _, row in rows))
    return pairs, [Prediction(row["prediction"], row["num_tokens"], row["truncated"]) for _, row in rows]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


# What a line of a prediction file must hold, and how it is told.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "source": _is_text,
    "references": lambda value: isinstance(value, list) and bool(value) and all(map(_is_text, value)),
    "prediction": _is_text,
    "num_tokens": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "truncated": lambda value: isinstance(value, bool),
}
