"""A proof does not depend on how many rows stand together."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from nets import VOCABULARY, masks_of
from secateur.anatomy.check import anatomy_of
from secateur.masks.hold import attach
from secateur.surgery import verify as module
from secateur.surgery.cut import cut
from secateur.surgery.slices import remainder


def test_logits_stay_within_their_budget_and_the_proof_is_the_same(t5: Any, sources: Any, targets: Any) -> None:
    masks = masks_of(t5, ["head"])  # all rows of seven tokens stay so
    found = cut(t5, masks, remainder(anatomy_of(t5), masks))
    sizes: list[int] = []
    original = module._logits

    def seen(*args: Any) -> Any:
        logits = original(*args)
        sizes.append(logits.numel() * 4)
        return logits

    budget = 3 * 7 * VOCABULARY * 4  # three rows of seven tokens
    with attach(t5, masks), pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_logits", seen)
        whole = module.verify(t5, found.model, found.rest, sources[:40], targets[:40], max_new_tokens=4)
        assert max(sizes) > budget
        sizes.clear()
        patch.setattr(module, "LOGIT_BYTES", budget)
        parts = module.verify(t5, found.model, found.rest, sources[:40], targets[:40], max_new_tokens=4)
    assert len(sizes) >= 2 * 14 and max(sizes) <= budget
    assert whole.holds and parts.holds
    exact = ("rows", "same_tokens", "distinct_tokens", "tolerance")
    assert {name: asdict(parts)[name] for name in exact} == {name: asdict(whole)[name] for name in exact}
    assert parts.largest_logit == pytest.approx(whole.largest_logit, rel=1e-5)


def test_a_row_that_is_too_large_stands_alone() -> None:
    pairs = [([1], [1] * length) for length in (2, 9, 2, 2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LOGIT_BYTES", 4 * 10 * 4)
        assert [len(batch) for batch in module._batches(pairs, 10)] == [1, 1, 2]
