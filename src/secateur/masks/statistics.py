"""What calibration batches tell about single weights: their gradients, and what the layers read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.anatomy.roles import Weight
from secateur.errors import MaskError
from secateur.masks.tie import HEAD, is_tied

Batch = dict[str, Tensor]
Statistics = dict[str, Tensor]

# What a score may ask for, by the name of its keyword: of a weight's gradient, and of each input feature of its layer.
GRADIENTS = ("gradient", "squared_gradient")
INPUTS = ("input_norm", "input_mean", "input_active")
IGNORED = -100  # a target position that is padding


def gather_statistics(
    model: nn.Module,
    wanted: Mapping[Weight, Collection[str]],
    batches: Iterable[Batch],
    *,
    loss: Callable[[nn.Module, Batch], Tensor],
) -> dict[str, Statistics]:
    """Pass batches through the model and take notes.

    Of a gradient: `gradient`, the mean over batches of its absolute value; `squared_gradient`, of its square. Both have
    the weight's shape. Of what a linear layer reads, over all tokens that are not padding: `input_norm`, the root of
    the mean square; `input_mean`, the mean absolute value; `input_active`, the share that is not zero. These have the
    shape (in_features,).

    A head that shares its table gets a copy of it for the time, so that its gradient is its own.

    Args:
        model: an encoder-decoder, masks attached. Weights and mode stay as they are; gradients are dropped.
        wanted: what to note of which weights. Memory: one copy of each weight for each statistic of its gradient.
        batches: input_ids, attention_mask and labels (rows, tokens); at least one.
        loss: (model, batch) -> a scalar.

    Returns:
        Parameter name -> statistic -> float32.

    Raises:
        MaskError: there are no batches, a layer is not linear, or a number is not finite.
    """
    training, count = model.training, 0
    model.eval()
    with ExitStack() as stack:
        stack.callback(model.train, training)
        stack.enter_context(_own_head(model, wanted))
        notes = {weight.path: _Notes(model, weight, frozenset(names)) for weight, names in wanted.items()}
        gradients = [note for note in notes.values() if note.wants_gradient]
        stack.enter_context(_only(model, [note.parameter for note in gradients]))
        stack.callback(model.zero_grad, set_to_none=True)
        for note in notes.values():
            stack.enter_context(note.listening())
        for batch in batches:
            for note in notes.values():
                note.tokens = batch["attention_mask"].bool() if note.reads_source else batch["labels"] != IGNORED
            with torch.set_grad_enabled(bool(gradients)):
                found = loss(model, batch)
            if gradients:
                found.backward()
                for note in gradients:
                    note.take_gradient()
            count += 1
        if not count:
            raise MaskError("score: it needs at least one calibration batch, and the training rows gave none.")
        return {path: note.result(count) for path, note in notes.items()}


class _Notes:
    """What is noted of one weight."""

    def __init__(self, model: nn.Module, weight: Weight, names: frozenset[str]) -> None:
        self.path, self.names = weight.path, names
        self.parameter: Any = model.get_parameter(weight.path)
        self.module = model.get_submodule(weight.path.rpartition(".")[0])
        if names & set(INPUTS) and not isinstance(self.module, nn.Linear):
            raise MaskError(
                f"{weight.path}: the score asks what its layer reads, and this is no linear layer. Choose one that "
                "needs no activations: magnitude, taylor, fisher."
            )
        self.reads_source = weight.stack == "encoder" or (weight.role == "cross_attention" and weight.part in "kv")
        self.tokens: Tensor | None = None  # (rows, tokens), True where the batch at work has no padding
        self.num_tokens = 0
        self.sums: dict[str, Tensor] = {
            name: torch.zeros_like(self.parameter, dtype=torch.float32, requires_grad=False)
            for name in GRADIENTS
            if name in names
        } | {
            name: torch.zeros(self.parameter.shape[1], dtype=torch.float64, device=self.parameter.device)
            for name in INPUTS
            if name in names
        }

    @property
    def wants_gradient(self) -> bool:
        return bool(self.names & set(GRADIENTS))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note what the layer reads, for as long as this lasts."""
        if not self.names & set(INPUTS):
            yield
            return
        handle = self.module.register_forward_pre_hook(self._take_input)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def _take_input(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert self.tokens is not None
        read = arguments[0].detach().float()[self.tokens]  # (tokens, in_features)
        self.num_tokens += len(read)
        sums = {
            "input_norm": lambda: read.square().sum(0),
            "input_mean": lambda: read.abs().sum(0),
            "input_active": lambda: (read != 0).sum(0),
        }
        for name in self.sums.keys() & sums.keys():
            self.sums[name] += sums[name]()

    @torch.no_grad()
    def take_gradient(self) -> None:
        """Add the gradient of a batch, and drop it."""
        gradient, self.parameter.grad = self.parameter.grad, None
        if gradient is None:
            return
        if "squared_gradient" in self.sums:
            self.sums["squared_gradient"].addcmul_(gradient, gradient)
        if "gradient" in self.sums:
            self.sums["gradient"] += gradient.abs_()

    def result(self, num_batches: int) -> Statistics:
        """Turn sums into means."""
        if self.names & set(INPUTS) and not self.num_tokens:
            raise MaskError(f"{self.path}: no calibration batch passed through its layer. Choose another score.")
        found = {}
        for name, total in self.sums.items():
            if not bool(total.isfinite().all()):
                raise MaskError(f"{self.path}: {name} holds NaN or infinity. Check the weights, or use magnitude.")
            mean = total.div_(num_batches if name in GRADIENTS else self.num_tokens)
            found[name] = (mean.sqrt() if name == "input_norm" else mean).to("cpu", torch.float32)
        return found


@contextmanager
def _own_head(model: Any, wanted: Mapping[Weight, Collection[str]]) -> Iterator[None]:
    """Give a head that shares its table a copy, where its gradient is asked for."""
    asked = any(weight.path == HEAD and set(names) & set(GRADIENTS) for weight, names in wanted.items())
    if not asked or not is_tied(model):
        yield
        return
    shared = model.lm_head.weight
    model.lm_head.weight = nn.Parameter(shared.detach().clone())
    try:
        yield
    finally:
        model.lm_head.weight = shared


@contextmanager
def _only(model: nn.Module, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Compute gradients of these parameters alone."""
    chosen, before = {id(parameter) for parameter in parameters}, {}
    for parameter in model.parameters():
        before[parameter] = parameter.requires_grad
        parameter.requires_grad_(id(parameter) in chosen)
    try:
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)
