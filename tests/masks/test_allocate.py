from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import MaskError
from secateur.masks.allocate import allocate

Arrays = dict[str, np.ndarray]


def greedy(scores: Arrays, alive: Arrays, budget: int, caps: dict[str, int]) -> Arrays | None:
    """Remove one element after the other, lowest first, passing over tensors that met their cap; None if it fails."""
    entries = [
        (alive[path].flat[index], value, order, index, path)
        for order, (path, array) in enumerate(scores.items())
        for index, value in enumerate(array.flat)
    ]
    kept, lost = {path: mask.copy() for path, mask in alive.items()}, dict.fromkeys(scores, 0)
    budget = max(budget, sum(not entry[0] for entry in entries))
    for living, _, _, index, path in sorted(entries):  # the dead come first
        if budget and (not living or lost[path] < caps[path]):
            kept[path].flat[index] = False
            lost[path] += 1
            budget -= 1
    return kept if not budget else None


@st.composite
def cases(draw: st.DrawFn) -> dict:
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    shapes = draw(st.lists(st.sampled_from([(1,), (3,), (2, 4), (5, 3), (0,)]), min_size=1, max_size=4))
    levels, dead = draw(st.sampled_from([2, 4, 1000])), draw(st.sampled_from([0.0, 0.3, 0.8]))
    return {
        "scores": {f"w{i}": rng.integers(0, levels, shape).astype(np.float32) for i, shape in enumerate(shapes)},
        "alive": {f"w{i}": rng.random(shape) >= dead for i, shape in enumerate(shapes)},
        "sparsity": draw(st.floats(0, 0.999)),
        "scope": draw(st.sampled_from(["global", "tensor"])),
        "max_sparsity": draw(st.sampled_from([None, 0.5, 0.9])),
        "min_keep": draw(st.sampled_from([0, 1, 2])),
    }


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_allocation_is_greedy_removal_under_caps(case: dict) -> None:
    scores, alive = case["scores"], case["alive"]
    caps = {path: array.size - case["min_keep"] for path, array in scores.items()}
    if case["max_sparsity"] is not None:
        caps = {path: min(cap, int(case["max_sparsity"] * scores[path].size)) for path, cap in caps.items()}
    groups = [[path] for path in scores] if case["scope"] == "tensor" else [list(scores)]
    wanted: Arrays | None = {}
    for group in groups:
        budget = round(case["sparsity"] * sum(scores[path].size for path in group))
        part = greedy({p: scores[p] for p in group}, {p: alive[p] for p in group}, budget, caps)
        wanted = None if part is None or wanted is None else wanted | part

    def call() -> dict[str, torch.Tensor]:
        return allocate(
            {path: torch.from_numpy(array) for path, array in scores.items()},
            case["sparsity"],
            scope=case["scope"],
            already={path: torch.from_numpy(mask) for path, mask in alive.items()},
            max_sparsity=case["max_sparsity"],
            min_keep=case["min_keep"],
        )

    if wanted is None:
        with pytest.raises(MaskError, match="are to be removed"):
            call()
    else:
        found = call()
        assert list(found) == list(scores)
        for path, mask in found.items():
            np.testing.assert_array_equal(mask.numpy(), wanted[path])


def test_the_number_removed_is_round_half_to_even_of_the_original() -> None:
    scores = {"w": torch.arange(10.0)}
    assert [int((~allocate(scores, s)["w"]).sum()) for s in (0.0, 0.05, 0.15, 0.25, 0.99)] == [0, 0, 2, 2, 10]


def test_masks_are_nested_and_count_the_original_elements() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(20, 10, generator=generator) for name in "ab"}
    before = allocate(scores, 0.3)
    other = {name: torch.rand(20, 10, generator=generator) for name in "ab"}
    after = allocate(other, 0.7, already=before)
    assert sum(int((~mask).sum()) for mask in after.values()) == 280
    assert all(bool((after[name] <= before[name]).all()) for name in "ab")


def test_what_is_removed_beyond_the_number_stays_removed() -> None:
    dead = {"w": torch.tensor([True, False, False, False])}
    assert torch.equal(allocate({"w": torch.ones(4)}, 0.5, already=dead)["w"], dead["w"])


def test_the_input_is_not_changed_and_the_output_is_new() -> None:
    scores, already = {"w": torch.rand(50)}, {"w": torch.rand(50) > 0.2}
    copies = scores["w"].clone(), already["w"].clone()
    for sparsity in (0.0, 0.6):
        allocate(scores, sparsity, already=already)["w"].fill_(False)
    assert torch.equal(scores["w"], copies[0])
    assert torch.equal(already["w"], copies[1])


def test_capped_tensors_lose_their_cap_and_the_others_the_rest() -> None:
    scores = {"low": torch.arange(100.0) / 1000, "mid": 1 + torch.arange(100.0), "high": 500 + torch.arange(100.0)}
    masks = allocate(scores, 0.5, max_sparsity=0.6)
    assert [int((~mask).sum()) for mask in masks.values()] == [60, 60, 30]
    assert not masks["low"][:60].any()


def test_a_cap_written_in_decimals_is_that_number_of_elements() -> None:
    masks = allocate({"a": torch.zeros(100), "b": torch.ones(100)}, 0.25, max_sparsity=0.29)
    assert int((~masks["a"]).sum()) == 29  # 0.29 * 100 is 28.999999999999996


def test_small_floats_and_odd_strides_are_taken() -> None:
    scores = torch.rand(6, 8).to(torch.bfloat16).t()
    mask = allocate({"w": scores}, 0.5)["w"]
    assert mask.shape == (8, 6)
    assert int(mask.sum()) == 24
    assert scores[mask].min() >= scores[~mask].max()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    with pytest.raises(MaskError, match=r"decoder\.wo: .*NaN or infinity"):
        allocate({"ok": torch.ones(3), "decoder.wo": torch.tensor([1.0, bad])}, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, "sparsity is 1.0"),
        ({"sparsity": -0.1}, "sparsity is -0.1"),
        ({"sparsity": 0.5, "max_sparsity": 1.5}, "max_sparsity is 1.5"),
        ({"sparsity": 0.5, "min_keep": -1}, "min_keep is -1"),
        ({"sparsity": 0.5, "already": {"w": torch.ones(2, dtype=torch.bool)}}, r"earlier mask has shape \(2,\)"),
        ({"sparsity": 0.9, "max_sparsity": 0.5}, r"w: 9 of 10 elements .* at most 5 go \(a sparsity of 0.5\)"),
        ({"sparsity": 0.9, "scope": "tensor", "min_keep": 4}, "at most 6 go"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_numbers(arguments: dict, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        allocate({"w": torch.rand(10)}, **arguments)


def test_whole_numbers_are_no_scores() -> None:
    with pytest.raises(MaskError, match="floating-point"):
        allocate({"w": torch.arange(4)}, 0.5)


def test_nothing_gives_nothing() -> None:
    assert allocate({}, 0.5) == {}


@st.composite
def matrices(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, float]:
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    shape = draw(st.sampled_from([(1, 4), (5, 1), (3, 4), (7, 5), (6,), (2, 3, 4)]))
    levels, dead = draw(st.sampled_from([2, 1000])), draw(st.sampled_from([0.0, 0.2, 0.8]))
    alive = rng.random(shape) >= dead * rng.random((*shape[:-1], 1))  # some rows have lost more than others
    return rng.integers(0, levels, shape).astype(np.float32), alive, draw(st.floats(0, 0.999))


@settings(max_examples=150, deadline=None)
@given(case=matrices())
def test_scope_row_takes_the_same_from_every_row(case: tuple[np.ndarray, np.ndarray, float]) -> None:
    scores, alive, sparsity = case
    found = allocate({"w": torch.from_numpy(scores)}, sparsity, scope="row", already={"w": torch.from_numpy(alive)})[
        "w"
    ].numpy()
    assert found.shape == scores.shape and not (found & ~alive).any()
    assert (~found).sum() == max(round(sparsity * scores.size), (~alive).sum())
    rows, before, kept = (each.reshape(-1, scores.shape[-1]) for each in (scores, alive, found))
    lost, had_lost = (~kept).sum(1), (~before).sum(1)
    touched = lost > had_lost
    if touched.any():  # no row that lost something lacks more than one above any other
        level = lost.min()
        assert lost[touched].max() <= level + 1
        further = [row[was & ~now].max() for row, was, now in zip(rows[touched], before[touched], kept[touched],
                   strict=True) if (~now).sum() > level]  # fmt: skip
        spared = [row[now].min() for row, now in zip(rows, kept, strict=True) if (~now).sum() == level and now.any()]
        assert not further or not spared or max(further) <= min(spared)
    for row, keep_was, keep in zip(rows, before, kept, strict=True):
        gone = sorted((value, index) for index, value in enumerate(row) if keep_was[index] and not keep[index])
        stay = sorted((value, index) for index, value in enumerate(row) if keep[index])
        assert not gone or not stay or gone[-1] < stay[0]


def test_scope_row_has_room_for_all_that_is_asked_or_says_so() -> None:
    with pytest.raises(MaskError, match="are to be removed"):
        allocate({"w": torch.rand(4, 4)}, 0.9, scope="row", min_keep=4)
    assert not allocate({"w": torch.rand(3, 5), "v": torch.zeros(0, 3)}, 0.0, scope="row")["w"].logical_not().any()
