"""What calibration batches tell about single weights: their gradients, what the layers read, and what they give."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.anatomy.roles import Weight
from secateur.errors import MaskError
from secateur.masks.moments import IGNORED, Batch, Moment, Reading, damp, roots, without_padding
from secateur.masks.tie import HEAD, is_tied
from secateur.masks.view import MaskedLinear

Statistics = dict[str, Tensor]

# What a score may ask for, by the name of its keyword: of a weight's gradient, and of each input or output feature of
# its layer.
GRADIENTS = ("gradient", "squared_gradient")
INPUTS = ("input_norm", "input_mean", "input_active")
OUTPUTS = ("output_active", "output_mean")  # behind a ReLU
SECOND_ORDER = ("input_inverse", "output_power")  # of the mean of x x^T over what the layer reads
BACKWARD = ("output_gradient",)  # of the loss, at what the layer gives
LEARNED = ("learned",)  # by training with the weight; no calibration batch tells it: see `retrain.movement`
STATISTICS = (*GRADIENTS, *INPUTS, *OUTPUTS, *SECOND_ORDER, *BACKWARD, *LEARNED)
MOMENT_BYTES = 1 << 29  # of moments in memory at a time, or those of one layer where they are larger


class Reached(Exception):
    """A batch went as far through the model as anybody listens."""


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
    shape (in_features,). Of what the layer gives, its bias included, behind a ReLU: `output_active`, the share that is
    not zero; `output_mean`, the mean. These have the shape (out_features,). Of the moment H, the mean of x x^T over the
    tokens: `input_inverse`, the diagonal of the inverse of H, damped, (in_features,); `output_power`, the trace of
    w H w^T, (1,). Of the loss, summed over a batch's targets: `output_gradient`, the mean over tokens of the square of
    its gradient with respect to what the layer gives, (out_features,); of the head the expectation p (1 - p) of it.

    A head that shares its table gets a copy of it for the time, so that its gradient is its own. What a view has
    removed has a gradient as well, as if it stayed: where weights may come back it says which.

    Args:
        model: an encoder-decoder or a classifier, masks attached. Weights and mode stay as they are, and
            gradients are dropped.
        wanted: what to note of which weights. Memory: one copy of each weight for each statistic of its gradient.
        batches: input_ids, attention_mask and labels; at least one.
        loss: (model, batch) -> a scalar.

    Returns:
        Parameter name -> statistic -> float32.

    Raises:
        MaskError: there are no batches, a layer is not linear, or a number is not finite.
    """
    training, num_rows = model.training, 0
    model.eval()
    with ExitStack() as stack:
        stack.callback(model.train, training)
        stack.enter_context(_own_head(model, wanted))
        reading = Reading()
        notes = {weight.path: _Notes(model, weight, frozenset(names), reading) for weight, names in wanted.items()}
        gradients = [note for note in notes.values() if note.wants_gradient]
        backward = gradients or [note for note in notes.values() if note.awaits_gradient]
        stack.enter_context(_only(model, [note.parameter for note in gradients]))
        stack.enter_context(_whole_gradients([note.module for note in gradients]))
        stack.callback(model.zero_grad, set_to_none=True)
        for note in notes.values():
            stack.enter_context(note.listening())
        if not backward:
            modules = {note.module for note in notes.values() if note.listens}
            given = {*OUTPUTS, *BACKWARD}
            stack.enter_context(ending(model, modules, outputs=any(note.names & given for note in notes.values())))
        for batch in batches:
            reading.batch = batch
            try:
                with torch.set_grad_enabled(bool(backward)):
                    found = loss(model, batch)
                if backward and found.requires_grad:  # the loss may feel nothing of any of them
                    found.backward()
                del found  # its graph would lie in memory beside the next one's
            except Reached:
                pass
            num_rows += len(batch["labels"])
        if not num_rows:
            raise MaskError("score: it needs at least one calibration batch, and the training rows gave none.")
        return {path: note.result(num_rows) for path, note in notes.items()}


class _Notes:
    """What is noted of one weight."""

    def __init__(self, model: nn.Module, weight: Weight, names: frozenset[str], reading: Reading) -> None:
        self.weight, self.path, self.names, self.reading = weight, weight.path, names, reading
        self.parameter: Any = model.get_parameter(weight.path)
        self.module = model.get_submodule(weight.path.rpartition(".")[0])
        self.bias: Tensor | None = getattr(model, "final_logits_bias", None)  # BART and its kin add it to the logits
        self.listens = bool(names & {*INPUTS, *OUTPUTS, *SECOND_ORDER, *BACKWARD})
        if self.listens and not isinstance(self.module, nn.Linear):
            raise MaskError(
                f"{weight.path}: the score asks what its layer reads or gives, and this is no linear layer. Choose one "
                "that needs no activations: magnitude, taylor, fisher."
            )
        self.moment = Moment(self.parameter) if names & set(SECOND_ORDER) else None
        self.num_tokens = {"read": 0, "given": 0, "felt": 0}
        self.sums: dict[str, Tensor] = {
            name: torch.zeros_like(self.parameter, dtype=torch.float32, requires_grad=False)
            for name in GRADIENTS
            if name in names
        } | {
            name: torch.zeros(size, dtype=_widest(self.parameter.device), device=self.parameter.device)
            for features, size in self._features()
            for name in features
            if name in names
        }

    def _features(self) -> tuple[tuple[tuple[str, ...], int], ...]:
        """Statistics of features, and how many features there are."""
        if not self.listens:
            return ()
        layer: Any = self.module
        return (INPUTS, layer.in_features), ((*OUTPUTS, *BACKWARD), layer.out_features)

    @property
    def wants_gradient(self) -> bool:
        return bool(self.names & set(GRADIENTS))

    @property
    def awaits_gradient(self) -> bool:
        """Whether the gradient at the layer's outputs must be computed; the head's outputs tell what it is."""
        return bool(self.names & {*BACKWARD}) and self.weight.role != "lm_head"

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note gradients, and what the layer reads and gives, for as long as this lasts."""
        handles: list[Any] = []
        if self.wants_gradient:  # taken as soon as it is there: never do all of them lie in memory beside their sums
            handles.append(self.parameter.register_post_accumulate_grad_hook(self._take_gradient))
        if self.names & {*INPUTS, *SECOND_ORDER}:
            handles.append(self.module.register_forward_pre_hook(self._take_input))
        if self.names & {*OUTPUTS}:
            handles.append(self.module.register_forward_hook(self._take_output))
        if self.names & {*BACKWARD}:
            take = self._await_gradient if self.awaits_gradient else self._take_choices
            handles.append(self.module.register_forward_hook(take))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _take_input(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        read = self.reading.take(self.weight, arguments[0])
        self.num_tokens["read"] += len(read)
        if self.moment:
            self.reading.add_to(self.moment)
        sums = {
            "input_norm": lambda: read.square().sum(0),
            "input_mean": lambda: read.abs().sum(0),
            "input_active": lambda: (read != 0).sum(0),
        }
        for name in self.sums.keys() & sums.keys():
            self.sums[name] += sums[name]()

    @torch.no_grad()
    def _take_output(self, module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        assert self.reading.batch is not None
        given = without_padding(self.weight, output.detach(), self.reading.batch).float().relu()
        self.num_tokens["given"] += len(given)
        sums = {
            "output_active": lambda: (given != 0).sum(0),
            "output_mean": lambda: given.to(_widest(given.device)).sum(0),
        }
        for name in self.sums.keys() & sums.keys():
            self.sums[name] += sums[name]()

    def _await_gradient(self, module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        """Ask for the gradient at an output; where no weight before it has one, this is where it ends."""
        if not output.requires_grad:
            output.requires_grad_()
        output.register_hook(self._feel)

    @torch.no_grad()
    def _take_choices(self, module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        """Of a logit the mean square of the gradient is p (1 - p), which is known of words that no row holds too."""
        assert self.reading.batch is not None
        logits = output.detach() if self.bias is None else output.detach() + self.bias
        chances = without_padding(self.weight, logits, self.reading.batch).float().softmax(-1)
        self.num_tokens["felt"] += len(chances)
        self.sums["output_gradient"] += chances.sub_(chances.square()).sum(0)

    @torch.no_grad()
    def _feel(self, gradient: Tensor) -> None:
        batch = self.reading.batch
        assert batch is not None
        felt = without_padding(self.weight, gradient, batch).float()
        targets = (batch["labels"] != IGNORED).sum()  # the loss is their mean, and batches have more or fewer of them
        self.num_tokens["felt"] += len(felt)
        self.sums["output_gradient"] += (felt * targets).square().sum(0)

    @torch.no_grad()
    def _take_gradient(self, parameter: Tensor) -> None:
        """Add the gradient of a batch, times its rows, for the last one may have few; and drop it."""
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        assert self.reading.batch is not None
        rows = len(self.reading.batch["labels"])
        if "squared_gradient" in self.sums:
            self.sums["squared_gradient"].addcmul_(gradient, gradient, value=rows)
        if "gradient" in self.sums:
            self.sums["gradient"].add_(gradient.abs_(), alpha=rows)

    def result(self, num_rows: int) -> Statistics:
        """Turn sums into means."""
        if self.listens and not any(self.num_tokens.values()):
            raise MaskError(f"{self.path}: no calibration batch passed through its layer. Choose another score.")
        found = self._second_order()
        for name, total in self.sums.items():
            if not bool(total.isfinite().all()):
                raise MaskError(f"{self.path}: {name} holds NaN or infinity. Check the weights, or use magnitude.")
            tokens = self.num_tokens["given" if name in OUTPUTS else "felt" if name in BACKWARD else "read"]
            mean = total.div_(num_rows if name in GRADIENTS else max(tokens, 1))  # the loss may feel nothing of it
            found[name] = (mean.sqrt() if name == "input_norm" else mean).to("cpu", torch.float32)
        return found

    @torch.no_grad()
    def _second_order(self) -> Statistics:
        if self.moment is None:
            return {}
        mean, weight = self.moment.mean(self.path), self.parameter.detach().float()
        inverse = roots(damp(mean))[1].square().sum(0)
        found = {
            # A feature that is always 0 gives nothing, so its weights cost nothing, however large.
            "input_inverse": inverse.masked_fill(mean.diagonal() == 0, torch.inf),
            "output_power": ((weight @ mean) * weight).sum().view(1),
        }
        self.moment = None
        return {name: value.to("cpu", torch.float32) for name, value in found.items() if name in self.names}


def _widest(device: torch.device) -> torch.dtype:
    """Say in what sums are kept: Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def passes(wanted: Mapping[Weight, Collection[str]]) -> Iterator[dict[Weight, Collection[str]]]:
    """Share what is to be noted out over several passes, so that their moments fit into memory.

    Args:
        wanted: as for `gather_statistics`.

    Yields:
        Parts of it, in its order; together all of it.
    """
    part: dict[Weight, Collection[str]] = {}
    size = 0
    for weight, names in wanted.items():
        needed = 4 * weight.shape[1] ** 2 if set(names) & set(SECOND_ORDER) else 0
        if part and size + needed > MOMENT_BYTES:
            yield part
            part, size = {}, 0
        part[weight] = names
        size += needed
    if part:
        yield part


@contextmanager
def ending(model: nn.Module, modules: Collection[nn.Module], *, outputs: bool = False) -> Iterator[None]:
    """End every pass by `Reached` where the last of these layers is called: what comes behind it tells nothing.

    Args:
        model: what is called.
        modules: its layers that are listened to, from before on.
        outputs: let the last layer give its output first.
    """
    missing: set[nn.Module] = set()

    def reached(module: nn.Module, *_: Any) -> None:
        missing.discard(module)
        if not missing:
            raise Reached

    handles: list[Any] = [model.register_forward_pre_hook(lambda *_: missing.update(modules))]
    handles += [
        module.register_forward_hook(reached) if outputs else module.register_forward_pre_hook(reached)
        for module in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
def _whole_gradients(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let the views among these layers tell the gradient of what they remove."""
    views = [module for module in modules if isinstance(module, MaskedLinear)]
    for view in views:
        view.whole_gradient = True
    try:
        yield
    finally:
        for view in views:
            view.whole_gradient = False


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
