"""The optimizers that a recipe can name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from transformers.optimization import Adafactor

from secateur.errors import SecateurError

ParameterGroups = list[dict[str, Any]]


def adamw(groups: ParameterGroups, *, learning_rate: float, momentum: float | None) -> torch.optim.Optimizer:
    """AdamW with betas 0.9, 0.999 (Loshchilov and Hutter 2019, arXiv:1711.05101), fused into one pass."""
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def adafactor(groups: ParameterGroups, *, learning_rate: float, momentum: float | None) -> torch.optim.Optimizer:
    """Adafactor whose steps are relative to each tensor's own scale (Shazeer and Stern 2018, arXiv:1804.04235, sec. 8).

    T5's tied table starts about 20 times larger than its other tensors; an absolute step that suits one of them does
    not suit the other, a relative one suits both.
    """
    return Adafactor(groups, lr=learning_rate, scale_parameter=True, relative_step=False, warmup_init=False)


def sgd(groups: ParameterGroups, *, learning_rate: float, momentum: float | None) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum (none: 0)."""
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum or 0.0)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": adamw, "adafactor": adafactor, "sgd": sgd}


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], *, weight_decay: float) -> ParameterGroups:
    """Split parameters into those that decay (matrices) and those that do not (norms and position biases).

    Args:
        named: names and parameters, as `model.named_parameters()` gives them.
        weight_decay: the decay of the first group, at least 0.

    Returns:
        Two groups in the form that torch optimizers take; an empty one is left out.

    Raises:
        SecateurError: nothing can be trained.
    """
    decaying, fixed = [], []
    for name, parameter in named:
        if parameter.requires_grad:
            free = parameter.ndim < 2 or "relative_attention_bias" in name
            (fixed if free else decaying).append(parameter)
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": fixed, "weight_decay": 0.0}]
    if not decaying and not fixed:
        raise SecateurError("The model has no parameter with requires_grad: there is nothing to train.")
    return [group for group in groups if group["params"]]
