"""First-order Taylor scores of whole units, from gradients on calibration batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.anatomy.units import Place
from secateur.errors import MaskError
from secateur.masks.unit_scores import reduce_units

Batch = dict[str, Tensor]


def taylor_scores(
    model: nn.Module,
    found: Sequence[Place],
    batches: Iterable[Batch],
    *,
    loss: Callable[[nn.Module, Batch], Tensor],
) -> dict[Place, Tensor]:
    """Estimate for every unit how much the loss changes when the unit goes.

    A gate of 1 before the unit's output would have the gradient sum(w x g) over the weights of that output; taking the
    gate to 0 changes the loss by minus that, to first order. The score is the mean over the batches, each by its
    rows, of its absolute value.

    Args:
        model: the model, masks attached. Its weights stay as they are, its gradients are dropped, its mode is kept.
        found: the units.
        batches: what to compute the loss on; at least one. Smaller batches see more of what cancels in a mean.
        loss: (model, batch) -> a scalar.

    Returns:
        Place -> (num_units,), float64, >= 0.

    Raises:
        MaskError: there are no batches, or a gradient is not finite.

    Source: Molchanov et al. 2017, arXiv:1611.06440, sec. 2.2; for heads Michel et al. 2019, arXiv:1905.10650, sec. 2.3.
    """
    outputs = {place: place.outputs() or tuple(range(len(place.slices))) for place in found}
    paths = {piece.weight.path for place in found for piece in place.slices}
    sums = {place: torch.zeros(place.num_units, dtype=torch.float64) for place in found}
    training, num_rows = model.training, 0
    model.eval()
    try:
        for batch in batches:
            model.zero_grad(set_to_none=True)
            rows = len(batch["labels"])  # the last batch may be of one row, and is no more than that
            loss(model, batch).backward()
            products: dict[str, Tensor] = {}
            for path in paths:
                parameter: Any = model.get_parameter(path)
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                products[path] = parameter.detach() * gradient
            for place in found:
                sums[place] += rows * reduce_units(place, products, outputs[place]).abs()
            num_rows += rows
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)
    if not num_rows:
        raise MaskError("score: taylor needs at least one calibration batch; the training rows gave none.")
    for place, total in sums.items():
        if not bool(total.isfinite().all()):
            raise MaskError(
                f"{place.unit}, {place.name}: the gradients hold NaN or infinity. Check the weights, or use l2_norm."
            )
    return {place: total / num_rows for place, total in sums.items()}
