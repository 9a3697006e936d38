"""Let what stays of a layer make up for what goes: second-order weight updates, layer by layer (SparseGPT).

Every linear layer is adjusted so that, on calibration tokens, its outputs stay as near as they can to what they were.
The layers of the model are done from the first to the last, each on what the adjusted ones before it give, and only one
of them is held in memory at a time with the moments of what it reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur.anatomy.roles import Weight
from secateur.errors import MaskError
from secateur.masks.moments import Batch, Moment, Reading, damp, roots
from secateur.masks.statistics import Reached, ending

Aim = Literal["layer", "dense"]
Choose = Callable[[Weight, Tensor, Tensor, Tensor], Tensor]
BLOCK = 32  # columns whose updates are gathered before they reach the rest of the matrix
DESCENTS = 10  # steps of conjugate gradients for every matrix: the error is then within 1 % of the least
_TINY = 1e-30  # a row with nothing left to gain takes a step of nothing


def reconstruct(
    model: nn.Module,
    masks: Mapping[Weight, Tensor],
    batches: Sequence[Batch],
    *,
    forward: Callable[[nn.Module, Batch], object],
    aim: Aim = "layer",
    choose: Choose | None = None,
) -> dict[Weight, Tensor]:
    """Remove weights and adjust the others, layer by layer from the first to the last.

    Args:
        model: an encoder-decoder; the named weights are changed in place, and no others.
        masks: linear layers' weight -> bool, (out_features, in_features), True = keep.
        batches: input_ids, attention_mask and labels (rows, tokens), at least one; they are passed three times for
            every layer, but what comes before the layer is computed only once.
        forward: (model, batch) -> runs the model.
        aim: what a layer should give: what it gave on the same inputs ("layer"), or what it gave before any layer was
            adjusted ("dense"), so that it also makes up for what the layers before it lost. "dense" passes twice.
        choose: (weight, the matrix that is aimed at, diagonal of the damped moment's inverse, infinite for a feature
            that is always 0, mask) -> the mask that counts; None: the one that is given.

    Returns:
        The masks that were laid on, in the order of the layers.

    Raises:
        MaskError: there are no batches, a weight is not a linear layer's, or a number is not finite.

    Source: Frantar and Alistarh 2023 (SparseGPT), arXiv:2301.00774, algorithm 1, with masks that are chosen before; the
    aim "dense" as in Li et al. 2025 (GPTAQ), arXiv:2504.02692, by least squares.
    """
    if not masks:
        return {}
    if not batches:
        raise MaskError("obs: it needs at least one calibration batch, and the training rows gave none.")
    named = list(model.named_parameters(remove_duplicate=False))
    for weight in masks:
        if not isinstance(_module(model, weight), nn.Linear):
            raise MaskError(f"{weight.path}: obs adjusts linear layers, and this is none. Choose magnitude or taylor.")
        parameter = model.get_parameter(weight.path)
        if shared := [name for name, each in named if each is parameter and name != weight.path]:
            raise MaskError(f"{weight.path} is {shared[0]} (tied): adjusting it would change both.")
    training = model.training
    model.eval()
    laid: dict[Weight, Tensor] = {}
    replay = _Replay(model, batches, forward, both=aim == "dense")
    try:
        with torch.no_grad():
            blocks = _by_block(masks)
            for block, members in blocks.items():
                moments = {weight: Moment(model.get_parameter(weight.path)) for weight in members}
                replay.run(block, moments, last=block == [*blocks][-1])
                for weight, moment in moments.items():
                    parameter = model.get_parameter(weight.path)
                    mask, mean = masks[weight].to(parameter.device), moment.mean(weight.path)
                    target = aimed(parameter.float(), mean, moment.cross)
                    if not bool(target.isfinite().all()):
                        raise MaskError(f"{weight.path}: what it aims at is not finite. Use aim: layer.")
                    if choose:
                        inverse = roots(damp(mean))[1].square().sum(0)
                        mask = choose(weight, target, inverse.masked_fill(mean.diagonal() == 0, torch.inf), mask)
                    parameter.copy_(adjust(target, mask, mean))
                    laid[weight] = mask.cpu()
    finally:
        replay.close()
        model.train(training)
    return laid


def aimed(weight: Tensor, moment: Tensor, cross: Tensor | None) -> Tensor:
    """Find the whole matrix that gives on today's inputs what this one gave on those of before, as near as can be.

    Args:
        weight: (out_features, in_features), float32; it is not changed.
        moment: (in_features, in_features): the mean of x x^T over what the layer reads now.
        cross: (in_features, in_features): the mean of y x^T, y what it read before in the place of x; None: the same.

    Returns:
        The least squares' matrix, damped towards the one that is there.

    >>> weight, moment = torch.tensor([[1.0]]), torch.tensor([[1.0]])
    >>> aimed(weight, moment, torch.tensor([[2.0]])).round(decimals=1)  # all inputs are half of what they were
    tensor([[2.]])
    """
    if cross is None:
        return weight
    damped = damp(moment)
    return torch.linalg.solve(damped, (weight @ (cross + damped - moment)).T).T.contiguous()


def adjust(weight: Tensor, mask: Tensor, moment: Tensor) -> Tensor:
    """Remove weights of one matrix and let what stays of their rows make up for them.

    What is minimised is the mean square of the difference that the matrix's outputs show, and a little damping. A row
    starts from the better of two: its zeros written in, or SparseGPT's pass over the columns, which is quick but
    cannot change a column that it has left behind. Conjugate gradients within the mask then go down from there.

    Args:
        weight: (out_features, in_features), float32; it is not changed.
        mask: bool, the same shape, True = keep.
        moment: (in_features, in_features): the mean of x x^T over what the layer reads.

    Returns:
        The adjusted matrix; exactly 0 where the mask removes. No row is further off than with its zeros written in.

    Source: SparseGPT, algorithm 1, with a damping of 1 %; conjugate gradients as in Meng et al. 2024 (ALPS),
    arXiv:2406.07831, sec. 3.3.

    >>> moment = torch.tensor([[1.0, 1.0], [1.0, 1.0]])  # both features are always the same
    >>> adjust(torch.tensor([[3.0, 1.0]]), torch.tensor([[False, True]]), moment).round(decimals=1).tolist()
    [[0.0, 4.0]]
    """
    damped, zeroed = damp(moment), weight.masked_fill(~mask, 0.0)
    root, inverse_root = roots(damped)
    swept = _sweep(weight, ~mask, inverse_root)
    better = _errors(weight - swept, root) < _errors(weight - zeroed, root)
    return _descend(torch.where(better[:, None], swept, zeroed), weight, mask, damped)


def _sweep(weight: Tensor, dead: Tensor, upper: Tensor) -> Tensor:
    """Remove column after column, each row's later columns making up for it; `upper` is the inverse's root."""
    adjusted = weight.clone()
    for start in range(0, weight.shape[1], BLOCK):
        end = min(start + BLOCK, weight.shape[1])
        inside, errors = adjusted[:, start:end], torch.zeros_like(adjusted[:, start:end])
        for column in range(end - start):
            place = start + column
            error = torch.where(dead[:, place], inside[:, column] / upper[place, place], 0.0)
            inside[:, column:] -= error[:, None] * upper[place, place:end]
            errors[:, column] = error
        adjusted[:, end:] -= errors @ upper[start:end, end:]
    return adjusted.masked_fill_(dead, 0.0)


def _errors(difference: Tensor, root: Tensor) -> Tensor:
    """Mean square of what each row's outputs differ by: (out_features,)."""
    return (difference @ root).square().sum(1)


def _descend(start: Tensor, weight: Tensor, mask: Tensor, damped: Tensor) -> Tensor:
    """Take a few steps of conjugate gradients, every row for itself, preconditioned by the diagonal."""
    found, scale = start.clone(), mask / damped.diagonal()
    residual = ((weight - found) @ damped) * mask
    step = residual * scale
    size = (residual * step).sum(1, keepdim=True)
    for _ in range(DESCENTS):
        image = (step @ damped) * mask
        length = size / (step * image).sum(1, keepdim=True).clamp_min(_TINY)
        found += length * step
        residual -= length * image
        scaled = residual * scale
        before, size = size, (residual * scaled).sum(1, keepdim=True)
        step = scaled + size / before.clamp_min(_TINY) * step
    return found


def _module(model: nn.Module, weight: Weight) -> nn.Module:
    return model.get_submodule(weight.path.rpartition(".")[0])


def _by_block(masks: Mapping[Weight, Tensor]) -> dict[str, list[Weight]]:
    """Sort weights by the module of the layer that they stand in, in the order of the forward pass."""
    order = {"encoder": 0, "decoder": 1, None: 2}
    found: dict[str, list[Weight]] = {}
    for weight in sorted(masks, key=lambda weight: (order[weight.stack], weight.layer or 0)):
        found.setdefault(_block_of(weight), []).append(weight)
    return found


def _block_of(weight: Weight) -> str:
    """Name the module of a weight's layer; the head is one of its own.

    >>> _block_of(Weight("encoder.block.3.layer.1.wo.weight", "feed_forward", "encoder", 3, (), "", "wo"))
    'encoder.block.3'
    """
    if weight.layer is None:
        return weight.path.rpartition(".")[0]
    found = re.match(r"(?:[^.\d]+\.)+\d+(?=\.)", weight.path)
    assert found, weight.path
    return found[0]


@dataclass
class _Stream:
    """What one model gives on the way: the model as it was, or as it is adjusted layer by layer.

    Attributes:
        kept: of the last replayed layer of each stack: its outputs, batch by batch.
        plan: module -> the layer whose kept outputs it gives instead of computing.
    """

    kept: dict[str, list[Any]] = field(default_factory=dict)
    plan: dict[str, str] = field(default_factory=dict)


class _Replay:
    """Passes batches through a model up to one layer; the layers that were reached before give what they gave then."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        forward: Callable[[nn.Module, Batch], object],
        *,
        both: bool,
    ) -> None:
        self.model, self.batches, self.forward = model, batches, forward
        self._done: list[str] = []  # the layers that are finished, in order; the last has no outputs kept yet
        self._adjusted = _Stream()
        self._before = _Stream() if both else None  # passes a layer just before it is adjusted
        self._now = self._adjusted
        self._replayed: dict[str, Any] = {}  # layers that may replay, and the forward method that stood on the instance
        self._common: dict[tuple[int, ...], list[Tensor]] = {}  # shape -> outputs beside the states, each once
        self._batch, self._reading = 0, Reading()
        self._wanted: dict[str, Tensor] = {}  # what layers read of the batch at hand before anything was adjusted
        self._crossed: tuple[Tensor, Tensor, Tensor] | None = None  # both readings of a layer, and their product

    def run(self, block: str, moments: Mapping[Weight, Moment], *, last: bool) -> None:
        """Pass every batch, and add up what the layers of these weights read.

        Args:
            block: the module at hand.
            moments: are added to; a pass ends where the last of their layers has read it.
            last: nothing is passed after this, and nothing need be kept for it.
        """
        encoder = None if last else self._idle_encoder(moments)
        layers = [_module(self.model, weight) for weight in moments]
        with ExitStack() as stack:
            for stream in filter(None, (self._before, self._adjusted)):
                if encoder:
                    stack.enter_context(self._keeping(encoder, stream))
            for weight, moment in moments.items():
                stack.enter_context(self._listening(weight, moment))
            if self._done:
                stack.enter_context(self._keeping(self._done[-1], self._adjusted))
            if self._before and not last:
                stack.enter_context(self._keeping(block, self._before))
            for index, batch in enumerate(self.batches):
                self._batch, self._reading.batch = index, batch
                if self._before and not last:
                    self._pass(batch, self._before, [self.model.get_submodule(block)], outputs=True)
                elif self._before:
                    self._pass(batch, self._before, layers)
                self._pass(batch, self._adjusted, layers)
                self._wanted.clear()
                self._crossed = None
        if self._done:
            self._replay(self._done[-1], self._adjusted)
        if self._before and not last:
            self._replay(block, self._before)
        for stream in filter(None, (self._before, self._adjusted)):
            if encoder:
                for name in [name for name in stream.kept if name.startswith(f"{encoder}.")]:
                    del stream.kept[name]
                self._replay_module(encoder, encoder, stream)
        self._done.append(block)

    def _pass(self, batch: Batch, stream: _Stream, layers: Sequence[nn.Module], *, outputs: bool = False) -> None:
        self._now = stream
        with ending(self.model, layers, outputs=outputs), suppress(Reached):
            self.forward(self.model, batch)

    def _idle_encoder(self, moments: Mapping[Weight, Moment]) -> str | None:
        """Name the encoder if from now on it gives the same, and would be computed again by every pass."""
        find = getattr(self.model, "get_encoder", None)
        if find is None or any(weight.stack == "encoder" for weight in moments):
            return None
        encoder = find()
        name = next((name for name, module in self.model.named_modules() if module is encoder), "")
        if not name or name in self._adjusted.plan:
            return None
        stack, _, layer = self._done[-1].rpartition(".") if self._done else ("", "", "")
        layers = [*self.model.get_submodule(stack)._modules] if stack.startswith(f"{name}.") else []
        return None if layer in layers[-1:] else name  # after the last layer only a norm is left

    @contextmanager
    def _listening(self, weight: Weight, moment: Moment) -> Iterator[None]:
        def listen(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            read = self._reading.take(weight, arguments[0])
            if self._now is self._before:
                self._wanted[weight.path] = read
                return
            self._reading.add_to(moment)
            if self._before:
                moment.add_cross(self._cross(self._wanted[weight.path], read))

        handle = _module(self.model, weight).register_forward_pre_hook(listen)
        try:
            yield
        finally:
            handle.remove()

    def _cross(self, wanted: Tensor, read: Tensor) -> Tensor:
        """Multiply both readings of a layer, once for q, k and v."""
        if self._crossed is None or self._crossed[0] is not wanted or self._crossed[1] is not read:
            self._crossed = wanted, read, wanted.T @ read
        return self._crossed[2]

    @contextmanager
    def _keeping(self, block: str, stream: _Stream) -> Iterator[None]:
        """Keep what a finished layer gives: from now on it need not be computed again."""
        stream.kept[block] = []

        def keep(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            if self._now is stream:
                stream.kept[block].append(self._sharing(output))

        handle = self.model.get_submodule(block).register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    def _sharing(self, output: Any) -> Any:
        """Keep once what batches have in common: texts of one length have one position bias, a large one."""
        if not isinstance(output, tuple):
            return output
        return (output[0], *(self._once(each) if isinstance(each, Tensor) else each for each in output[1:]))

    def _once(self, tensor: Tensor) -> Tensor:
        known = self._common.setdefault(tuple(tensor.shape), [])
        same = next((other for other in known if other is tensor or torch.equal(other, tensor)), None)
        if same is None:
            known.append(tensor)
        return tensor if same is None else same

    def _replay(self, block: str, stream: _Stream) -> None:
        """Let a layer, and those of its stack before it, give what this one gave; drop what the earlier ones gave."""
        stack = block.rpartition(".")[0]
        parent = self.model.get_submodule(stack) if stack else self.model
        outputs = stream.kept.pop(block)
        for earlier in [name for name in stream.kept if name.rpartition(".")[0] == stack]:
            del stream.kept[earlier]
        stream.kept[block] = outputs
        if not isinstance(parent, nn.ModuleList):
            if stream is self._before:  # it is about to be another
                self._replay_module(block, block, stream)
            return
        for name, _ in parent.named_children():
            self._replay_module(f"{stack}.{name}", block, stream)
            if f"{stack}.{name}" == block:
                break

    def _replay_module(self, name: str, kept: str, stream: _Stream) -> None:
        module: Any = self.model.get_submodule(name)
        stream.plan[name] = kept
        if name in self._replayed:
            return
        self._replayed[name], compute = vars(module).get("forward"), module.forward

        def forward(*arguments: Any, **named: Any) -> Any:
            layer = self._now.plan.get(name)
            return compute(*arguments, **named) if layer is None else self._now.kept[layer][self._batch]

        module.forward = forward

    def close(self) -> None:
        """Give every layer its own forward pass back."""
        for name, own in self._replayed.items():
            layer: Any = self.model.get_submodule(name)
            del layer.forward
            if own is not None:
                layer.forward = own
        self._replayed.clear()
        self._adjusted, self._before = _Stream(), None
        self._common.clear()


__all__ = ["BLOCK", "Aim", "Choose", "adjust", "aimed", "reconstruct"]
