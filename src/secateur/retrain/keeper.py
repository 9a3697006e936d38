"""Keep removed weights at zero while a model trains, in any PyTorch loop.

The gradient of a dead weight is zeroed the moment it has been accumulated, so clipping, norms and the optimizer's
moments never see it. With moments and weight at zero, the usual optimizers leave the weight at zero by themselves;
after any other optimizer's step the zeros are written again, into weights and moments. Nothing is added to the forward
pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback
from transformers.optimization import Adafactor

from secateur.errors import MaskError
from secateur.masks.bits import as_bits, zero_dead_
from secateur.masks.hold import revived
from secateur.masks.mask import MaskSet

# Optimizers that leave a weight of zero with a gradient of zero and zero moments where it is: their steps are
# element by element and vanish with the gradient, and weight decay shrinks zero to zero. Read in the sources of torch
# 2.13 and transformers 5.23, and tested. With eps = 0 they would divide zero by zero. Adamax is not here because it
# remembers eps for a gradient of zero; subclasses are not here because they may do anything.
ZERO_PRESERVING: frozenset[type[torch.optim.Optimizer]] = frozenset(
    {
        torch.optim.Adadelta,
        torch.optim.Adafactor,
        torch.optim.Adagrad,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.RMSprop,
        torch.optim.SGD,
        Adafactor,
    }
)


_MOMENTUM = ("exp_avg", "momentum_buffer")  # what torch's optimizers call it


class Keeper:
    """Masks that are kept while an optimizer trains a model; made by `keep`, ended by `remove` or a `with` block."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        held: dict[str, tuple[nn.Parameter, Tensor]],
        still: Sequence[tuple[nn.Parameter, Tensor]] = (),
    ) -> None:
        self._optimizer = optimizer
        self._held = [(path, parameter, as_bits(mask)) for path, (parameter, mask) in held.items()]
        self._still = [(parameter, mask, as_bits(mask)) for parameter, mask in still if not bool(mask.all())]
        self._values: list[Tensor] = []  # of those, before the step that is at work
        self._handles: list[RemovableHandle] = []
        for path, parameter, bits in self._held:
            if parameter.requires_grad:
                self._handles.append(parameter.register_post_accumulate_grad_hook(_mask_grad(path, bits)))
                if parameter.grad is not None:
                    zero_dead_(parameter.grad, bits)
        self._zero_moments()
        self._handles.append(optimizer.register_load_state_dict_post_hook(lambda _: self._zero_moments()))
        if not preserves_zero(optimizer):
            self._handles.append(optimizer.register_step_post_hook(lambda *_: self._clean_after_step()))
        if self._still:
            self._handles.append(optimizer.register_step_pre_hook(lambda *_: self._note_still()))
            self._handles.append(optimizer.register_step_post_hook(lambda *_: self._put_back()))

    def remove(self) -> None:
        """Stop keeping; a second call does nothing."""
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> Keeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _zero_moments(self) -> None:
        """Zero whatever the optimizer remembers of dead weights, element by element.

        Of weights that may come back only their momentum: without the size of their gradients Adam's first steps
        with them would be several times too long.
        """
        dead = [(parameter, bits, None) for _, parameter, bits in self._held]
        dead += [(parameter, bits, _MOMENTUM) for parameter, _, bits in self._still]
        for parameter, bits, names in dead:
            for name, value in self._optimizer.state.get(parameter, {}).items():
                fits = isinstance(value, Tensor) and value.shape == bits.shape and value.is_floating_point()
                if fits and (names is None or name in names):
                    zero_dead_(value, bits)

    def _note_still(self) -> None:
        self._values = [parameter.detach().clone() for parameter, _, _ in self._still]

    @torch.no_grad()
    def _put_back(self) -> None:
        """Undo what the step did to weights that are out: weight decay shrinks them, and so do some optimizers."""
        for (parameter, mask, _), values in zip(self._still, self._values, strict=True):
            torch.where(mask, parameter, values, out=values)
            parameter.copy_(values)
        self._values = []

    def _clean_after_step(self) -> None:
        for _, parameter, bits in self._held:
            zero_dead_(parameter, bits)
        self._zero_moments()


def keep(optimizer: torch.optim.Optimizer, model: nn.Module, masks: MaskSet, *, still: Collection[str] = ()) -> Keeper:
    """Keep held zeros at zero from now on.

    Attach the masks first (`secateur.masks.hold.attach`). Views need no keeping: autograd masks the head's share of the
    gradient, and the removed entries go on moving as the embedding asks.

    Args:
        optimizer: any torch optimizer, or accelerate's wrapper around one. What it remembers of dead weights is zeroed
            now and whenever a state is loaded into it.
        model: the model it trains.
        masks: the masks.
        still: paths of views whose removed entries keep their values, so that they may come back with them. None of
            these weights may be shared with a part that sees all of it.

    Returns:
        What ends it: `remove()`, or use it as a context manager.

    Raises:
        MaskError: a mask does not fit the model, or dead weights are not zero: they were never attached.

    >>> linear = nn.Linear(2, 1, bias=False)
    >>> masks = MaskSet({"weight": torch.tensor([[True, False]])}, {"weight": "hold"}, "")
    >>> _ = linear.weight.detach().masked_fill_(~masks.masks["weight"], 0)
    >>> optimizer = torch.optim.AdamW(linear.parameters())
    >>> with keep(optimizer, linear, masks):
    ...     linear(torch.ones(1, 2)).sum().backward()
    ...     optimizer.step()
    >>> linear.weight[0, 1].item()
    0.0
    """
    held, resting = {}, []
    for path, mask in masks.masks.items():
        if masks.modes[path] == "hold" or path in still:
            parameter = _parameter(model, path)
            if parameter.shape != mask.shape:
                raise MaskError(
                    f"{path}: the mask has shape {tuple(mask.shape)}, the weight {tuple(parameter.shape)}. "
                    "The masks belong to another model."
                )
            found = (parameter, mask.to(parameter.device))
            if path in still:
                resting.append(found)
            else:
                held[path] = found
    check_zeros(model, masks, when="before training: attach the masks first")
    return Keeper(getattr(optimizer, "optimizer", optimizer), held, resting)


def check_zeros(model: nn.Module, masks: MaskSet, *, when: str) -> None:
    """Refuse a model whose removed weights are not zero.

    Args:
        model: the model, masks attached.
        masks: the masks.
        when: the moment, for the message.

    Raises:
        MaskError: some are not; the message says how many, and where.
    """
    counts = revived(model, masks)
    if counts:
        worst = ", ".join(f"{path} ({count})" for path, count in sorted(counts.items(), key=lambda item: -item[1])[:5])
        more = f" and {len(counts) - 5} more" if len(counts) > 5 else ""
        raise MaskError(f"{sum(counts.values())} removed weights are not zero ({when}): {worst}{more}.")


def preserves_zero(optimizer: torch.optim.Optimizer) -> bool:
    """Say whether an optimizer is known to leave dead weights at zero by itself.

    >>> preserves_zero(torch.optim.AdamW([torch.zeros(1)]))
    True
    """
    # Adafactor has a pair of them, the optimizers without adaptive scaling none.
    divides_by_zero = any(group.get("eps", 1.0) == 0 for group in optimizer.param_groups)
    return type(optimizer) in ZERO_PRESERVING and not divides_by_zero


class MaskCallback(TrainerCallback):
    """Keep masks in any Hugging Face Trainer: `Trainer(..., callbacks=[MaskCallback(masks)])`.

    The masks must be attached to the model before `train()`. The zeros are checked at every save and at the end; a
    checkpoint whose zeros were revived is an error, not a surprise at export.

    Args:
        masks: the masks.
    """

    def __init__(self, masks: MaskSet) -> None:
        self.masks = masks
        self._keeper: Keeper | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start keeping; a keeper that a failed run left behind is removed."""
        self._keep(**kwargs)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the zeros of what was just saved."""
        check_zeros(kwargs["model"], self.masks, when=f"in the checkpoint of step {state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop keeping and check the zeros."""
        self._remove()
        check_zeros(kwargs["model"], self.masks, when="at the end of training")

    def _keep(self, *, still: Collection[str] = (), **kwargs: Any) -> None:
        self._remove()
        self._keeper = keep(kwargs["optimizer"], kwargs["model"], self.masks, still=still)

    def _remove(self) -> None:
        if self._keeper is not None:
            self._keeper.remove()
            self._keeper = None


def _parameter(model: nn.Module, path: str) -> nn.Parameter:
    try:
        return model.get_parameter(path)
    except AttributeError as error:
        raise MaskError(f"{path}: the model has no such parameter. The masks belong to another model.") from error


def _mask_grad(path: str, bits: Tensor) -> Callable[[Tensor], None]:
    """Make the hook that zeroes dead gradients in place, after every accumulation."""

    def mask_grad(parameter: Tensor) -> None:
        if parameter.grad is None:
            return
        if parameter.grad.is_sparse:
            raise MaskError(
                f"{path}: its gradient is sparse, which cannot be masked. Make the embedding with sparse=False."
            )
        zero_dead_(parameter.grad, bits)

    return mask_grad
