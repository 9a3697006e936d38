"""Prove that a cut model classifies texts as the masked one does: the same logits, the same classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.errors import MaskError
from secateur.surgery.proof import Proof
from secateur.tasks.encode import source_inputs
from secateur.tasks.reading import model_inputs

BATCH = 32  # texts at once


def verify_classes(
    masked: Any,
    small: Any,
    texts: Sequence[Sequence[int]],
    others: Sequence[Sequence[int]],
    *,
    tolerance: float,
    token_types: Sequence[Sequence[int]] | None = None,
) -> Proof:
    """Compare two models that classify, in fp32 on the CPU.

    Args:
        masked: the model with its masks attached.
        small: the cut model, with the masks that it still needs attached.
        texts: token ids for the masked model.
        others: the same texts in the cut model's numbers; its table may be shorter.
        tolerance: the largest relative difference of logits that passes.
        token_types: of which text each token is, as many as token ids; None where that is not known.

    Returns:
        The figures, as `surgery.verify.verify` gives them.

    Raises:
        MaskError: there is nothing to compare.
    """
    rows = [row for row, text in enumerate(texts) if text]
    if not rows:
        raise MaskError("There are no rows to prove the cut on. Give it texts of the task.")
    with torch.inference_mode():
        found = [
            (_logits(masked, texts, token_types, batch), _logits(small, others, token_types, batch))
            for batch in (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
        ]
    one, two = (torch.cat([each[side] for each in found]) for side in (0, 1))
    if not bool(one.isfinite().all() and two.isfinite().all()):
        return Proof(len(rows), math.nan, math.nan, math.nan, math.nan, 0.0, 0, 0.0, 0, tolerance)
    largest, difference = float(one.abs().max()), float((one - two).abs().max())
    mine, theirs = one.argmax(-1), two.argmax(-1)
    lead = one.gather(1, mine[:, None]) - one.gather(1, theirs[:, None])  # 0 where they agree
    return Proof(
        rows=len(rows),
        largest_logit=largest,
        largest_difference=difference,
        relative_difference=difference / largest if largest else difference,
        score_difference=float((one.log_softmax(-1) - two.log_softmax(-1)).abs().max()),
        same_tokens=1.0,
        distinct_tokens=0,
        same_choices=float((lead[:, 0] <= 2 * tolerance * largest).double().mean()),
        distinct_choices=len(mine.unique()),
        tolerance=tolerance,
    )


def _logits(
    model: Any, texts: Sequence[Sequence[int]], token_types: Sequence[Sequence[int]] | None, rows: Sequence[int]
) -> Tensor:
    """Classify some of the texts: (rows, classes)."""
    types = token_types and [token_types[row] for row in rows]
    inputs = source_inputs([texts[row] for row in rows], model.config.pad_token_id or 0, types)
    return model(**model_inputs(model, inputs)).logits.float()
