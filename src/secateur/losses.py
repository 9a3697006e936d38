"""What a pruned model's outputs lost on known targets: its loss, and how far it is from what the dense model gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from secateur.errors import SecateurError
from secateur.state import Live, Run
from secateur.tasks.encode import Collator, EncodedPairs
from secateur.tasks.reading import cross_entropy, kept_logits, model_inputs

MAX_STATES = 2**30  # bytes of what the encoder gives for all rows, kept from one measurement to the next
MAX_LOGITS = 2**28  # of a batch whose loss is measured: 1 GiB in fp32, and twice that at work
LIKELIEST = 64  # choices of the dense model for every target that the divergence tells apart; the others are one
_NEVER = 1e-12  # a probability below it is taken for it

Measured = TypeVar("Measured")
Measure = Callable[[int, Tensor | None, Tensor, Tensor], Measured]


class Choices(NamedTuple):
    """The dense model's likeliest choices: their indexes and log-probabilities, both (targets, choices)."""

    indexes: Tensor
    logarithms: Tensor


class Lost(NamedTuple):
    """What was measured of a model, in nats per target (a token, or in classification a row).

    Attributes:
        loss: the cross-entropy.
        divergence: the Kullback-Leibler divergence from the dense model's choices, at least 0.
    """

    loss: float
    divergence: float


@dataclass
class DenseOutputs:
    """What the dense model gives for some rows, batch by batch.

    Attributes:
        loss: its mean cross-entropy per target, in nats.
        choices: of every batch.
        states: what its encoder gives, (rows, source tokens, d_model) for every batch; none if that is too much.
    """

    loss: float = 0.0
    choices: list[Choices] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)


def mean_loss(state: Run, live: Live, rows: EncodedPairs) -> float:
    """Measure the mean cross-entropy per target (token, or row in classification) over all rows.

    Args:
        state: the run; says device and batch size.
        live: the model; it is on the CPU afterwards.
        rows: at least one.

    Returns:
        Nats.

    Raises:
        SecateurError: a batch does not fit into the memory.
    """
    found = list(_measured(state, live, rows, lambda number, states, logits, labels: _cross_entropy(logits, labels)))
    return sum(loss for loss, _ in found) / sum(count for _, count in found)


def note_dense(state: Run, live: Live, rows: EncodedPairs) -> DenseOutputs:
    """Note what the dense model gives, for pruned ones to be held against it.

    Args:
        state: as for `mean_loss`.
        live: the dense model.
        rows: at least one.

    Returns:
        Its outputs.

    Raises:
        SecateurError: a batch does not fit into the memory.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    fits = 4 * len(rows) * longest * live.model.config.hidden_size <= MAX_STATES
    found = DenseOutputs()

    def note(number: int, states: Tensor | None, logits: Tensor, labels: Tensor) -> float:
        logarithms, indexes = logits.log_softmax(-1).topk(min(LIKELIEST, logits.shape[-1]))
        found.choices.append(Choices(indexes.int().cpu(), logarithms.cpu()))
        if fits and states is not None:
            found.states.append(states.cpu())
        return _cross_entropy(logits, labels)

    losses = list(_measured(state, live, rows, note))
    found.loss = sum(loss for loss, _ in losses) / sum(count for _, count in losses)
    return found


def compare(state: Run, live: Live, rows: EncodedPairs, dense: DenseOutputs, *, same_encoder: bool) -> Lost:
    """Measure a model against what the dense one gives.

    Args:
        state: as for `mean_loss`.
        live: the model.
        rows: those that `dense` was noted for.
        dense: the dense model's outputs.
        same_encoder: the model's encoder is the dense one's, bit for bit: it need not be computed.

    Returns:
        Loss and divergence.

    Raises:
        SecateurError: a batch does not fit into the memory.
    """

    def measure(number: int, states: Tensor | None, logits: Tensor, labels: Tensor) -> tuple[float, float]:
        return _cross_entropy(logits, labels), float(divergences(dense.choices[number], logits).sum())

    found = list(_measured(state, live, rows, measure, known=dense.states if same_encoder else ()))
    count = sum(count for _, count in found)
    return Lost(*(sum(each[index] for each, _ in found) / count for index in (0, 1)))


def divergences(dense: Choices, logits: Tensor) -> Tensor:
    """Tell how far a model's choices are from the dense model's, those beside the likeliest taken as one.

    Args:
        dense: the dense model's choices, (targets, choices) each.
        logits: (targets, vocabulary), float32.

    Returns:
        The Kullback-Leibler divergence of each target, (targets,), in nats, at least 0. What is taken as one makes it
        no larger than that of the whole distributions.

    >>> logits = torch.tensor([[2.0, 1.0, 0.0]])
    >>> same = Choices(torch.tensor([[0, 1, 2]]), logits.log_softmax(-1))
    >>> divergences(same, logits), divergences(same, logits.flip(1))
    (tensor([0.]), tensor([1.1504]))
    """
    wanted, indexes = dense.logarithms.to(logits.device), dense.indexes.to(logits.device).long()
    all_of_it = logits.logsumexp(-1)
    found = logits.gather(-1, indexes) - all_of_it[:, None]
    others = (1.0 - wanted.exp().sum(-1)).clamp_min(_NEVER)
    # One less the sum would lose it in rounding where the model is sure of words that the dense model thought likely.
    found_others = logits.scatter(-1, indexes, -torch.inf).logsumexp(-1) - all_of_it
    apart = (wanted.exp() * (wanted - found)).sum(-1)
    return (apart + others * (others.log() - found_others.clamp_min(math.log(_NEVER)))).clamp_min(0.0)


def _measured(
    state: Run, live: Live, rows: EncodedPairs, measure: Measure[Measured], *, known: Sequence[Tensor] = ()
) -> Iterator[tuple[Measured, int]]:
    """Pass all rows, short ones first.

    Args:
        state: says device and batch size.
        live: the model; it is on the CPU afterwards.
        rows: at least one.
        measure: (batch's number, what the encoder gave, logits of all targets (targets, vocabulary), the targets) -> a
            figure; large tensors live no longer than it works.
        known: what the encoder gives for every batch, or nothing.

    Yields:
        The figure, and the number of targets.
    """
    device, collate = state.inputs.device, Collator(live.tokenizer.pad_token_id)
    live.model.to(device).eval()  # not in inference mode: what moves there is made anew, and could never be pruned
    batches = batches_that_fit(rows, state.recipe.evaluation.batch_size, live.model.config.vocab_size)
    for number, batch in enumerate(batches):
        states = known[number] if known else None
        yield _pass(live.model, collate([rows[index] for index in batch]), device, states, partial(measure, number))
    live.model.to("cpu")


def batches_that_fit(rows: EncodedPairs, size: int, vocab_size: int) -> Iterator[list[int]]:
    """Share rows out, short sources first, in batches of at most `size` whose logits fit into the memory.

    Args:
        rows: at least one.
        size: rows of a batch, at most.
        vocab_size: logits of a target.

    Yields:
        Indexes.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    while order:
        longest = max(len(rows[index]["labels"]) for index in order[:size])
        fitting = min(size, max(1, MAX_LOGITS // (longest * vocab_size)))
        yield order[:fitting]
        order = order[fitting:]


@torch.inference_mode()
def _pass(
    model: Any,
    batch: Mapping[str, Tensor],
    device: str,
    states: Tensor | None,
    measure: Callable[[Tensor | None, Tensor, Tensor], Measured],
) -> tuple[Measured, int]:
    try:
        there = {name: tensor.to(device) for name, tensor in batch.items()}
        known = {} if states is None else {"encoder_outputs": BaseModelOutput(last_hidden_state=states.to(device))}
        outputs = model(**model_inputs(model, there), **known, use_cache=False)
        given = getattr(outputs, "encoder_last_hidden_state", None)  # an encoder alone has none
        logits, labels = kept_logits(outputs.logits, there["labels"])
        del outputs
        return measure(given, logits, labels), len(labels)
    except torch.OutOfMemoryError as error:
        raise SecateurError(
            f"a batch of {len(batch['labels'])} rows does not fit into the memory. Lower evaluation.batch_size."
        ) from error


def _cross_entropy(logits: Tensor, labels: Tensor) -> float:
    return float(cross_entropy(logits, labels, reduction="sum"))


__all__ = ["Choices", "DenseOutputs", "Lost", "batches_that_fit", "compare", "divergences", "mean_loss", "note_dense"]
