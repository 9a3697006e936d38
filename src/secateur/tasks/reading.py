"""What a model reads of a batch, and the cross-entropy of what it answers: one place for every task.

A batch has one row of labels for every source: the ids of the tokens to write, or one class. A classifier's logits
(rows, classes) stand beside labels (rows, 1) as a writer's (rows, target tokens, vocabulary) beside (rows, target
tokens), so that all that follows counts targets and need not know which they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.tasks.precision import PRECISIONS, resolve_precision
from secateur.tasks.sampler import IGNORED


def is_classifier(model: Any) -> bool:
    """Tell whether a model names classes; or else it writes."""
    return not model.config.is_encoder_decoder


def reads_token_types(model: Any) -> bool:
    """Tell whether a model is to know of which of two texts a token is: BERT is, RoBERTa and DistilBERT are not."""
    return (getattr(model.config, "type_vocab_size", None) or 0) > 1


def model_inputs(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Choose what a model reads of a batch.

    Args:
        model: of transformers, not wrapped.
        batch: input_ids and attention_mask (rows, source tokens), of two texts a row token_type_ids; for an
            encoder-decoder labels (rows, targets; -100 = none).

    Returns:
        input_ids and attention_mask; token_type_ids where the batch has them and the model reads them; for an
        encoder-decoder decoder_input_ids too, the labels shifted by one.
    """
    read = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if "token_type_ids" in batch and reads_token_types(model):
        read["token_type_ids"] = batch["token_type_ids"]
    if not is_classifier(model):
        read["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    return read


def kept_logits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Take the targets that count.

    Args:
        logits: (rows, classes), or (rows, target tokens, vocabulary).
        labels: (rows, 1) or (rows, target tokens), -100 = none.

    Returns:
        float32 (targets, choices), and the targets (targets,).
    """
    flat = labels.flatten()
    kept = flat != IGNORED
    return logits.flatten(0, -2)[kept].float(), flat[kept]


def cross_entropy(logits: Tensor, labels: Tensor, *, reduction: str, label_smoothing: float = 0.0) -> Tensor:
    """Compare logits with labels, in nats; padding counts nowhere.

    Args:
        logits: (rows, classes), or (rows, target tokens, vocabulary).
        labels: (rows, 1) or (rows, target tokens), -100 = none.
        reduction: mean or sum over the targets.
        label_smoothing: share of the target's probability spread over all choices.

    Returns:
        A scalar.
    """
    return nn.functional.cross_entropy(
        logits.float().flatten(0, -2),
        labels.flatten(),
        ignore_index=IGNORED,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


def batch_loss(model: nn.Module, batch: Mapping[str, Tensor], *, precision: str = "fp32") -> Tensor:
    """Compute the mean cross-entropy per target of a batch.

    Args:
        model: of transformers, not wrapped.
        batch: see `model_inputs`.
        precision: auto, bf16 (autocast) or fp32.

    Returns:
        A scalar, in nats.
    """
    device = batch["labels"].device.type
    dtype = PRECISIONS[resolve_precision(precision, device)]
    with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
        logits = model(**model_inputs(model, batch), use_cache=False).logits
    return cross_entropy(logits, batch["labels"], reduction="mean")
