"""View: the weight stays dense and shared, and a linear layer sees it through a mask."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class _StraightThrough(torch.autograd.Function):
    """weight x mask, whose gradient reaches a score as if the score were the mask itself."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor, scores: Tensor) -> Tensor:
        ctx.save_for_backward(weight, mask)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        weight, mask = ctx.saved_tensors
        gradient, wanted = gradients[0], ctx.needs_input_grad
        return gradient * mask if wanted[0] else None, None, gradient * weight if wanted[2] else None


class MaskedLinear(nn.Linear):
    """A linear layer that multiplies its weight by a mask in the forward pass.

    It shares the Parameter object of the layer it stands for, so ties, optimizers and state-dict keys stay as they
    are; the mask is no part of the state dict. The gradient of the weight is mask x gradient of the product, so under a
    tie the table's gradient is that of the embedding plus the masked one of the head.

    In eval mode and without gradients the product is computed once and kept until the weight changes: keyed on the
    weight's memory, version and type, and dropped by `train()`, `eval()` and every forward pass with gradients. Only a
    write through `.data` between two forward passes of one eval period goes unseen.

    Args:
        linear: the layer to stand for.
        mask: bool, the weight's shape (out_features, in_features), True = keep.
    """

    mask: Tensor
    scores: Tensor | None  # float32, the weight's shape: receives the mask's gradient while it is learned
    whole_gradient: bool  # whether removed entries of the weight get the product's gradient too, to be judged by it
    factors: Tensor | None  # float32, the weight's shape: what the product is multiplied with while that is learned

    def __init__(self, linear: nn.Linear, mask: Tensor) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make a weight only to throw it away
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("mask", mask.to(linear.weight.device), persistent=False)
        self.scores = self.factors = None
        self.whole_gradient = False
        self._product: tuple[Any, Tensor] | None = None
        self.training = linear.training

    def masked_weight(self) -> Tensor:
        """Multiply weight and mask, and factors where there are any: (out_features, in_features), differentiable."""
        if self.factors is not None:
            learns = self.training and torch.is_grad_enabled()
            factors = self.factors if learns else self.factors.detach()
            return self.weight * factors.to(self.weight.dtype) * self.mask
        if self.scores is not None and self.training and torch.is_grad_enabled():  # calibration batches teach nothing
            return cast(Tensor, _StraightThrough.apply(self.weight, self.mask, self.scores))
        product = self.weight * self.mask
        if self.whole_gradient:
            return self.weight + (product - self.weight).detach()  # w + 0 and w - w: the product's own value
        return product

    def forward(self, input: Tensor) -> Tensor:
        """Apply the masked layer: (..., in_features) -> (..., out_features)."""
        if self.training or torch.is_grad_enabled():
            self._product = None  # a step may follow, and fused optimizers do not raise the weight's version
            return functional.linear(input, self.masked_weight(), self.bias)
        key = [
            (tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in (self.weight, self.mask, *self._learned())
        ]
        if self._product is None or self._product[0] != key:
            self._product = (key, self.masked_weight())
        return functional.linear(input, self._product[1], self.bias)

    def _learned(self) -> tuple[Tensor, ...]:
        return () if self.factors is None else (self.factors,)

    def train(self, mode: bool = True) -> MaskedLinear:
        """Switch between train and eval, and drop the kept product."""
        self._product = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle without the kept product."""
        return {**self.__dict__, "_product": None}

    def extra_repr(self) -> str:
        """Say how much is removed, beside the layer's sizes."""
        kept = int(self.mask.count_nonzero())
        return f"{super().extra_repr()}, sparsity={1 - kept / max(1, self.mask.numel()):.4f}"
