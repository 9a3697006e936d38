"""Gradual pruning: masks that remove ever more while a model is trained."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from secateur.errors import SecateurError
from secateur.masks.mask import MaskSet
from secateur.registry import choose
from secateur.retrain.keeper import MaskCallback

# From the share of the way that is behind to the share of the sparsity that is reached. Cubic: Zhu and Gupta 2017,
# arXiv:1710.01878, eq. 1 (AGP).
PACES: dict[str, Callable[[float], float]] = {
    "linear": lambda way: way,
    "cubic": lambda way: 1.0 - (1.0 - way) ** 3,
}


@dataclass(frozen=True)
class Steps:
    """When a gradual pruning takes its steps.

    Attributes:
        kind: linear or cubic.
        start: share of the training's steps that are over when it begins, 0 <= start < 1.
        end: share of the steps that are over when the whole sparsity is reached, start < end <= 1.
        every: steps of the training between two of its own.
    """

    kind: str
    start: float
    end: float
    every: int

    def shares(self, num_steps: int) -> dict[int, float]:
        """Plan a training's prunings.

        Args:
            num_steps: of the training, at least 1.

        Returns:
            Number of training steps that are over -> share of the sparsity reached then, above 0; the last is 1, and
            a step of the training follows it.

        >>> Steps("cubic", 0.0, 0.5, 2).shares(16)
        {2: 0.578125, 4: 0.875, 6: 0.984375, 8: 1.0}
        >>> Steps("linear", 0.5, 1.0, 100).shares(10)
        {9: 1.0}
        """
        return self.counted(num_steps).shares(num_steps)

    def pressure(self, step: int, num_steps: int) -> float:
        """Tell which share of the sparsity the pace asks for after any step of the training: 0 to 1."""
        return self.counted(num_steps).pressure(step, num_steps)

    def counted(self, num_steps: int) -> CountedSteps:
        """Count the steps of a training of this length."""
        last = min(round(self.end * num_steps), num_steps - 1)
        return CountedSteps(self.kind, min(round(self.start * num_steps), last), last, self.every)


@dataclass(frozen=True)
class CountedSteps:
    """When a gradual pruning takes its steps, told in steps of the training.

    Attributes:
        kind: linear or cubic.
        first: steps that are over when it begins.
        last: steps that are over when the whole sparsity is reached, at least one later.
        every: steps of the training between two of its own.
    """

    kind: str
    first: int
    last: int
    every: int

    def shares(self, num_steps: int) -> dict[int, float]:
        """Plan a training's prunings, as `Steps.shares` does.

        Args:
            num_steps: of the training; its last step trains what the last pruning left.

        Returns:
            Number of training steps that are over -> share of the sparsity reached then.

        Raises:
            SecateurError: the training is too short.

        >>> CountedSteps("linear", 0, 6, 3).shares(7)
        {3: 0.5, 6: 1.0}
        """
        if self.last >= num_steps:
            raise SecateurError(
                f"schedule: the last weights go after {self.last} steps, and the training has {num_steps} in all, of "
                "which one must follow. Raise train.epochs, or ask for fewer or closer prunings."
            )
        steps = range(self.first + self.every, self.last, self.every)
        return {step: self._pace(step) for step in steps} | {self.last: 1.0}

    def pressure(self, step: int, num_steps: int) -> float:
        """Tell which share of the sparsity the pace asks for after any step of the training: 0 to 1."""
        if step >= self.last:
            return 1.0
        return self._pace(step) if step > self.first else 0.0

    def _pace(self, step: int) -> float:
        return choose(PACES, self.kind, "schedule")((step - self.first) / (self.last - self.first))


def plan_shares(steps: Steps | CountedSteps, num_steps: int) -> dict[int, float]:
    """Plan a training's prunings, if they can be gradual.

    Args:
        steps: when.
        num_steps: of the training, at least 1.

    Returns:
        See `Steps.shares`.

    Raises:
        SecateurError: the training is too short, or all would go at once.

    >>> plan_shares(Steps("cubic", 0.0, 0.5, 4), 16)
    {4: 0.875, 8: 1.0}
    """
    shares = steps.shares(num_steps)
    if len(shares) == 1 and isinstance(steps, Steps):
        raise SecateurError(
            f"schedule: every {steps.every} steps, all would go at once, for the part of this training that "
            f"prunes has no more ({num_steps} steps in all). Lower every, or prune one_shot."
        )
    return shares


class Pruner(Protocol):
    """What chooses masks and lays them on the model that is trained."""

    @property
    def masks(self) -> MaskSet:
        """What holds now."""
        ...

    @property
    def still(self) -> Collection[str]:
        """Paths of those weights whose removed entries keep their values until they come back, or the end."""
        ...

    def begin(self) -> MaskSet:
        """Prepare the model, where it will be trained, for a training from its first step; give what holds then."""
        ...

    def learn(self, pressure: float) -> None:
        """Take note of a step of the training; the pressure to remove grows from 0 to 1."""
        ...

    def prune(self, share: float) -> MaskSet:
        """Lay on masks that remove this share, above 0 and at most 1, of what goes in all; give them."""
        ...

    def save(self, checkpoint: Path) -> None:
        """Write what a training that goes on needs into a checkpoint."""
        ...

    def restore(self, checkpoint: Path) -> None:
        """Read that again, before the checkpoint's weights are loaded."""
        ...


class GradualCallback(MaskCallback):
    """Prunes while a Hugging Face Trainer trains, and keeps what is pruned at zero.

    The pruning of step n comes before the gradients of step n + 1. A checkpoint holds the masks of its step, so that a
    training that goes on from it prunes as if it had never been broken.

    Args:
        pruner: chooses the masks.
        steps: when.
    """

    def __init__(self, pruner: Pruner, steps: Steps | CountedSteps) -> None:
        super().__init__(pruner.masks)
        self.pruner, self.steps = pruner, steps
        self._shares: dict[int, float] = {}

    def resume(self, checkpoint: Path) -> None:
        """Lay on the masks of a checkpoint, before its weights are loaded.

        Args:
            checkpoint: its folder.

        Raises:
            CheckpointError: the masks are missing or damaged.
        """
        self.pruner.restore(checkpoint)
        self.masks = self.pruner.masks

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start keeping, and plan the steps."""
        self._shares = plan_shares(self.steps, state.max_steps)
        if not state.global_step:
            self.masks = self.pruner.begin()
        super().on_train_begin(args, state, control, **kwargs)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prune, when it is time."""
        share = self._shares.get(state.global_step)
        if share is None:
            return
        self._remove()
        self.masks = self.pruner.prune(share)
        self._keep(**kwargs)

    def _keep(self, **kwargs: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super()._keep(still=self.pruner.still, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the pruner learn from the step."""
        self.pruner.learn(self.steps.pressure(state.global_step, state.max_steps))

    def check_over(self, step: int) -> None:
        """See that a training that ended went far enough.

        Args:
            step: after which it ended.

        Raises:
            SecateurError: some of the pruning was still to come.
        """
        last = max(self._shares)
        if step <= last:
            raise SecateurError(
                f"A callback ended the training after step {step}, and the pruning is over after {last}, of which one "
                f"step more must follow. Let it train until step {last + 1}; the run can be gone on with."
            )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the zeros of what was just saved, and put masks and learned scores beside it."""
        super().on_save(args, state, control, **kwargs)
        if args.should_save:
            self.pruner.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")


__all__ = ["PACES", "CountedSteps", "GradualCallback", "Pruner", "Steps"]
