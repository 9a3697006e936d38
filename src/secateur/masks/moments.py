"""What linear layers read, and its second moment: the mean of x x^T over tokens, damped, factored and inverted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateur.anatomy.roles import Weight
from secateur.errors import MaskError

Batch = dict[str, Tensor]

DAMPING = 0.01  # share of the mean of its diagonal that is added to a moment's diagonal before it is inverted
IGNORED = -100  # a target position that is padding
_STRIP = 128  # features of a product of which only one half is computed


class Reading:
    """What a linear layer reads of a batch. Where q, k and v read the same, it is selected and multiplied only once.

    Attributes:
        batch: the one at work.
    """

    def __init__(self) -> None:
        self.batch: Batch | None = None
        self._given: Any = None  # what the layer before was called with, and what else decides about its tokens
        self._tokens = self._product = torch.empty(0)

    def take(self, weight: Weight, given: Tensor) -> Tensor:
        """Leave the padding out of what a layer reads.

        Args:
            weight: the layer's.
            given: as for `without_padding`; the very tensor that the layer is called with.

        Returns:
            (tokens that are not padding, in_features), float32.
        """
        assert self.batch is not None
        about = (id(self.batch), reads_source(weight), None if given.is_inference() else given._version)
        if self._given is None or self._given[0] is not given or self._given[1] != about:
            self._given, self._product = (given, about), torch.empty(0)
            self._tokens = without_padding(weight, given.detach().float(), self.batch)
        return self._tokens

    def add_to(self, moment: Moment) -> None:
        """Add what was taken last to the moment of a layer."""
        if not self._product.numel():
            self._product = _product(self._tokens)
        moment.add(self._tokens, product=self._product)


def _product(read: Tensor) -> Tensor:
    """Give x^T x of (tokens, features), right on and above the diagonal: it is symmetric, and half of it is enough."""
    size = read.shape[1]
    found = read.new_zeros(size, size)
    for start in range(0, size, _STRIP):
        torch.mm(read[:, start : start + _STRIP].T, read[:, start:], out=found[start : start + _STRIP, start:])
    return found


class Moment:
    """The mean of x x^T over the tokens that a linear layer reads.

    Args:
        weight: the layer's, (out_features, in_features).
    """

    def __init__(self, weight: Tensor) -> None:
        size = weight.shape[1]
        self.sum = torch.zeros(size, size, dtype=torch.float32, device=weight.device)
        self.count = 0
        self.cross_sum: Tensor | None = None

    def add_cross(self, product: Tensor) -> None:
        """Add y^T x over a batch's tokens, y what the layer read before: (in_features, in_features)."""
        self.cross_sum = product.clone() if self.cross_sum is None else self.cross_sum.add_(product)

    @property
    def cross(self) -> Tensor | None:
        """The mean of y x^T; none where nothing was added."""
        return None if self.cross_sum is None else self.cross_sum / self.count

    def add(self, read: Tensor, *, product: Tensor | None = None) -> None:
        """Add what the layer reads.

        Args:
            read: (tokens, in_features), float32.
            product: x^T x of it where it is known, (in_features, in_features); what is below the diagonal is not used.
        """
        self.sum += _product(read) if product is None else product
        self.count += len(read)

    def mean(self, path: str) -> Tensor:
        """Give (in_features, in_features), float32.

        Args:
            path: the weight's name, for the message.

        Returns:
            The mean.

        Raises:
            MaskError: nothing was added, or a number is not finite.
        """
        if not self.count or not bool(self.sum.isfinite().all()):
            raise MaskError(f"{path}: no calibration batch gave its layer finite numbers to read. Use magnitude.")
        upper = self.sum.triu().div_(self.count)
        return upper.add_(upper.triu(1).T)


def damp(moment: Tensor) -> Tensor:
    """Raise a moment's diagonal by a little, so that it can be inverted.

    Args:
        moment: (n, n), positive semidefinite. A feature that was never read stands on its own, with a 1.

    Returns:
        (n, n), positive definite.
    """
    damped, diagonal = moment.clone(), moment.diagonal()
    live = diagonal > 0
    damping = DAMPING * diagonal[live].mean() if bool(live.any()) else 0.0
    damped.diagonal().copy_(torch.where(live, diagonal + damping, 1.0))
    return damped


def roots(damped: Tensor) -> tuple[Tensor, Tensor]:
    """Factor a matrix and its inverse by one Cholesky factorization.

    Args:
        damped: (n, n), positive definite.

    Returns:
        Upper triangles r and u, (n, n): the matrix is r r^T, and its inverse u^T u.

    >>> r, u = roots(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    >>> (r @ r.T).round(decimals=3).tolist(), (3 * u.T @ u).round(decimals=3).tolist()
    ([[2.0, 1.0], [1.0, 2.0]], [[2.0, -1.0], [-1.0, 2.0]])
    """
    root = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)
    one = torch.eye(len(root), dtype=root.dtype, device=root.device)
    return root, torch.linalg.solve_triangular(root, one, upper=True)


def reads_source(weight: Weight) -> bool:
    """Tell whether a weight's layer reads the source's tokens, or else the target's."""
    part = weight.part.removesuffix("_bias")
    return weight.stack == "encoder" or (weight.role == "cross_attention" and part in ("k", "v"))


def without_padding(weight: Weight, read: Tensor, batch: Batch) -> Tensor:
    """Leave out what a linear layer reads or gives of padding.

    Args:
        weight: the layer's.
        read: (rows, tokens, features); (rows, features) where it reads one vector a text.
        batch: the batch at work.

    Returns:
        (tokens that are not padding, features).
    """
    if read.ndim == 2:
        return read[(batch["labels"] != IGNORED).any(1)]
    return read[batch["attention_mask"].bool() if reads_source(weight) else batch["labels"] != IGNORED]
