from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.errors import MaskError
from secateur.masks.scores import SCORES, find_score, score_group, score_weight
from secateur.recipe import names


def test_the_table_has_the_names_of_the_recipe() -> None:
    assert tuple(SCORES) == names.words(names.Score)


@pytest.mark.parametrize("name", list(SCORES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_score_is_pure_and_of_the_weights_shape(name: str, dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.randn(4, 6).to(dtype))
    before = weight.detach().clone()
    state = torch.get_rng_state()
    score = score_weight(weight, name, path="w", seed=1)
    assert (score.shape, score.dtype, score.requires_grad) == (weight.shape, torch.float32, False)
    assert score.isfinite().all()
    assert torch.equal(weight.detach(), before)
    assert torch.equal(torch.get_rng_state(), state)


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


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ("magnitud", 'Did you mean "magnitude"'),
        ("no_such_module:f", "'no_such_module' cannot be imported"),
        ("torch:no_such_function", "has no function 'no_such_function'"),
        (lambda weight: weight.sum(), r"wo: score '<lambda>' returned torch.float32 \(\)"),
        (lambda weight: weight > 0, r"wo: .*torch.bool \(2, 2\)"),
        (lambda weight: None, "wo: .*NoneType"),
    ],
)
def test_what_is_no_score_is_refused(score, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        score_weight(torch.ones(2, 2), score, path="wo")
