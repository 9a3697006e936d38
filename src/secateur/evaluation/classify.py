"""Name classes with a live model, in batches of similar length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.errors import SecateurError
from secateur.evaluation.generate import Prediction, evaluating, longest_first, pad_token_id
from secateur.processes import Processes
from secateur.tasks.encode import check_ids, check_tokenizer, tokenize_sources
from secateur.tasks.labels import labels_of
from secateur.tasks.pairs import Source
from secateur.tasks.reading import model_inputs


def classify(
    model: Any,
    tokenizer: Any,
    sources: Sequence[Source],
    *,
    max_source_tokens: int,
    batch_size: int = 16,
    device: str | torch.device | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    processes: Processes = Processes(),  # noqa: B008 - frozen
) -> list[Prediction]:
    """Name the likeliest class of every source; batches are made by length, so little is padded, longest first.

    Args:
        model: a classifier of transformers; it is moved to `device`, and nothing else about it changes.
        tokenizer: its own.
        sources: of one text or two, prefix applied.
        max_source_tokens: longer sources are cut, end token kept; of two texts the longer one first.
        batch_size: rows at once.
        device: None leaves the model where it is.
        on_batch: is told (rows done, rows in all) after each batch (each round of batches, one a process).
        processes: which process this is of those that share the work; all of them get all predictions.

    Returns:
        One prediction per source, in order: the class, and its probability.

    Raises:
        DataError: the tokenizer belongs to another model, or there is no room for two texts.
        SecateurError: a batch does not fit into the memory.
    """
    check_tokenizer(tokenizer, model.config)
    padding, labels = pad_token_id(model, tokenizer), labels_of(model.config)
    model = model if device is None else model.to(device)
    read = tokenize_sources(tokenizer, sources, max_source_tokens)
    rows = read.input_ids
    check_ids(rows, model.get_input_embeddings().num_embeddings)
    predictions: dict[int, Prediction] = {}
    batches = longest_first(rows, batch_size)
    with evaluating(model):
        for start in range(0, len(batches), processes.size):
            named = {}
            for indices in processes.own(batches[start : start + processes.size]):
                found = _likeliest(model, read.batch(indices, padding))
                named.update(
                    {index: (labels[label], share) for index, (label, share) in zip(indices, found, strict=True)}
                )
            for part in processes.gather(named):
                predictions |= {
                    index: Prediction(label, 0, truncated=False, probability=share)
                    for index, (label, share) in part.items()
                }
            if on_batch is not None:
                on_batch(len(predictions), len(rows))
    return [predictions[index] for index in range(len(rows))]


@torch.inference_mode()
def _likeliest(model: Any, batch: dict[str, Tensor]) -> list[tuple[int, float]]:
    """Give each row's class and its probability."""
    device = next(model.parameters()).device
    try:
        given = {name: tensor.to(device) for name, tensor in model_inputs(model, batch).items()}
        logits = model(**given, use_cache=False).logits
    except torch.OutOfMemoryError as error:
        count, longest = batch["input_ids"].shape
        raise SecateurError(
            f"a batch of {count} sources of up to {longest} tokens does not fit into the memory. Lower "
            "evaluation.batch_size."
        ) from error
    shares, classes = logits.cpu().double().softmax(-1).max(-1)  # there: Apple's GPUs have no float64
    return list(zip(classes.tolist(), shares.tolist(), strict=True))
