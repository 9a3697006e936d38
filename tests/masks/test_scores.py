from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from secateur.errors import MaskError
from secateur.masks.blocks import score_blocks
from secateur.masks.scores import SCORES, find_score, needs, score_group, score_weight
from secateur.masks.scores.lamp import lamp
from secateur.masks.scores.output_rank import output_apoz, output_mean_rank
from secateur.recipe import names

STATISTICS = {
    "gradient": torch.rand(4, 6),
    "squared_gradient": torch.rand(4, 6),
    "input_norm": torch.rand(6),
    "input_mean": torch.rand(6),
    "input_active": torch.rand(6),
    "output_active": torch.rand(4),
    "output_mean": torch.rand(4),
    "output_gradient": torch.rand(4),
    "input_inverse": torch.rand(6) + 0.1,
    "output_power": torch.tensor([2.0]),
    "learned": torch.rand(4, 6),
}


def test_the_table_has_the_names_of_the_recipe() -> None:
    assert tuple(SCORES) == names.words(names.Score)


@pytest.mark.parametrize("name", list(SCORES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_score_is_pure_and_of_the_weights_shape(name: str, dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.randn(4, 6).to(dtype))
    before = weight.detach().clone()
    state = torch.get_rng_state()
    score = score_weight(weight, name, path="w", seed=1, statistics=STATISTICS)
    assert (score.shape, score.dtype, score.requires_grad) == (weight.shape, torch.float32, False)
    assert score.isfinite().all()
    assert torch.equal(weight.detach(), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_score_says_what_it_needs_and_is_refused_without() -> None:
    assert {name: sorted(needs(name)) for name in SCORES if needs(name)} == {
        "taylor": ["gradient"],
        "fisher": ["squared_gradient"],
        "activation": ["input_norm"],
        "obs": ["input_inverse", "output_power"],
        "obs_fisher": ["input_inverse", "output_gradient", "output_power"],
        "movement": ["learned"],
        "soft_movement": ["learned"],
    }
    for name in filter(needs, SCORES):
        told = "is learned while" if "movement" in name else "needs .* of calibration batches"
        with pytest.raises(MaskError, match=f"wo: score '{name}' {told}"):
            score_weight(torch.ones(2, 2), name, path="wo")


def test_a_function_of_your_own_may_ask_for_statistics() -> None:
    def own(weight: torch.Tensor, *, input_mean: torch.Tensor, input_active: torch.Tensor) -> torch.Tensor:
        return weight * input_mean + input_active

    assert needs(own) == {"input_mean", "input_active"}
    found = score_weight(torch.ones(4, 6), own, path="w", statistics=STATISTICS)
    assert torch.equal(found[0], STATISTICS["input_mean"] + STATISTICS["input_active"])


@pytest.mark.parametrize(("score", "name"), [(output_apoz, "output_active"), (output_mean_rank, "output_mean")])
def test_ranks_of_outputs_are_the_channels_values(score: Any, name: str) -> None:
    assert needs(score) == {name}
    for shape in ((4, 6), (4,), (4, 3, 2)):
        found = score_weight(torch.randn(shape), score, path="w", statistics=STATISTICS)
        blocks = score_blocks(found, (1, *shape[1:]), "max")
        assert torch.equal(blocks.flatten(), STATISTICS[name])


def test_lamp_orders_like_magnitude_and_does_not_know_the_scale() -> None:
    weight = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    scores = lamp(weight)
    assert torch.equal(scores.flatten().argsort(), weight.abs().flatten().argsort())
    assert torch.allclose(scores, lamp(weight * 1000.0), rtol=1e-5)
    assert scores.max() == 1.0
    brute = [float(value**2 / (weight[weight.abs() >= value.abs()] ** 2).sum()) for value in weight.flatten()[:50]]
    assert torch.allclose(scores.flatten()[:50], torch.tensor(brute), rtol=1e-4)
    assert lamp(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_lamp_lets_what_is_not_finite_be_seen(bad: float) -> None:
    assert not bool(lamp(torch.tensor([1.0, bad, 2.0])).isfinite().all())


def test_random_scores_depend_on_seed_and_name_but_not_on_the_order() -> None:
    weights = {name: torch.zeros(50) for name in ("a", "b")}
    forth = score_group(weights, "random", seed=3)
    back = score_group(dict(reversed(weights.items())), "random", seed=3)
    assert all(torch.equal(forth[name], back[name]) for name in weights)
    assert not torch.equal(forth["a"], forth["b"])
    assert not torch.equal(forth["a"], score_group(weights, "random", seed=4)["a"])


def test_a_function_of_your_own_may_ask_for_path_and_seed() -> None:
    asked = []

    def own(weight: torch.Tensor, *, path: str, seed: int) -> torch.Tensor:
        asked.append((path, seed))
        return weight.square()

    assert score_weight(torch.tensor([2.0]), own, path="x", seed=5).tolist() == [4.0]
    assert asked == [("x", 5)]


def test_a_function_is_found_by_its_module_and_name() -> None:
    assert find_score("torch:square") is torch.square
    assert score_weight(torch.tensor([-3.0]), "torch:square", path="w").tolist() == [9.0]


def test_a_function_is_found_where_the_command_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "score_of_a_test.py").write_text("def mine(weight):\n    return -weight.abs()\n")
    before = list(sys.path)
    monkeypatch.chdir(tmp_path)
    assert score_weight(torch.tensor([-3.0]), "score_of_a_test:mine", path="w").tolist() == [-3.0]
    assert sys.path == before


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ("magnitud", 'Did you mean "magnitude"'),
        ("no_such_module:f", "'no_such_module' cannot be imported"),
        ("torch:no_such_function", "has no function 'no_such_function'"),
        ("score_that_breaks:f", r"reading module 'score_that_breaks' fails: SyntaxError"),
        (":f", "reading module '' fails: ValueError"),
        ("score_of_faults:misspelt", "nothing gives it input_norms. Keywords that a score may name: path, seed, "),
        ("score_of_faults:failing", r"wo: score 'score_of_faults:failing' fails .* \(2, 2\): KeyError: 'mine'"),
        (lambda weight: weight.sum(), r"wo: score '<lambda>' returned torch.float32 \(\)"),
        (lambda weight: weight > 0, r"wo: .*torch.bool \(2, 2\)"),
        (lambda weight: None, "wo: .*NoneType"),
    ],
)
def test_what_is_no_score_is_refused(score, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "score_that_breaks.py").write_text("def f(weight)\n")
    own = "def misspelt(weight, *, input_norms): ...\n\n\ndef failing(weight):\n    return {}['mine']\n"
    (tmp_path / "score_of_faults.py").write_text(own)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MaskError, match=message):
        score_weight(torch.ones(2, 2), score, path="wo")
