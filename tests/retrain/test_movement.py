"""Learned scores: the straight-through gradient, what they prefer, and that they can be gone on with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import CheckpointError
from secateur.masks.hold import attach
from secateur.masks.mask import MaskSet
from secateur.processes import Processes
from secateur.retrain.movement import SCORES, ScoreLearner


def learner(*, soft: bool = False, regularization: float = 0.0, learning_rate: float = 0.01) -> ScoreLearner:
    return ScoreLearner(
        ["0.weight"],
        soft=["0.weight"] if soft else [],
        learning_rate=learning_rate,
        regularization=regularization,
        processes=Processes(),
    )


def masked(mask: Tensor, *, weight: Tensor | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(mask.shape[1], mask.shape[0], bias=False))
    if weight is not None:
        model[0].weight = nn.Parameter(weight.clone())
    attach(model, MaskSet({"0.weight": mask}, {"0.weight": "view"}, ""))
    return model


def learned(scores: ScoreLearner) -> Tensor:
    return scores.statistics()["0.weight"]["learned"]


def test_a_score_gets_the_gradient_of_its_mask() -> None:
    mask = torch.tensor([[True, False, True], [False, True, True]])
    model, scores = masked(mask), learner()
    scores.connect(model)
    batch = torch.randn(5, 3)
    model(batch).square().sum().backward()
    weight = model[0].weight.detach()
    real = mask.float().requires_grad_()
    nn.functional.linear(batch, weight * real).square().sum().backward()
    torch.testing.assert_close(model[0].scores.grad, real.grad)
    alone = weight.clone().requires_grad_()
    nn.functional.linear(batch, alone * mask).square().sum().backward()
    torch.testing.assert_close(model[0].weight.grad, alone.grad)
    assert [name for name, _ in model.named_parameters()] == ["0.weight"] == list(model.state_dict())


def test_calibration_batches_teach_no_score() -> None:
    """Statistics for other scores of the stage are gathered in eval mode, with gradients."""
    model, scores = masked(torch.ones(2, 3, dtype=torch.bool)), learner()
    scores.connect(model)
    model.eval()
    model(torch.randn(4, 3)).square().sum().backward()
    assert model[0].scores.grad is None and model[0].weight.grad is not None


def test_what_moves_away_from_zero_outranks_what_is_large() -> None:
    """The task needs feature 1 and not feature 0, whose weight is larger still."""
    model = masked(torch.ones(1, 2, dtype=torch.bool), weight=torch.tensor([[1.0, 0.1]]))
    scores = learner()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(10):
        scores.connect(model)
        batch = torch.randn(32, 2)
        (model(batch)[:, 0] - 2 * batch[:, 1]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        scores.step(0.0)
    magnitudes = model[0].weight.detach().abs()
    assert magnitudes[0, 0] > magnitudes[0, 1] and learned(scores)[0, 0] < learned(scores)[0, 1]


def test_pressure_pushes_out_what_nothing_holds() -> None:
    """Soft scores that no gradient lifts sink below the threshold; those that it lifts stay."""
    model = masked(torch.ones(1, 2, dtype=torch.bool), weight=torch.tensor([[0.0, 1.0]]))
    scores, shares = learner(soft=True, regularization=0.5, learning_rate=0.1), []
    for _ in range(60):
        scores.connect(model)
        batch = torch.randn(32, 2)
        (model(batch)[:, 0] - 2 * batch[:, 1]).square().mean().backward()
        scores.step(1.0)
        shares.append(scores.below(["0.weight"], MaskSet.empty("")))
    assert shares[0] == 0.0 and shares[-1] == 0.5 and shares == sorted(shares)


@pytest.mark.parametrize("stepped", [False, True])
def test_a_checkpoint_brings_scores_and_moments_back(tmp_path: Path, stepped: bool) -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)

    def step(model: nn.Module, scores: ScoreLearner, seed: int) -> None:
        torch.manual_seed(seed)
        model(torch.randn(4, 3)).square().sum().backward()
        scores.step(0.5)

    model, scores = masked(mask), learner(soft=True, regularization=1.0)
    scores.connect(model)
    if stepped:
        step(model, scores, 1)
    assert not ScoreLearner.active(tmp_path)
    scores.save(tmp_path)
    other, again = masked(mask), learner(soft=True, regularization=1.0)
    assert ScoreLearner.active(tmp_path)
    again.load(tmp_path, other)
    for pair in ((model, scores), (other, again)):
        step(*pair, 2)
    assert torch.equal(learned(scores), learned(again)) and bool(learned(scores).any())


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    model, scores = masked(torch.ones(2, 3, dtype=torch.bool)), learner()
    scores.connect(model)
    scores.save(tmp_path)
    content = (tmp_path / SCORES).read_bytes()
    for damaged in (content[:-3], b"", content.replace(b"0.weight", b"1.weight")):
        (tmp_path / SCORES).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"scores\.safetensors: cannot be read"):
            learner().load(tmp_path, model)
