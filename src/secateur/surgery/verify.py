"""Prove that a cut model computes what the masked one does: logits, sequence scores, and the tokens it writes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from secateur.anatomy.cache import own_cache
from secateur.anatomy.families import FAMILIES
from secateur.anatomy.fit import longest_text
from secateur.errors import MaskError
from secateur.surgery.proof import Proof, check_proof
from secateur.surgery.slices import Remainder
from secateur.surgery.verify_classes import verify_classes
from secateur.tasks.encode import attention_mask, pad

TOLERANCE = 1e-5
BATCH = 32  # rows at once, as far as their logits fit
LOGIT_BYTES = 256 * 2**20  # of one model's logits at once; a single row may take more

Pair = tuple[Sequence[int], Sequence[int]]  # token ids of a source and its target


def verify(
    masked: Any,
    small: Any,
    rest: Remainder,
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 32,
    tolerance: float = TOLERANCE,
    token_types: Sequence[Sequence[int]] | None = None,
) -> Proof:
    """Compare a masked model with what was cut out of it, in fp32 on the CPU.

    Args:
        masked: the model with its masks attached.
        small: the cut model, with the masks that it still needs attached.
        rest: what it is made of.
        sources: token ids for the masked model; tokens whose rows are gone are left out.
        targets: token ids that both read as the decoder's input, one list per source; models that classify read none.
        max_new_tokens: of the greedy comparison; fewer where the model has no positions for so many.
        tolerance: see `Proof`.
        token_types: of which of two texts each source token is; for models that classify, None where it is not known.

    Returns:
        The figures; `check_proof` turns a failure into an error.

    Raises:
        MaskError: there is nothing to compare.
    """
    new = torch.full((masked.config.vocab_size,), -1, dtype=torch.long)
    rows = torch.tensor(rest.rows)
    new[rows] = torch.arange(len(rows))
    if not FAMILIES[masked.config.model_type].generates:
        given, types = _left(sources, new), token_types and _left(sources, new, token_types)
        return verify_classes(masked, small, given, _mapped(given, new), tolerance=tolerance, token_types=types)
    sources, targets = _left(sources, new), _left(targets, new)
    room = longest_text(FAMILIES[masked.config.model_type], masked.config)
    max_new_tokens = max_new_tokens if room is None else min(max_new_tokens, room - 1)
    pairs = [(source, target) for source, target in zip(sources, targets, strict=True) if source and target]
    if not pairs:
        raise MaskError("There are no rows to prove the cut on. Give it texts of the task.")
    largest = difference = score = 0.0
    same, written = 0, set()
    chosen_alike, num_choices, choices = 0, 0, set()
    with torch.inference_mode():
        for batch in _batches(pairs, masked.config.vocab_size):
            given, asked = [source for source, _ in batch], [target for _, target in batch]
            one = _logits(masked, given, asked)
            one = one if len(rows) == one.shape[-1] else one[..., rows]
            two = _logits(small, _mapped(given, new), _mapped(asked, new))
            real = attention_mask(asked).bool()
            if not bool(one[real].isfinite().all() and two[real].isfinite().all()):
                return Proof(len(pairs), math.nan, math.nan, math.nan, math.nan, 0.0, 0, 0.0, 0, tolerance)
            largest = max(largest, float(one[real].abs().max()))
            difference = max(difference, float((one - two)[real].abs().max()))
            score = max(score, _score_difference(one, two, pad(_mapped(asked, new), 0), real))
            alike, likeliest = _choices(one[real], two[real], near=tolerance * largest)
            chosen_alike, num_choices = chosen_alike + int(alike.sum()), num_choices + len(alike)
            choices.update(likeliest.unique().tolist())
            del one, two  # before the next ones are made
        for start in range(0, len(pairs), BATCH):
            given = [source for source, _ in pairs[start : start + BATCH]]
            tokens = _greedy(masked, given, max_new_tokens, gone=new < 0)
            others = _greedy(small, _mapped(given, new), max_new_tokens)
            for source, mine, theirs in zip(given, tokens, others, strict=True):
                ids = new[torch.tensor(mine)].tolist() if mine else []
                written.update(mine)
                same += ids == theirs or _is_tie(masked, source, mine, rows, ids, theirs, tolerance * largest)
    relative = difference / largest if largest else difference
    return Proof(
        rows=len(pairs),
        largest_logit=largest,
        largest_difference=difference,
        relative_difference=relative,
        score_difference=score,
        same_tokens=same / len(pairs),
        distinct_tokens=len(written),
        same_choices=chosen_alike / num_choices,
        distinct_choices=len(choices),
        tolerance=tolerance,
    )


def _batches(pairs: Sequence[Pair], vocab_size: int) -> Iterator[Sequence[Pair]]:
    """Split rows so that the logits of as many as stand together stay within LOGIT_BYTES, one row at least."""
    start = 0
    while start < len(pairs):
        end, longest = start, 0
        while end < min(len(pairs), start + BATCH):
            longest = max(longest, len(pairs[end][1]))
            if end > start and (end + 1 - start) * longest * vocab_size * 4 > LOGIT_BYTES:
                break
            end += 1
        yield pairs[start:end]
        start = end


def _left(rows: Sequence[Sequence[int]], new: Tensor, beside: Sequence[Sequence[int]] | None = None) -> list[list[int]]:
    """Leave out the tokens that are gone, or what stands beside them in rows of the same lengths."""
    kept = zip(rows, rows if beside is None else beside, strict=True)
    return [[value for token, value in zip(*both, strict=True) if new[token] >= 0] for both in kept]


def _mapped(rows: Sequence[Sequence[int]], new: Tensor) -> list[list[int]]:
    return [[int(new[token]) for token in row] for row in rows]


def _logits(model: Any, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> Tensor:
    """Teacher-forced logits (rows, longest target, vocabulary), start token put before each target."""
    padding, start = _ids(model)
    shifted = [[start, *target[:-1]] for target in targets]
    return model(
        input_ids=pad(sources, padding), attention_mask=attention_mask(sources), decoder_input_ids=pad(shifted, padding)
    ).logits.float()


def _ids(model: Any) -> tuple[int, int]:
    padding = model.config.pad_token_id or 0
    start = getattr(model.config, "decoder_start_token_id", None)
    return padding, padding if start is None else start


def _choices(one: Tensor, two: Tensor, *, near: float) -> tuple[Tensor, Tensor]:
    """Compare the likeliest tokens of (positions, tokens); give whether they agree, and those of the first."""
    mine, theirs = one.argmax(-1), two.argmax(-1)
    lead = one.gather(1, mine[:, None]) - one.gather(1, theirs[:, None])  # 0 where they agree
    return lead[:, 0] <= 2 * near, mine


def _score_difference(one: Tensor, two: Tensor, targets: Tensor, real: Tensor) -> float:
    chosen = targets[..., None]
    mine = one.log_softmax(-1).gather(-1, chosen)[..., 0]
    theirs = two.log_softmax(-1).gather(-1, chosen)[..., 0]
    per_row = ((mine - theirs) * real).sum(1) / real.sum(1)
    return float(per_row.abs().max())


def _greedy(
    model: Any, sources: Sequence[Sequence[int]], max_new_tokens: int, gone: Tensor | None = None
) -> list[list[int]]:
    padding, start = _ids(model)
    end = model.config.eos_token_id
    suppressed = [] if gone is None else gone.nonzero().flatten().tolist()
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=end,
        pad_token_id=padding,
        decoder_start_token_id=start,
        suppress_tokens=suppressed or None,
    )
    own, model.generation_config = model.generation_config, settings
    try:
        found = model.generate(
            input_ids=pad(sources, padding),
            attention_mask=attention_mask(sources),
            generation_config=settings,
            **own_cache(model.config),
        )
    finally:
        model.generation_config = own
    ends = set(end if isinstance(end, list) else [end])
    rows = []
    for row in found[:, 1:].tolist():
        length = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
        rows.append(row[:length])
    return rows


def _is_tie(
    masked: Any, source: Sequence[int], mine: list[int], rows: Tensor, ids: list[int], theirs: list[int], near: float
) -> bool:
    """Tell whether two outputs part at a token that the masked model itself can hardly tell from the other."""
    place = next((at for at, (a, b) in enumerate(zip(ids, theirs, strict=False)) if a != b), None)
    if place is None:
        return False
    logits = _logits(masked, [list(source)], [mine[: place + 1]])[0, place][rows]
    return float(logits[ids[place]] - logits[theirs[place]]) <= 2 * near


__all__ = ["Proof", "check_proof", "verify"]
