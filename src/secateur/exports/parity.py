"""Whether an exported model answers as its model does: the same tokens, and the same log probabilities.

Tokens alone do not tell: logits of a wrong scale have the same maximum. So both are asked for the log probability of
the same given targets, which a wrong scale, bias or norm changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from secateur.artifacts.loading import load_model
from secateur.errors import DataError
from secateur.evaluation.engine import Generated
from secateur.evaluation.generate import HuggingFaceEngine
from secateur.exports.ctranslate2 import CTranslate2Engine
from secateur.exports.folder import ExportError
from secateur.exports.onnx_runner import OnnxEngine
from secateur.tasks.encode import attention_mask, pad

FP32_TOLERANCE = 1e-4  # nats per token, of every row: rounding of trained models stays below 1e-5
FP32_TOKENS = 0.95  # share of rows; two tokens that are equally likely up to rounding may change places
# Nats per token, mean over the rows. Trained nets show 0.002, tiny random ones up to 0.15; a wrong scale 1.6 and more.
INT8_TOLERANCE = 0.1


@dataclass(frozen=True)
class Parity:
    """How far an engine is from its model.

    Attributes:
        num_rows: sources and targets compared.
        same_tokens: share of rows whose greedy outputs are equal, 0 to 1.
        largest_difference: of a row's log probability, per target token, in nats, absolute.
        mean_difference: the same, mean over the rows.
        num_distinct_tokens: different tokens in the model's greedy outputs; with few, equal tokens say little.
        max_new_tokens: the longest greedy output compared.
    """

    num_rows: int
    same_tokens: float
    largest_difference: float
    mean_difference: float
    num_distinct_tokens: int
    max_new_tokens: int


@torch.inference_mode()
def score_targets(
    model: Any, input_ids: Sequence[Sequence[int]], target_ids: Sequence[Sequence[int]], *, start_id: int
) -> list[float]:
    """Sum a live model's log probabilities of given targets.

    Args:
        model: an encoder-decoder of transformers, in evaluation mode.
        input_ids: a batch, not padded.
        target_ids: one target per source, without the start token, with the end token where it is to count.
        start_id: the token that outputs start with.

    Returns:
        One sum per row, in nats.
    """
    device = next(model.parameters()).device
    targets = pad(target_ids, 0).to(device)
    logits = model(
        input_ids=pad(input_ids, 0).to(device),
        attention_mask=attention_mask(input_ids).to(device),
        decoder_input_ids=torch.cat([torch.full_like(targets[:, :1], start_id), targets[:, :-1]], 1),
    ).logits
    chosen = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0].cpu().double()
    return [float(row[: len(target)].sum()) for row, target in zip(chosen, target_ids, strict=True)]


def parity(
    model: Any,
    engine: CTranslate2Engine | OnnxEngine,
    rows: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int = 16,
) -> Parity:
    """Compare an exported model with the model that it was made from.

    Args:
        model: live and in evaluation mode, or the folder that holds it.
        engine: the export, opened.
        rows: source ids, at least one row.
        targets: one target per source, without the start token, none empty.
        max_new_tokens: the longest greedy output to compare.
        batch_size: rows at once.

    Returns:
        The comparison; judge it with `check_parity`.

    Raises:
        DataError: there is no row, or rows and targets do not pair.
        CheckpointError: the folder holds no model.
    """
    if not rows or len(rows) != len(targets) or not all(targets):
        raise DataError(
            f"parity needs at least one source and one target with tokens for each; {len(rows)} sources and "
            f"{len(targets)} targets were given, {sum(not target for target in targets)} of them empty."
        )
    if isinstance(model, str | Path):
        model = load_model(str(model))
    reference = HuggingFaceEngine(model)
    reference.suppressed = list(engine.facts.suppress_tokens) or None  # settings that both must share
    written: list[tuple[Generated, Generated]] = []
    differences: list[float] = []
    for start in range(0, len(rows), batch_size):
        batch, wanted = rows[start : start + batch_size], targets[start : start + batch_size]
        answers = (one.generate(batch, max_new_tokens=max_new_tokens) for one in (reference, engine))
        written += zip(*answers, strict=True)
        mine = score_targets(model, batch, wanted, start_id=reference.start_id)
        theirs = engine.score(batch, wanted)
        differences += [abs(one - other) / len(target) for one, other, target in zip(mine, theirs, wanted, strict=True)]
    same = sum(one.tokens == other.tokens and one.truncated == other.truncated for one, other in written)
    return Parity(
        num_rows=len(rows),
        same_tokens=same / len(rows),
        largest_difference=max(differences),
        mean_difference=sum(differences) / len(rows),
        num_distinct_tokens=len({token for one, _ in written for token in one.tokens}),
        max_new_tokens=max_new_tokens,
    )


def check_parity(found: Parity, *, int8: bool) -> None:
    """Refuse an export that does not answer as its model does.

    Args:
        found: the comparison.
        int8: whether the export rounds its matrices to int8; then only the mean difference is judged, and widely.

    Raises:
        ExportError: it is too far off; all reasons at once.

    >>> check_parity(Parity(16, 1.0, 3e-6, 1e-6, 80, 32), int8=False)
    """
    faults = []
    if int8 and not found.mean_difference <= INT8_TOLERANCE:  # so that a difference that is no number fails as well
        faults.append(
            f"log probabilities of given targets differ by {found.mean_difference:.3g} nats per token on average; int8 "
            f"may differ by {INT8_TOLERANCE:g}."
        )
    if not int8 and not found.largest_difference <= FP32_TOLERANCE:
        faults.append(
            f"log probabilities of given targets differ by up to {found.largest_difference:.3g} nats per token; fp32 "
            f"may differ by {FP32_TOLERANCE:g}."
        )
    if not int8 and not found.same_tokens >= FP32_TOKENS:
        faults.append(
            f"only {found.same_tokens:.0%} of {found.num_rows} rows have the same tokens; fp32 must have "
            f"{FP32_TOKENS:.0%}."
        )
    if faults:
        raise ExportError(
            faults, "The export does not answer as its model does. Do not ship it; report the model's configuration:"
        )
