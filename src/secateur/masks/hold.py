"""Lay masks on a live model and take them off again: exactly, and without work in the forward pass under `hold`."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import torch
from torch import Tensor, nn

from secateur.anatomy.gaps import leave_out
from secateur.anatomy.roles import Anatomy
from secateur.errors import MaskError
from secateur.masks.bits import checksum, take_dead_
from secateur.masks.mask import MaskSet
from secateur.masks.tie import POLICIES
from secateur.masks.view import MaskedLinear
from secateur.masks.whole import find_gaps


class Attachment:
    """Masks that lie on a model; made by `attach`, ended by `detach` or the end of a `with` block.

    Args:
        model: the model; the masks are laid on it at once.
        masks: the masks.
    """

    def __init__(self, model: nn.Module, masks: MaskSet) -> None:
        self.model, self.masks = model, masks
        self._removed: dict[str, Tensor] = {}  # what held entries were, in flat order: values only
        self._modules: dict[str, nn.Linear] = {}  # what the masked layers stand for
        self._attached = True
        for path, mask in masks.masks.items():
            if masks.modes[path] == "hold":
                parameter = model.get_parameter(path)
                self._removed[path] = take_dead_(parameter, mask.to(parameter.device))
            else:
                self._modules[path] = _replace(model, path, lambda linear, mask=mask: MaskedLinear(linear, mask))
        gaps = find_gaps(model, masks.masks)
        self._fill_gaps = leave_out(model, gaps) if gaps else None
        self._contents = _contents(model)

    @property
    def trained(self) -> bool:
        """Whether any parameter was written to since the masks were laid on.

        Contents are compared, not `_version`: fused AdamW (the Trainer's default) and writing through `.data` do not
        raise it. A cast, or a move to another device, is no training.
        """
        return any(
            name in self._contents and dtype == self._contents[name][0] and found != self._contents[name][1]
            for name, (dtype, found) in _contents(self.model).items()
        )

    def detach(self) -> None:
        """Take the masks off.

        If no parameter was written to since `attach`, the removed values come back bit for bit. After training the
        weights stay as they are, with their zeros: the old values would no longer fit what was trained around them.
        Views give the original layer back in either case. A second call does nothing.
        """
        if not self._attached:
            return
        self._attached = False
        trained = self.trained
        if self._fill_gaps is not None:
            self._fill_gaps()
        for path, linear in self._modules.items():
            _replace(self.model, path, lambda current, linear=linear: _hand_back(current, linear))
        for path, values in self._removed.items():
            if not trained:
                parameter = self.model.get_parameter(path)
                dead = ~self.masks.masks[path].to(parameter.device)
                with torch.no_grad():
                    parameter.masked_scatter_(dead, values.to(parameter))

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def attach(model: nn.Module, masks: MaskSet, anatomy: Anatomy | None = None) -> Attachment:
    """Lay masks on a model, each by its mode.

    `hold` writes zeros into the weight: the same Parameter object, no hook, no work in the forward pass; while
    training, `secateur.retrain.keeper.keep` keeps them zero. `view` puts a `MaskedLinear` that shares the weight in the
    layer's place. State-dict keys stay plain in both. Where hidden dimensions or layers are gone that zeros alone
    cannot take away, the model leaves them out: see `anatomy.gaps`.

    Args:
        model: the model; changed in place.
        masks: the masks; all are checked before anything is changed.
        anatomy: the model's map; when given, the masks must belong to it.

    Returns:
        What takes the masks off again.

    Raises:
        MaskError: the masks belong to another model, or do not fit this one.

    >>> linear = nn.Linear(2, 1, bias=False)
    >>> before = linear.weight.detach().clone()
    >>> with attach(linear, MaskSet({"weight": torch.tensor([[True, False]])}, {"weight": "hold"}, "")):
    ...     linear.weight[0, 1].item()
    0.0
    >>> torch.equal(linear.weight, before)
    True
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    faults = _foreign(masks, anatomy) + [fault for path in masks.masks if (fault := _fault(model, named, masks, path))]
    if faults:
        raise MaskError("\n".join(faults))
    return Attachment(model, masks)


def revived(model: nn.Module, masks: MaskSet) -> dict[str, int]:
    """Count what should be zero and is not.

    Args:
        model: a model that the masks were attached to.
        masks: the masks.

    Returns:
        Name -> number of held entries that are not zero (NaN included); a view whose layer no longer masks counts all
        that it removes. Names without any are left out: an empty dict is what it should be.
    """
    counts = {}
    for path, mask in masks.masks.items():
        if masks.modes[path] == "hold":
            parameter = model.get_parameter(path).detach()
            counts[path] = int(((parameter != 0) & ~mask.to(parameter.device)).count_nonzero())
        else:
            masking = isinstance(model.get_submodule(path.rpartition(".")[0]), MaskedLinear)
            counts[path] = 0 if masking else masks.removed(path)
    return {path: count for path, count in counts.items() if count}


def _foreign(masks: MaskSet, anatomy: Anatomy | None) -> list[str]:
    """Say that masks belong to another model."""
    if anatomy is None or not masks.owner or masks.owner == anatomy.fingerprint():
        return []
    return ["These masks belong to another model (family, names or shapes differ). Prune this one, or load theirs."]


def _fault(model: nn.Module, named: dict[str, nn.Parameter], masks: MaskSet, path: str) -> str | None:
    """Say why one mask cannot be laid on a model, if it cannot."""
    if path not in named:
        return f"{path}: the model has no such parameter. The mask belongs to another model."
    parameter, mask = named[path], masks.masks[path]
    if parameter.shape != mask.shape:
        return f"{path}: the mask has shape {tuple(mask.shape)}, the weight {tuple(parameter.shape)}. Prune this model."
    owner = next(name for name, other in named.items() if other is parameter)
    if masks.modes[path] == "hold" and owner != path:
        return f"{path} is {owner} (tied): zeros written into it would remove them from both. Choose {POLICIES}."
    if masks.modes[path] == "view":
        parent, _, name = path.rpartition(".")
        if name != "weight" or not parent or not isinstance(model.get_submodule(parent), nn.Linear):
            return f"{path}: a view needs the weight of a linear layer inside the model. Use hold."
    return None


def _replace(model: nn.Module, path: str, make: Callable[[nn.Linear], nn.Linear]) -> nn.Linear:
    """Put another layer where the parameter's layer is; give the old one."""
    module_path = path.rpartition(".")[0]
    parent_path, _, name = module_path.rpartition(".")
    current = model.get_submodule(module_path)
    assert isinstance(current, nn.Linear)
    setattr(model.get_submodule(parent_path), name, make(current))
    return current


def _hand_back(current: nn.Linear, original: nn.Linear) -> nn.Linear:
    """Give the original layer what the masked one holds now: a cast or a tie may have changed the Parameter."""
    original.weight, original.bias = current.weight, current.bias
    return original.train(current.training)


def _contents(model: nn.Module) -> dict[str, tuple[torch.dtype, int]]:
    """Sum every parameter's bits up, as whole numbers: name -> type and sum."""
    return {name: (parameter.dtype, checksum(parameter)) for name, parameter in model.named_parameters()}
