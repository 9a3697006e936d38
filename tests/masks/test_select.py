from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secateur.masks import select
from secateur.masks.select import Part, find_cut, keep_above

KINDS = ("normal", "equal", "two", "steps", "runs", "denormal", "signed_zeros", "sorted", "spike", "extremes")


def make_values(kind: str, size: int, seed: int) -> np.ndarray:
    """Values that are hard on a selection by sampling: ties, runs, order, a lone outlier, the ends of float32."""
    rng = np.random.default_rng(seed)
    tiny, largest = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
    make = {
        "normal": lambda: rng.normal(size=size),
        "equal": lambda: np.full(size, 0.25),
        "two": lambda: rng.integers(0, 2, size),
        "steps": lambda: rng.integers(0, 5, size),
        "runs": lambda: np.repeat(rng.normal(size=size // 50 + 1), 50)[:size],
        "denormal": lambda: rng.integers(0, 40, size) * tiny,
        "signed_zeros": lambda: rng.choice([0.0, -0.0, 1.0, -1.0], size),
        "sorted": lambda: np.arange(size)[:: rng.choice([1, -1])],
        "spike": lambda: np.where(np.arange(size) == seed % size, 1e9, rng.normal(size=size) * 1e-9),
        "extremes": lambda: rng.choice([-largest, -tiny, 0.0, tiny, largest], size),
    }[kind]
    return make().astype(np.float32)


def expected(values: np.ndarray, alive: np.ndarray, num_removed: int) -> np.ndarray:
    """Remove by a stable sort of everything: what the selection must equal."""
    order = np.argsort(values, kind="stable")
    kept = alive.copy()
    kept[order[alive[order]][:num_removed]] = False
    return kept


def split(array: np.ndarray, ends: list[int]) -> list[np.ndarray]:
    return np.split(array, ends)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a thousand elements take the path of a hundred million: many chunks, small samples, brackets that miss."""
    for name, value in {"CHUNK": 37, "SAMPLE": 90, "ROOM": 3, "FEW": 8, "SPREAD": 0.5}.items():
        monkeypatch.setattr(select, name, value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS),
    size=st.integers(1, 1500),
    share=st.sampled_from([0.0, 0.001, 0.3, 0.5, 0.9, 0.999, 1.0]),
    dead=st.sampled_from([0.0, 0.4, 0.99]),
    seed=st.integers(0, 2**16),
)
def test_the_set_is_that_of_a_stable_sort(
    small_steps: None, kind: str, size: int, share: float, dead: float, seed: int
) -> None:
    values = make_values(kind, size, seed)
    alive = np.random.default_rng(seed + 1).random(size) >= dead
    if not alive.any():
        alive[seed % size] = True
    num_removed = max(1, round(share * int(alive.sum())))
    ends = [size // 3, size // 3, size // 2]  # one of the parts is empty
    parts = [Part(*pair) for pair in zip(split(values, ends), split(alive, ends), strict=True)]
    kept = np.concatenate([mask.numpy() for mask in keep_above(parts, find_cut(parts, num_removed))])
    np.testing.assert_array_equal(kept, expected(values, alive, num_removed))


@pytest.mark.parametrize("kind", KINDS)
def test_large_arrays_at_the_real_sizes(kind: str) -> None:
    values = make_values(kind, 700_000, 3)
    alive = np.ones(values.size, bool)
    parts = [Part(part) for part in split(values, [100, 350_000])]
    for num_removed in (1, 420_000, 699_999):
        kept = torch.cat(keep_above(parts, find_cut(parts, num_removed))).numpy()
        np.testing.assert_array_equal(kept, expected(values, alive, num_removed))


def test_the_global_generators_are_left_alone() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    find_cut([Part(make_values("normal", 300_000, 0))], 1000)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()
