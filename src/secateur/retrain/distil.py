"""Distillation: a model learns what a teacher answers, beside what the data says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.anatomy.depth import depths
from secateur.errors import SecateurError
from secateur.recipe.names import LayerMap, Projection, Stack
from secateur.tasks.reading import is_classifier, kept_logits
from secateur.tasks.sampler import IGNORED

PROJECTION = "distillation"  # what the student's learned projection is called while it trains
Lists = Mapping[Stack, Sequence[Sequence[int]] | None]  # stack -> for each layer, the teacher's, counted from 1


@dataclass(frozen=True)
class Parts:
    """What the loss is made of.

    Attributes:
        labels: weight of the cross-entropy with the data's targets.
        logits: weight of the divergence from the teacher's distribution.
        hidden: weight of the distance between hidden states.
        temperature: by which both sides' logits are divided, above 0.
        map: which of the teacher's layers a layer's hidden states are compared with: see `MAPS`; or for each layer
            of a stack the teacher's that it may learn from, counted from 1, of which the nearest counts.
        projection: whether hidden states go through a learned projection only where the widths differ, or always.
    """

    labels: float = 1.0
    logits: float = 1.0
    hidden: float = 0.0
    temperature: float = 2.0
    map: LayerMap | Lists = "height"
    projection: Projection = "needed"


class Distiller:
    """Adds what a teacher says to the loss of a training.

    Args:
        teacher: a model of the student's task with its tokenizer, and in classification its classes; it is neither
            trained nor changed.
        parts: weights of the loss.

    Raises:
        SecateurError: no part but the labels weighs anything.
    """

    def __init__(self, teacher: nn.Module, parts: Parts) -> None:
        if not (parts.logits or parts.hidden):
            raise SecateurError("distillation: neither logits nor hidden weighs anything. Leave the teacher out.")
        self.teacher: Any = teacher
        self.parts = parts

    @contextmanager
    def teaching(self, student: nn.Module, *, device: str, seed: int) -> Iterator[None]:
        """Bring the teacher to the student, and give the student a projection where one is needed or asked for.

        The projection is a part of the student as long as this lasts, so that it is trained and saved with it.

        Args:
            student: the model to train.
            device: where it will be trained.
            seed: of the projection's first values.

        Yields:
            Nothing.

        Raises:
            SecateurError: a map of one's own does not fit the layers of the two.
        """
        model: Any = student
        if self.parts.hidden and not isinstance(self.parts.map, str):
            check_lists(self.parts.map, depths(model.config), depths(self.teacher.config))
        training = self.teacher.training
        required = [(parameter, parameter.requires_grad) for parameter in self.teacher.parameters()]
        self.teacher.eval().requires_grad_(False).to(device)
        widths = model.config.hidden_size, self.teacher.config.hidden_size  # T5 calls it d_model, and knows this name
        if self.parts.hidden and (widths[0] != widths[1] or self.parts.projection == "always"):
            model.add_module(PROJECTION, _projection(*widths, stacks=_stacks(model), seed=seed))
        try:
            yield
        finally:
            if hasattr(model, PROJECTION):
                delattr(model, PROJECTION)
            self.teacher.to("cpu").train(training)
            for parameter, was_required in required:
                parameter.requires_grad_(was_required)

    @property
    def needs_hidden(self) -> bool:
        """Whether the student has to give its hidden states."""
        return self.parts.hidden > 0

    def loss(
        self, student: Any, outputs: Any, inputs: Mapping[str, Tensor], labels: Tensor, smoothing: float
    ) -> Tensor:
        """Sum the loss over the targets of a batch, its target tokens or its rows; padding counts nowhere.

        labels x cross-entropy + logits x T^2 x KL(teacher || student at temperature T) + hidden x the mean over the
        student's layers, of all stacks, of sum((s - t)^2) / sum(t^2) over a row's tokens, which counts once for each of
        the row's targets. A layer is compared with the teacher's at the same height (layer l of L with round(l x
        teacher's L / L)), or with that of its stack, or of those that a map lists for it, for which this is least now,
        row by row. So a batch gives what its rows give, however they are shared out.

        Args:
            student: the model, unwrapped.
            outputs: what it gave for the batch, hidden states included where `needs_hidden`.
            inputs: what the teacher reads of the batch; see `tasks.reading.model_inputs`.
            labels: (rows, target tokens), or (rows, 1) of classes; -100 = none.
            smoothing: label smoothing of the cross-entropy.

        Returns:
            A scalar, in nats times targets.

        Source: Hinton et al. 2015, arXiv:1503.02531, sec. 2; of hidden states Jiao et al. 2020 (TinyBERT),
        arXiv:1909.10351, eq. 8, relative to the teacher's size here; nearest layers Xia et al. 2022 (CoFi),
        arXiv:2204.00408, eq. 5, over all layers and in any order.
        """
        with torch.no_grad():
            taught = self.teacher(**inputs, use_cache=False, output_hidden_states=self.needs_hidden)
        theirs, _ = kept_logits(taught.logits, labels)
        mine, targets = kept_logits(outputs.logits, labels)
        total = self.parts.labels * functional.cross_entropy(mine, targets, reduction="sum", label_smoothing=smoothing)
        if self.parts.logits:
            size, heat = min(mine.shape[1], theirs.shape[1]), self.parts.temperature  # tables may be padded
            total = total + self.parts.logits * heat**2 * functional.kl_div(
                functional.log_softmax(mine[:, :size] / heat, 1),
                functional.log_softmax(theirs[:, :size] / heat, 1),
                reduction="sum",
                log_target=True,
            )
        if self.parts.hidden:
            tokens = {"encoder": inputs["attention_mask"].bool(), "decoder": labels != IGNORED}
            distances = [
                distance
                for stack in _stacks(student)
                for distance in self._distances(student, outputs, taught, stack, tokens[stack])
            ]
            of_rows = torch.stack(distances).mean(0)
            total = total + self.parts.hidden * (of_rows * (labels != IGNORED).sum(1)).sum()
        return total

    def _distances(self, student: Any, outputs: Any, taught: Any, stack: Stack, tokens: Tensor) -> list[Tensor]:
        name = "hidden_states" if is_classifier(student) else f"{stack}_hidden_states"
        mine, theirs = (getattr(found, name) for found in (outputs, taught))
        project = getattr(student, PROJECTION)[stack] if hasattr(student, PROJECTION) else None
        distances = []
        for layer, others in enumerate(self._pairs(stack, len(mine) - 1, len(theirs) - 1), start=1):
            state = mine[layer] if project is None else project(mine[layer])
            target = _nearest(state, [theirs[other] for other in others], tokens)
            distances.append(_distance(state.float(), target.float(), tokens))
        return distances

    def _pairs(self, stack: Stack, num_layers: int, num_teacher_layers: int) -> Sequence[Sequence[int]]:
        """List for each layer of a stack the teacher's that it may learn from."""
        if isinstance(self.parts.map, str):
            return MAPS[self.parts.map](num_layers, num_teacher_layers)
        return self.parts.map[stack] or ()


@torch.no_grad()  # the choice has no gradient, and the distances to what is not chosen would keep a graph each
def _nearest(state: Tensor, targets: Sequence[Tensor], tokens: Tensor) -> Tensor:
    """Choose row by row the nearest of some targets, each (rows, tokens, width)."""
    if len(targets) == 1:
        return targets[0]
    found = torch.stack([_distance(state.float(), target.float(), tokens) for target in targets]).argmin(0)
    chosen = targets[0].clone()
    for number, target in enumerate(targets[1:], start=1):
        chosen[found == number] = target[found == number]
    return chosen


def _distance(state: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
    """How far states (rows, tokens, width) are from their targets, relative to these, at a row's tokens: (rows,)."""
    apart, size = (values.square().sum(2).masked_fill(~tokens, 0.0).sum(1) for values in (state - target, target))
    return apart / size.clamp_min(1e-12)


def same_height(num_layers: int, num_teacher_layers: int) -> list[int]:
    """Pair layers of two stacks by their height.

    Args:
        num_layers: of the student's stack.
        num_teacher_layers: of the teacher's.

    Returns:
        For layer 1, 2, ... of the student the teacher's, counted from 1; the last is always paired with the last.

    >>> same_height(2, 6), same_height(4, 4), same_height(3, 4), same_height(4, 2)
    ([3, 6], [1, 2, 3, 4], [1, 3, 4], [1, 1, 2, 2])
    """
    double = 2 * num_layers
    return [max(1, (2 * layer * num_teacher_layers + num_layers) // double) for layer in range(1, num_layers + 1)]


# From the numbers of layers of both stacks to those of the teacher's, counted from 1, that each layer may learn from.
MAPS: dict[str, Callable[[int, int], list[list[int]]]] = {
    "height": lambda mine, theirs: [[other] for other in same_height(mine, theirs)],
    "nearest": lambda mine, theirs: [list(range(1, theirs + 1)) for _ in range(mine)],
}


def list_faults(lists: Lists, mine: Mapping[Stack, int], theirs: Mapping[Stack, int]) -> list[tuple[str, str]]:
    """Find where a map of one's own does not fit two models.

    Args:
        lists: stack -> for each layer, the teacher's layers, counted from 1; None for a stack that is left out.
        mine: stack -> number of layers of the student.
        theirs: stack -> number of layers of the teacher; a stack that is missing is not checked.

    Returns:
        Of each fault where it is (`encoder`, `encoder.2`) and the message.

    >>> list_faults({"encoder": [[1], [9]]}, {"encoder": 2}, {"encoder": 6})
    [('encoder.1', "the teacher's encoder has 6 layers, and no layer 9. Layers are counted from 1.")]
    """
    faults = []
    for stack, depth in mine.items():
        listed = lists.get(stack)
        if listed is None:
            faults.append((stack, f"is missing: the student's {stack} has {depth} layers. List one for each."))
            continue
        if len(listed) != depth:
            told = f"the student's {stack} has {depth} layers at this stage, and {len(listed)} are listed."
            faults.append((stack, f"{told} List one entry for each, from the first layer on."))
        most = theirs.get(stack, max(map(max, listed)))
        for index, choices in enumerate(listed):
            if max(choices) > most:
                told = f"the teacher's {stack} has {most} layers, and no layer {max(choices)}."
                faults.append((f"{stack}.{index}", f"{told} Layers are counted from 1."))
    return faults


def check_lists(lists: Lists, mine: Mapping[Stack, int], theirs: Mapping[Stack, int]) -> None:
    """Refuse a map of one's own that does not fit two models.

    Args:
        lists: see `list_faults`.
        mine: stack -> number of layers of the student.
        theirs: stack -> number of layers of the teacher.

    Raises:
        SecateurError: all faults.
    """
    if faults := list_faults(lists, mine, theirs):
        raise SecateurError("\n".join(f"distillation.map.{where}: {told}" for where, told in faults))


def _stacks(model: Any) -> tuple[Stack, ...]:
    return ("encoder",) if is_classifier(model) else ("encoder", "decoder")


def _projection(width: int, teacher_width: int, *, stacks: tuple[Stack, ...], seed: int) -> nn.ModuleDict:
    """One linear layer a stack, from the student's width to the teacher's."""
    drawn = torch.Generator().manual_seed(seed)
    layers = nn.ModuleDict()
    for stack in stacks:
        linear = nn.Linear(width, teacher_width, bias=False)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(linear.weight.shape, generator=drawn) * width**-0.5)
        layers[stack] = linear
    return layers


__all__ = ["MAPS", "Distiller", "Lists", "Parts", "check_lists", "list_faults", "same_height"]
