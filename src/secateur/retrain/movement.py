"""Movement pruning: scores that are learned together with the weights they judge."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from secateur.errors import CheckpointError
from secateur.files import write_bytes
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

    Args:
        paths: weights of linear layers; all are masked as a view whenever gradients are taken.
        soft: those of them whose scores are pressed down.
        learning_rate: of the scores.
        regularization: how much the mean of the soft scores' sigmoid weighs in the loss when the pressure is full.
        processes: which process this is; gradients are averaged over all.

    Source: Sanh et al. 2020, arXiv:2005.07683, eq. 3 to 5; soft: sec. 3 and the regularization of appendix A.
    """

    def __init__(
        self,
        paths: Collection[str],
        *,
        soft: Collection[str],
        learning_rate: float,
        regularization: float,
        processes: Processes,
    ) -> None:
        self.paths, self.soft = list(paths), set(soft)
        self.learning_rate, self.regularization, self.processes = learning_rate, regularization, processes
        self._scores: dict[str, Tensor] = {}
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
                self._scores[path] = torch.zeros_like(layer.weight, dtype=torch.float32, requires_grad=True)
            layer.scores = self._scores[path]
        if self._optimizer is None:
            self._optimizer = torch.optim.Adam(self._scores.values(), lr=self.learning_rate)

    def step(self, pressure: float) -> None:
        """Train the scores by the gradients since the last step.

        Args:
            pressure: share of the regularization that holds now, 0 to 1.
        """
        assert self._optimizer is not None
        num_soft = sum(self._scores[path].numel() for path in self.soft)
        for path, score in self._scores.items():
            if score.grad is None:
                score.grad = torch.zeros_like(score)
            self.processes.average_(score.grad)
            if path in self.soft:
                likely = score.detach().sigmoid()
                score.grad.add_(likely * (1 - likely), alpha=pressure * self.regularization / num_soft)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def statistics(self) -> dict[str, Statistics]:
        """Give the scores, as `masks.scores` takes them: name -> {"learned": the weight's shape, float32}."""
        return {path: {"learned": score.detach()} for path, score in self._scores.items()}

    def below(self, paths: Collection[str]) -> float:
        """Tell which share of these weights soft movement would remove now."""
        scores = [self._scores[path].detach() for path in paths]
        return sum(int((score < THRESHOLD).sum()) for score in scores) / sum(score.numel() for score in scores)

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
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise CheckpointError(f"{folder / SCORES}: cannot be read: {error}. Start the run anew.") from error

    @staticmethod
    def active(folder: Path) -> bool:
        """Tell whether a checkpoint was written while scores were still learned."""
        return (folder / SCORES).exists()


__all__ = ["SCORES", "THRESHOLD", "ScoreLearner"]
