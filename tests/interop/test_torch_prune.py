"""Amounts of torch.nn.utils.prune and ours: every function, call after call, in any mixture, to the element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from secateur.anatomy.roles import Weight
from secateur.errors import MaskError
from secateur.interop.torch_prune import group_removed, removed_of, removed_units, sparsity_of
from secateur.masks.group import prune_group
from secateur.masks.hold import attach
from secateur.masks.mask import MaskSet

SHAPES = ((6, 5), (4, 7), (9, 3))
PATHS = ("a.weight", "b.weight", "c.weight")


class Pair:
    """The same three layers twice: one that torch prunes, one that we do."""

    def __init__(self, seed: int = 0) -> None:
        drawn = torch.Generator().manual_seed(seed)
        values = [torch.randn(shape, generator=drawn) for shape in SHAPES]
        self.theirs, self.ours = self._net(values), self._net(values)
        self.masks = MaskSet.empty()

    @staticmethod
    def _net(values: list[Tensor]) -> nn.ModuleDict:
        layers = {path[0]: nn.Linear(value.shape[1], value.shape[0]) for path, value in zip(PATHS, values, strict=True)}
        for layer, value in zip(layers.values(), values, strict=True):
            layer.weight = nn.Parameter(value.clone())
        return nn.ModuleDict(layers)

    def layer(self, path: str) -> Any:
        return self.theirs[path[0]]

    def mask(self, path: str) -> Tensor:
        """What torch has removed by now."""
        return getattr(self.layer(path), "weight_mask", torch.ones(self.layer(path).weight.shape)).bool()

    def prune(self, *paths: str, **options: Any) -> None:
        """Prune as our own recipe would: masks lie on the model, and what is dead stays dead."""
        weights = [Weight(path, "feed_forward", None, None, SHAPES[PATHS.index(path)], path, "wi") for path in paths]
        with attach(self.ours, self.masks):
            found = prune_group(self.ours, weights, already=self.masks, **options)
        self.keep(found)

    def keep(self, found: dict[str, Tensor]) -> None:
        self.masks = MaskSet({**self.masks.masks, **found}, dict.fromkeys({**self.masks.masks, **found}, "hold"), "")

    def numel(self, *paths: str) -> int:
        return sum(SHAPES[PATHS.index(path)][0] * SHAPES[PATHS.index(path)][1] for path in paths)

    def same(self) -> bool:
        mine = {path: self.masks.masks.get(path, torch.ones(self.mask(path).shape).bool()) for path in PATHS}
        return all(torch.equal(mine[path], self.mask(path)) for path in PATHS)


def test_l1_unstructured() -> None:
    pair, path = Pair(), PATHS[0]
    for amount in (0.3, 4, 0.5):
        removed = pair.masks.removed(path)
        prune.l1_unstructured(pair.layer(path), "weight", amount=amount)
        pair.prune(path, sparsity=sparsity_of(amount, num_units=30, removed=removed), score="magnitude", scope="tensor")
        assert pair.same()
    assert pair.masks.removed(path) == removed_of(0.3, 4, 0.5, num_units=30)


def test_l1_unstructured_with_importance_scores() -> None:
    pair, path = Pair(), PATHS[0]
    scores = torch.randn(SHAPES[0])
    prune.l1_unstructured(pair.layer(path), "weight", amount=0.4, importance_scores=scores)
    pair.prune(path, sparsity=sparsity_of(0.4, num_units=30), score=lambda weight: scores.abs())
    assert pair.same()


@pytest.mark.parametrize("amount", [0.35, 7])
def test_random_unstructured_removes_as_many(amount: float) -> None:
    pair, path = Pair(), PATHS[1]
    for _ in range(2):
        removed = pair.masks.removed(path)
        prune.random_unstructured(pair.layer(path), "weight", amount=amount)
        pair.prune(path, sparsity=sparsity_of(amount, num_units=28, removed=removed), score="random", scope="tensor")
        assert pair.masks.removed(path) == int((~pair.mask(path)).sum())


def norm(order: float, dim: int) -> str | Callable[[Tensor], Tensor]:
    """The score whose mean over a row or a column ranks as torch's norm of that order does."""
    if order == 1:
        return "magnitude"
    if order == 2:
        return "torch:square"  # as a recipe names it
    largest = Tensor.amax if order > 0 else Tensor.amin
    return lambda weight: largest(weight.abs(), dim=1 - dim, keepdim=True).expand_as(weight)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("order", [1, 2, float("inf"), float("-inf")])
def test_ln_structured(dim: int, order: float) -> None:
    pair, path = Pair(), PATHS[1]
    unit = "row" if dim == 0 else "column"
    for amount in (0.3, 1):
        gone = removed_units(pair.mask(path), dim)
        prune.ln_structured(pair.layer(path), "weight", amount=amount, n=order, dim=dim)
        sparsity = sparsity_of(amount, num_units=SHAPES[1][dim], removed=gone)
        pair.prune(path, sparsity=sparsity, score=norm(order, dim % 2), scope="tensor", unit=unit)
        assert pair.same()


@pytest.mark.parametrize("dim", [0, 1])
def test_random_structured_removes_as_many(dim: int) -> None:
    pair, path = Pair(), PATHS[2]
    for amount in (0.34, 1):
        gone = removed_units(pair.mask(path), dim)
        prune.random_structured(pair.layer(path), "weight", amount=amount, dim=dim)
        sparsity = sparsity_of(amount, num_units=SHAPES[2][dim], removed=gone)
        pair.prune(path, sparsity=sparsity, score="random", scope="tensor", unit=("row", "column")[dim])
        assert removed_units(pair.masks.masks[path], dim) == removed_units(pair.mask(path), dim) > gone


@pytest.mark.parametrize("method", [prune.L1Unstructured, prune.RandomUnstructured])
def test_global_unstructured(method: type) -> None:
    pair = Pair()
    for amount in (0.2, 0.5, 3):
        removed = sum(map(pair.masks.removed, PATHS))
        prune.global_unstructured([(pair.layer(path), "weight") for path in PATHS], method, amount=amount)
        sparsity = sparsity_of(amount, num_units=pair.numel(*PATHS), removed=removed)
        pair.prune(*PATHS, sparsity=sparsity, score="magnitude" if method is prune.L1Unstructured else "random")
        assert sum(map(pair.masks.removed, PATHS)) == sum(int((~pair.mask(path)).sum()) for path in PATHS)
        assert pair.same() or method is prune.RandomUnstructured


def test_custom_from_mask_and_identity() -> None:
    pair, path = Pair(), PATHS[0]
    for mask in (torch.arange(30).reshape(6, 5) % 3 > 0, torch.arange(30).reshape(6, 5) % 4 > 0):
        prune.custom_from_mask(pair.layer(path), "weight", mask)
        pair.masks = pair.masks & MaskSet({path: mask}, {path: "hold"}, "")
        assert pair.same()
    prune.identity(pair.layer(PATHS[1]), "weight")
    pair.masks = pair.masks & MaskSet({PATHS[1]: torch.ones(SHAPES[1]).bool()}, {PATHS[1]: "hold"}, "")
    assert pair.same() and pair.masks.removed(PATHS[1]) == 0


class EveryOther(prune.BasePruningMethod):
    """The method that torch's tutorial writes as an example."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        mask = default_mask.clone()
        mask.view(-1)[::2] = 0
        return mask


class Nearest(prune.BasePruningMethod):
    """Keeps what is near 1: a method that ranks, which is a score here."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        mask = default_mask.clone()
        mask.view(-1)[torch.topk((t - 1).abs().view(-1), k=round(0.5 * t.numel())).indices] = 0
        return mask


def test_methods_of_ones_own() -> None:
    pair, path = Pair(), PATHS[0]
    EveryOther.apply(pair.layer(path), "weight")
    mask = torch.ones(SHAPES[0]).bool()
    mask.view(-1)[::2] = False
    pair.keep({path: mask})
    assert pair.same()
    pair, path = Pair(), PATHS[1]
    Nearest.apply(pair.layer(path), "weight")
    pair.prune(path, sparsity=sparsity_of(0.5, num_units=28), score=lambda weight: -(weight - 1).abs())
    assert pair.same()


def test_is_pruned_and_remove() -> None:
    pair, path = Pair(), PATHS[0]
    assert not prune.is_pruned(pair.theirs) and not len(pair.masks)
    prune.l1_unstructured(pair.layer(path), "weight", amount=0.5)
    pair.prune(path, sparsity=0.5)
    assert prune.is_pruned(pair.layer(path)) and path in pair.masks and PATHS[1] not in pair.masks
    attach(pair.ours, pair.masks)  # hold writes the zeros at once: nothing has to be removed afterwards
    prune.remove(pair.layer(path), "weight")
    assert not prune.is_pruned(pair.theirs)
    assert torch.equal(pair.layer(path).weight, pair.ours.get_parameter(path))
    assert pair.ours.state_dict().keys() == pair.theirs.state_dict().keys()


amounts = st.floats(0, 1, exclude_max=True) | st.integers(0, 6)
calls = st.lists(
    st.tuples(st.sampled_from(["tensor", "global", "two", "row", "column"]), st.integers(0, 2), amounts),
    min_size=1,
    max_size=5,
)


def play(pair: Pair, kind: str, index: int, amount: float) -> bool:
    """One call of torch, and the same by our own means; false where torch refuses it, or would empty everything."""
    path = PATHS[index]
    layer, shape = pair.layer(path), SHAPES[index]
    if kind in ("row", "column"):
        dim = ("row", "column").index(kind)
        units, gone, options = shape[dim], removed_units(pair.mask(path), dim), {"scope": "tensor", "unit": kind}
        paths: tuple[str, ...] = (path,)
    else:
        paths = {"tensor": (path,), "global": PATHS, "two": tuple(p for p in PATHS if p != path)}[kind]
        sizes = {p: pair.numel(p) for p in paths}
        units, gone, options = sum(sizes.values()), group_removed(pair.masks.masks, sizes), {"scope": "global"}
    try:
        sparsity = sparsity_of(amount, num_units=units, removed=gone)
    except MaskError:
        with pytest.raises(ValueError, match="amount"):
            prune_torch(pair, kind, paths, layer, amount)
        return False
    if sparsity == 1.0 or gone == units:
        return False
    prune_torch(pair, kind, paths, layer, amount)
    pair.prune(*paths, sparsity=sparsity, score="magnitude", **options)
    return True


def prune_torch(pair: Pair, kind: str, paths: tuple[str, ...], layer: nn.Module, amount: float) -> None:
    if kind == "tensor":
        prune.l1_unstructured(layer, "weight", amount=amount)
    elif kind in ("row", "column"):
        prune.ln_structured(layer, "weight", amount=amount, n=1, dim=("row", "column").index(kind))
    else:
        layers = [(pair.layer(path), "weight") for path in paths]
        prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=amount)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 50), made=calls)
def test_any_mixture_of_calls_keeps_the_same_set(seed: int, made: list[tuple[str, int, float]]) -> None:
    pair = Pair(seed)
    for kind, index, amount in made:
        if not play(pair, kind, index, amount):
            break
        assert pair.same(), (kind, index, amount)


@settings(max_examples=200, deadline=None)
@given(num_units=st.integers(1, 3_000_000_000), shares=st.lists(st.floats(0, 1), max_size=6), data=st.data())
def test_sparsity_gives_the_number_back(num_units: int, shares: list[float], data: st.DataObject) -> None:
    removed = data.draw(st.integers(0, num_units))
    gone = removed_of(*shares, num_units=num_units, removed=removed)
    assert removed <= gone <= num_units
    assert round(sparsity_of(*shares, num_units=num_units, removed=removed) * num_units) == gone
    steps = removed
    for share in shares:  # one call after the other is all of them at once
        steps = removed_of(share, num_units=num_units, removed=steps)
    assert steps == gone


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 60), made=st.lists(st.floats(0, 1) | st.integers(0, 8), max_size=5))
def test_counts_are_torchs_own_over_iterated_calls(size: int, made: list[float]) -> None:
    layer, removed = nn.Linear(size, 1), 0
    for amount in made:
        try:
            removed = removed_of(amount, num_units=size, removed=removed)
        except MaskError:
            with pytest.raises(ValueError, match="amount"):
                prune.l1_unstructured(layer, "weight", amount=amount)
            return
        prune.l1_unstructured(layer, "weight", amount=amount)
        assert int((layer.weight_mask == 0).sum()) == removed


@pytest.mark.parametrize(
    ("amount", "told"), [(-0.1, "a share"), (1.5, "a share"), (-1, "a number"), (11, "10 remain"), (True, "True")]
)
def test_what_torch_refuses_is_refused(amount: float, told: str) -> None:
    with pytest.raises(MaskError, match=told):
        sparsity_of(amount, num_units=10)
    with pytest.raises(MaskError, match="removed is 11"):
        sparsity_of(0.5, num_units=10, removed=11)
    assert sparsity_of(num_units=0) == 0.0
