from __future__ import annotations

import pytest
import torch

from secateur.errors import MaskError
from secateur.masks.units import expand_units, pattern_mask, unit_alive, unit_scores

SHAPE = (6, 8)


@pytest.mark.parametrize(
    ("unit", "block", "shape"),
    [("weight", None, (6, 8)), ("row", None, (6,)), ("column", None, (8,)), ("weight", (3, 2), (2, 4))],
)
def test_units_are_scored_by_their_mean_and_expand_to_all_their_elements(unit, block, shape) -> None:
    score = torch.rand(SHAPE)
    units = unit_scores(score, unit, block=block)
    assert units.shape == shape
    kept = units >= units.median()
    mask = expand_units(kept, SHAPE, unit, block=block)
    assert mask.shape == SHAPE
    assert torch.equal(unit_alive(mask, unit, block=block), kept)
    assert int(mask.sum()) * units.numel() == int(kept.sum()) * score.numel()
    # The mean over a kept unit is what the unit was scored by.
    assert score[mask].mean().item() == pytest.approx(units[kept].mean().item(), rel=1e-5)


@pytest.mark.parametrize("block", [(4, 2), (3, 3)])
def test_a_block_that_does_not_divide_is_refused_with_the_shape(block) -> None:
    with pytest.raises(MaskError, match=r"q\.weight: shape \(6, 8\) does not divide into blocks"):
        unit_scores(torch.rand(SHAPE), "weight", block=block, path="q.weight")


def test_a_vector_has_no_rows() -> None:
    with pytest.raises(MaskError, match=r"norm: shape \(5,\) has no rows"):
        unit_scores(torch.rand(5), "row", path="norm")


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (1, 2), (3, 16)])
@pytest.mark.parametrize("levels", [3, 1000])
def test_a_pattern_keeps_the_n_best_of_every_m_as_a_stable_sort_does(n: int, m: int, levels: int) -> None:
    score = torch.randint(0, levels, (5, 3, 4 * m), generator=torch.Generator().manual_seed(n)).float()
    mask = pattern_mask(score, n, m)
    order = score.view(-1, m).argsort(dim=1, stable=True)
    wanted = torch.ones(order.shape, dtype=torch.bool).scatter_(1, order[:, : m - n], False)
    assert torch.equal(mask.view(-1, m), wanted)


def test_a_pattern_counts_the_dead_as_removed_and_keeps_them_dead() -> None:
    score = torch.tensor([9.0, 8.0, 1.0, 2.0, 5.0, 6.0, 7.0, 8.0])
    already = torch.tensor([False, True, True, True, False, False, False, True])
    kept = pattern_mask(score, 2, 4, already=already)
    assert kept.tolist() == [False, True, False, True, False, False, False, True]


@pytest.mark.parametrize(
    ("shape", "n", "m", "message"),
    [((4, 6), 2, 4, r"wi: its last dimension does not divide by 4 \(shape \(4, 6\)\)"), ((4, 8), 4, 4, "is none")],
)
def test_a_pattern_that_does_not_fit_is_refused(shape, n: int, m: int, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        pattern_mask(torch.rand(shape), n, m, path="wi")
