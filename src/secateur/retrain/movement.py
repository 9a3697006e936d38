"""Movement pruning: scores that are learned together with the weights they judge."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from secateur.errors import CheckpointError
from secateur.files import write_bytes
from secateur.masks.blocks import as_blocks, block_numbers, spread_blocks
from secateur.masks.mask import MaskSet
from secateur.masks.statistics import Statistics
from secateur.masks.view import MaskedLinear
from secateur.processes import Processes

SCORES = "scores.safetensors"  # what a checkpoint calls the scores that are being learned
THRESHOLD = math.log(0.1 / 0.9)  # below it soft movement removes: a probability of 0.1 of being kept
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # of Adam


class ScoreLearner:
    """Scores of masked layers' weights, trained by the straight-through gradient.

    The forward pass sees weight x mask. Backward, a score receives the gradient that its mask would have: the
    product's gradient times the weight, also where the mask is 0, so that a weight whose score rises may come back.
    Scores are no parameters of the model: clipping and the weights' optimizer do not see them. Adam trains them at a
    rate of their own, which is constant. Memory: four copies of the weights that are judged (score, gradient, moments).

    A block of a weight can have one score together, which receives the sum of its elements' gradients. Under slim the
    score is a factor, 1 at first, that the product is multiplied with, and a pressure towards 0 lies on its size; when
    the learning ends, `fold` multiplies the factors into the weights.

    Args:
        paths: weights of linear layers; all are masked as a view whenever gradients are taken.
        soft: those of them whose scores are pressed down.
        learning_rate: of the scores.
        regularization: how much the mean of the soft scores' sigmoid weighs in the loss when the pressure is full;
            under slim, how much the sum of a weight's factors does, over the number of weights.
        processes: which process this is; gradients are averaged over all.
        blocks: path -> the size of what has one score together, in each dimension; missing paths: single elements.
        slim: whether scores are factors.

    Source: Sanh et al. 2020, arXiv:2005.07683, eq. 3 to 5; soft: sec. 3 and the regularization of appendix A. Slim: Liu
    et al. 2017, arXiv:1708.06519, eq. 1, as NNI 3.0 has it: factors of any layer's units.
    """

    def __init__(
        self,
        paths: Collection[str],
        *,
        soft: Collection[str],
        learning_rate: float,
        regularization: float,
        processes: Processes,
        blocks: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
        slim: bool = False,
    ) -> None:
        self.paths, self.soft, self.blocks, self.slim = list(paths), set(soft), dict(blocks), slim
        self.learning_rate, self.regularization, self.processes = learning_rate, regularization, processes
        self._scores: dict[str, Tensor] = {}
        self._seen: dict[str, Tensor] = {}  # what the layers see of scores that blocks share: the weight's shape
        self._optimizer: torch.optim.Adam | None = None

    def connect(self, model: nn.Module) -> None:
        """Let the masked layers give the scores their gradients; again after every change of masks.

        Args:
            model: the live model, where it is trained; masks laid on.
        """
        layers = {path: model.get_submodule(path.rpartition(".")[0]) for path in self.paths}
        for path, layer in layers.items():
            assert isinstance(layer, MaskedLinear), path
            if path not in self._scores:
                shape, block = layer.weight.shape, self.blocks.get(path)
                numbers = block_numbers(shape, block, path=path) if block else shape
                fill = 1.0 if self.slim else 0.0
                self._scores[path] = torch.full(numbers, fill, device=layer.weight.device, requires_grad=True)
            setattr(layer, "factors" if self.slim else "scores", self._show(path))
        if self._optimizer is None:
            self._optimizer = torch.optim.Adam(self._scores.values(), lr=self.learning_rate)

    def step(self, pressure: float) -> None:
        """Train the scores by the gradients since the last step.

        Args:
            pressure: share of the regularization that holds now, 0 to 1; slim's is whole from the first step.
        """
        assert self._optimizer is not None
        num_soft = sum(self._scores[path].numel() for path in self.soft)
        for path, score in self._scores.items():
            self._take_gradient(path)
            assert score.grad is not None
            self.processes.average_(score.grad)
            if path in self.soft:
                likely = score.detach().sigmoid()
                score.grad.add_(likely * (1 - likely), alpha=pressure * self.regularization / num_soft)
            if self.slim:
                score.grad.add_(score.detach().sign(), alpha=self.regularization / len(self.paths))
        self._optimizer.step()
        self._optimizer.zero_grad()
        for path in self._seen:
            self._show(path)

    def _show(self, path: str) -> Tensor:
        """Give what a layer sees of its score, as the score is now."""
        score, block = self._scores[path], self.blocks.get(path)
        if block is None:
            return score
        with torch.no_grad():
            spread = spread_blocks(score, block)
            if path not in self._seen:
                self._seen[path] = spread.requires_grad_()
            else:
                self._seen[path].copy_(spread)
        return self._seen[path]

    def _take_gradient(self, path: str) -> None:
        """Bring a score's gradient together; one that no backward pass reached is zero."""
        score, seen = self._scores[path], self._seen.get(path)
        if seen is not None and seen.grad is not None:
            score.grad = as_blocks(seen.grad, self.blocks[path]).sum(-1)
            seen.grad = None
        elif score.grad is None:
            score.grad = torch.zeros_like(score)

    def fold(self, model: nn.Module) -> None:
        """End slim's learning: the weights take their factors over, and the model computes what it computed."""
        for path in self.paths if self.slim else ():
            layer = model.get_submodule(path.rpartition(".")[0])
            if isinstance(layer, MaskedLinear):
                layer.factors = None
            with torch.no_grad():
                model.get_parameter(path).mul_(self._show(path))

    def statistics(self) -> dict[str, Statistics]:
        """Give the scores, as `masks.scores` takes them: name -> {"learned": the weight's shape, float32}."""
        return {path: {"learned": self._show(path).detach()} for path in self._scores}

    def below(self, paths: Collection[str], before: MaskSet) -> float:
        """Tell which share of these weights soft movement would remove now.

        Args:
            paths: of the weights.
            before: masks whose removed weights are gone already: they do not count.

        Returns:
            0 to 1, of what is left; 0 where nothing is.
        """
        num_below, num_left = 0, 0
        for path in paths:
            score = self._scores[path].detach()
            left = before.masks[path].to(score.device) if path in before else torch.ones_like(score).bool()
            num_below += int((left & (score < THRESHOLD)).sum())
            num_left += int(left.sum())
        return num_below / max(1, num_left)

    def save(self, folder: Path) -> None:
        """Write scores and moments into a checkpoint."""
        assert self._optimizer is not None
        tensors = {f"{path}:score": score.detach() for path, score in self._scores.items()}
        for path, score in self._scores.items():
            state = self._optimizer.state.get(score, {})
            tensors |= {f"{path}:{name}": state[name] for name in _MOMENTS if name in state}
        write_bytes(folder / SCORES, save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}))

    def load(self, folder: Path, model: nn.Module) -> None:
        """Go on from a checkpoint; the masks of its step are laid on the model.

        Args:
            folder: the checkpoint.
            model: the live model.

        Raises:
            CheckpointError: the file is damaged, or of other weights.
        """
        self.connect(model)
        assert self._optimizer is not None
        try:
            tensors = load_file(folder / SCORES)
            for path, score in self._scores.items():
                with torch.no_grad():
                    score.copy_(tensors[f"{path}:score"])
                found = {name: tensors[f"{path}:{name}"] for name in _MOMENTS if f"{path}:{name}" in tensors}
                if found:  # Adam keeps the number of its step on the CPU
                    moments = {name: found[name].to(score.device) for name in ("exp_avg", "exp_avg_sq")}
                    self._optimizer.state[score] = {"step": found["step"], **moments}
                self._show(path)
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise CheckpointError(f"{folder / SCORES}: cannot be read: {error}. Start the run anew.") from error

    @staticmethod
    def active(folder: Path) -> bool:
        """Tell whether a checkpoint was written while scores were still learned."""
        return (folder / SCORES).exists()


__all__ = ["SCORES", "THRESHOLD", "ScoreLearner"]
