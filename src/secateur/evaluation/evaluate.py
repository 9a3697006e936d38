"""Measure a model on pairs, and keep what it wrote."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from secateur.errors import DataError, SecateurError
from secateur.evaluation.classify import classify
from secateur.evaluation.collapse import Collapse, signs_of_collapse
from secateur.evaluation.engine import Engine
from secateur.evaluation.figures import Figure, score_predictions
from secateur.evaluation.formats import about
from secateur.evaluation.generate import HuggingFaceEngine, Prediction, predict
from secateur.evaluation.metrics import UserMetric, check_metrics
from secateur.files import write_bytes
from secateur.processes import Processes
from secateur.tasks.labels import check_labels, labels_of
from secateur.tasks.pairs import Pairs, Source, single_texts, source_of, without_prefix
from secateur.tasks.readers import read_file
from secateur.tasks.reading import is_classifier


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found.

    Args:
        figures: name -> figure, in the order of the metrics.
        predictions: one per row, in the order of the pairs.
        collapse: signs that the model no longer writes; None for a classifier, which never does.
        seconds: generation (or classification) and scoring together.
        generation_seconds: of these, tokenizing and generation.
    """

    figures: dict[str, Figure]
    predictions: list[Prediction]
    collapse: Collapse | None
    seconds: float
    generation_seconds: float


def evaluate_model(
    model: Any,
    tokenizer: Any,
    pairs: Pairs,
    *,
    metrics: Sequence[str | UserMetric],
    max_source_tokens: int,
    max_new_tokens: int | None = None,
    num_beams: int = 1,
    batch_size: int = 16,
    prefix: str = "",
    seed: int = 0,
    device: str | torch.device | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    processes: Processes = Processes(),  # noqa: B008 - frozen
) -> EvalResult:
    """Let a model write an output for every pair, or name its class, and score them.

    Args:
        model: an encoder-decoder or a classifier of transformers, whose training flags and generation settings are as
            before afterwards, or any other engine.
        tokenizer: the model's own.
        pairs: sources, prefix applied, and references.
        metrics: names of `metrics.METRICS`, or functions; see `score_predictions`.
        max_source_tokens: longer sources are cut.
        max_new_tokens: the longest output; the start token is not counted. A classifier takes none.
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
        DataError: there are no pairs, the tokenizer belongs to another model, or a class is unknown to the model.
        SecateurError: the task is the other one, no such metric, or a batch does not fit into the memory.
    """
    started = time.perf_counter()
    check_metrics(metrics)
    if not len(pairs):
        raise DataError("there are no rows to evaluate on.")
    if classifies(model, max_new_tokens):
        check_labels(pairs, labels_of(model.config), "the rows to evaluate on")
    predictions = answer(
        model,
        tokenizer,
        pairs.sources,
        max_source_tokens=max_source_tokens,
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        batch_size=batch_size,
        device=device,
        on_batch=on_batch,
        processes=processes,
    )
    written = time.perf_counter()
    sources = [without_prefix(source, prefix) for source in pairs.sources]
    figures = score_predictions(metrics, predictions, pairs.references, sources=sources, seed=seed)
    seconds = time.perf_counter() - started
    signs = None if max_new_tokens is None else signs_of_collapse(predictions)
    return EvalResult(figures, predictions, signs, seconds, written - started)


def answer(
    model: Any,
    tokenizer: Any,
    sources: Sequence[Source],
    *,
    max_source_tokens: int,
    max_new_tokens: int | None = None,
    num_beams: int = 1,
    batch_size: int = 16,
    device: str | torch.device | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    processes: Processes = Processes(),  # noqa: B008 - frozen
) -> list[Prediction]:
    """Let a model write an output for every source, or name its class; see `predict` and `classify`.

    Args:
        model: as for `evaluate_model`.
        tokenizer: the model's own.
        sources: texts, prefix applied; for a classifier also two each.
        max_source_tokens: longer sources are cut.
        max_new_tokens: the longest output; None for a classifier, and only there.
        num_beams: 1 is greedy.
        batch_size: rows at once.
        device: where the model is moved to; None leaves it.
        on_batch: is told (rows done, rows in all) after each batch.
        processes: which process this is of those that share the work.

    Returns:
        One prediction per source, in order.

    Raises:
        DataError: the tokenizer belongs to another model.
        SecateurError: the model is for the other task, or a batch does not fit into the memory.
    """
    shared: dict[str, Any] = {"max_source_tokens": max_source_tokens, "batch_size": batch_size}
    shared |= {"on_batch": on_batch, "processes": processes}
    if classifies(model, max_new_tokens):
        return classify(model, tokenizer, sources, device=device, **shared)
    engine, vocab_size = engine_of(model, tokenizer, device=device)
    assert max_new_tokens is not None  # `classifies` has refused it
    written: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_beams": num_beams, "vocab_size": vocab_size}
    return predict(engine, tokenizer, single_texts(sources), **written, **shared)


def classifies(model: Any, max_new_tokens: int | None) -> bool:
    """Tell whether classes are to be named, which the model must be able to do.

    Args:
        model: of transformers, or an engine, which writes.
        max_new_tokens: None where classes are to be named.

    Returns:
        True for classes, False for texts.

    Raises:
        SecateurError: the model is for the other task.
    """
    able = isinstance(model, torch.nn.Module) and is_classifier(model)
    if able != (max_new_tokens is None):
        does, asked = ("names classes", "seq2seq") if able else ("writes texts", "classification")
        raise SecateurError(
            f"{type(model).__name__} {does}, and the recipe's task.kind is {asked}. Choose another model or recipe."
        )
    return able


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
    """Write one JSON object a row: source, references, prediction, and num_tokens and truncated, or probability.

    A source of two texts is a list of both.

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
                **about(prediction),
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
        fields = _OF_CLASSES if "probability" in row else _FIELDS
        fault = next((key for key, fits in fields.items() if not fits(row.get(key))), None)
        if fault is not None:
            raise DataError(
                f"{path}: {place} is no prediction: {fault!r} is {row.get(fault)!r:.60}. Each line must have "
                f"{', '.join(fields)}, as `secateur evaluate --predictions` writes them."
            )
    sources = tuple(_source(row["source"]) for _, row in rows)
    pairs = Pairs(sources, tuple(tuple(row["references"]) for _, row in rows))
    return pairs, [
        Prediction(row["prediction"], row.get("num_tokens", 0), row.get("truncated", False), row.get("probability"))
        for _, row in rows
    ]


def _source(value: str | list[str]) -> Source:
    return value if isinstance(value, str) else source_of(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_source(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, list) and len(value) == 2 and all(map(_is_text, value)))


# What a line of a prediction file must hold, and how it is told.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "source": _is_text,
    "references": lambda value: isinstance(value, list) and bool(value) and all(map(_is_text, value)),
    "prediction": _is_text,
    "num_tokens": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "truncated": lambda value: isinstance(value, bool),
}
_OF_CLASSES: dict[str, Callable[[Any], bool]] = {
    "source": _is_source,
    **{key: _FIELDS[key] for key in ("references", "prediction")},
    "probability": lambda value: isinstance(value, float) and 0.0 <= value <= 1.0,
}
