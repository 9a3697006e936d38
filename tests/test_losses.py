"""Losses of pruned models: nothing is computed twice, and a model is no way from itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from secateur import losses
from secateur.losses import Choices, batches_that_fit, divergences
from secateur.sensing import sensitivity
from secateur.tasks.encode import EncodedPairs
from toy import Toy


def choices(logits: torch.Tensor, number: int) -> Choices:
    logarithms, indexes = logits.log_softmax(-1).topk(min(number, logits.shape[-1]))
    return Choices(indexes, logarithms)


@example(targets=4, words=9, seed=584, scale=8.0)  # where 5.5e-9 is left for the words that are taken as one
@given(targets=st.integers(1, 4), words=st.integers(2, 30), seed=st.integers(0, 1000), scale=st.floats(0.1, 10))
def test_the_divergence_is_that_of_the_distributions(targets: int, words: int, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    dense, found = (scale * torch.randn(targets, words, generator=generator) for _ in range(2))
    logarithms = dense.log_softmax(-1)
    whole = (logarithms.exp() * (logarithms - found.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(divergences(choices(dense, words), found), whole, rtol=1e-3, atol=1e-4)
    assert bool((divergences(choices(dense, 2), found) <= whole + 1e-4).all())  # what is taken as one hides some
    for number in (2, words):
        alone = divergences(choices(dense, number), dense)
        torch.testing.assert_close(alone, torch.zeros_like(alone), rtol=0, atol=1e-5)


def test_batches_of_the_loss_hold_every_row_and_no_more_logits_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = EncodedPairs([[4] * (1 + number % 7) for number in range(30)], [[5] * number for number in range(1, 31)])
    assert [len(batch) for batch in batches_that_fit(rows, 8, 50)] == [8, 8, 8, 6]
    monkeypatch.setattr(losses, "MAX_LOGITS", 2000)
    batches = list(batches_that_fit(rows, 8, 50))
    assert sorted(index for batch in batches for index in batch) == list(range(30))
    for batch in batches:
        longest = max(len(rows[index]["labels"]) for index in batch)
        assert len(batch) == 1 or len(batch) * longest * 50 <= 2000


@pytest.mark.parametrize(("room", "tie", "computed"), [(2**30, "view", 1 + 2), (2**30, "both", 1 + 3), (0, "view", 7)])
def test_an_encoder_that_nothing_changed_is_not_computed_again(
    toy: Toy, tmp_path: Path, room: int, tie: str, computed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "MAX_STATES", room)
    calls: list[Any] = []
    original = losses._pass

    def loss(model: Any, batch: Any, device: str, states: Any, measure: Any) -> Any:
        calls.append(states)
        return original(model, batch, device, states, measure)

    monkeypatch.setattr(losses, "_pass", loss)
    found = sensitivity(str(toy.start), toy.recipe(), out=tmp_path / "out", sparsities=[0.5], tie=tie, device="cpu")  # type: ignore[arg-type]
    batches = len(calls) // (1 + len(found["cells"]))
    assert sum(states is None for states in calls) == computed * batches  # dense, and groups that the encoder reads
