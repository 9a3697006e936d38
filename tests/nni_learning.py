"""Trainings that learn scores or factors, by our own learner, step for step as NNI's pruners order them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from secateur.interop.nni import read_targets
from secateur.interop.nni_modules import ops_of
from secateur.interop.nni_pruners import PRUNERS
from secateur.masks.hold import attach
from secateur.masks.mask import MaskSet
from secateur.masks.targets import prune_targets
from secateur.processes import Processes
from secateur.retrain.movement import ScoreLearner
from secateur.retrain.schedule import CountedSteps

if TYPE_CHECKING:
    from nni_cases import Case


def learn(case: Case, net: nn.Module) -> dict[str, Tensor]:
    """Train an MLP with a learner, and prune it as the case's pruner does."""
    from nni_cases import batches, loss_of, num_steps

    preset, settings = PRUNERS[case.pruner], case.settings
    targets = read_targets(case.config_list, ops_of(net), granularity=preset.granularity).targets
    scored = [target for target in targets if target.is_scored]
    learner = ScoreLearner(
        [target.path for target in scored],
        soft=(),
        learning_rate=1e-2,
        regularization=settings.get("regular_scale", 0.0),
        processes=Processes(),
        blocks={target.path: target.block for target in scored if target.block},
        slim=case.pruner == "slim",
    )
    steps = num_steps(case)
    first = settings.get("warmup_step", 0)
    shares: dict[int, float] = {steps: 1.0}
    if case.pruner == "movement":
        shares = CountedSteps("cubic", first, steps, 1).shares(steps + 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    masks = {target.path: torch.ones(target.shape).bool() for target in scored}
    for step, batch in enumerate(batches(steps), start=1):
        with attach(net, _laid(masks)):
            learner.connect(net)
            optimizer.zero_grad()
            loss_of(net.train(), batch).backward()
            for path, mask in masks.items():
                if path.endswith("bias"):
                    net.get_parameter(path).grad.mul_(mask)  # pyright: ignore[reportOptionalMemberAccess]
        learner.step(0.0)
        optimizer.step()
        if step in shares:
            statistics = learner.statistics()
            weights: dict[str, Any] = {target.path: net.get_parameter(target.path) for target in targets}
            now = [target.scaled(shares[step]) for target in targets]
            masks = prune_targets(now, weights, score=preset.score, norm=preset.norm, statistics=statistics)
    return masks


def _laid(masks: dict[str, Tensor]) -> MaskSet:
    return MaskSet(masks, {path: "view" if path.endswith("weight") else "hold" for path in masks}, "")
