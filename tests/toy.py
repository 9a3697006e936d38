"""What tests of whole runs share: one T5 of one layer a stack, thirteen rows, a recorder of what trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from secateur import pipeline
from secateur.recipe.load import parse_recipe
from secateur.recipe.schema import Recipe
from secateur.retrain import trainer

ROOT = Path(__file__).parents[1]
VOCABULARY = 71  # of the tokenizer in recipes/tiny/start

# Thirteen words: 7 micro-batches of 2, the last with one row, so the last step of an epoch accumulates less than 2.
WORDS = {
    "a": "AH", "cab": "K AE B", "ace": "EY S", "bake": "B EY K", "deck": "D EH K", "gym": "JH IH M", "house": "HH AW S",
    "joke": "JH OW K", "kite": "K AY T", "limits": "L IH M IH T S", "mathematics": "M AE TH AH M AE T IH K S",
    "nation": "N EY SH AH N", "pepper": "P EH P ER",
}  # fmt: skip
NUM_STEPS = 16  # of one training of the toy: 4 epochs of 4 steps

RECIPE = """
version: 1
model: {model}
initialize: {initialize}
seed: 7
keep: {keep}
task:
  data: {{path: {data}}}
  source: word
  target: phonemes
  max_source_tokens: 20
  max_target_tokens: 20
evaluation: {{metrics: [per], max_new_tokens: 3, batch_size: 4}}
stages:
"""
TRAIN = (
    "{epochs: 4, learning_rate: 5.0e-3, batch_size: 2, accumulation: 2, precision: fp32, dropout: 0.1, save_every: 3}"
)
STAGES = f"""
  - name: dense
    train: {TRAIN}
  - name: prune
    prune:
      groups:
        - {{role: self_attention, sparsity: 0.6}}
        - {{role: lm_head, sparsity: 0.5, tie: view}}
  - name: retrain
    train: {TRAIN}
  - name: final
    evaluate: {{split: test}}
"""


class Killed(BaseException):
    """Stands for a kill: nothing in the package catches it."""


class Recorder(TrainerCallback):
    """Sees what a run trains on, step by step, and the optimizer's state at the end of every training."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], list[Any]] = {}
        self.moments: dict[str, dict[int, dict[str, Any]]] = {}
        self.steps: list[tuple[str, int]] = []

    @staticmethod
    def stage(args: Any) -> str:
        return Path(args.output_dir).parent.name

    def see(self, stage: str, step: int, inputs: Mapping[str, torch.Tensor]) -> None:
        self.rows.setdefault((stage, step), []).append({name: value.tolist() for name, value in inputs.items()})

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append((self.stage(args), state.global_step))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])
        state_of = optimizer.state_dict()["state"]
        self.moments[self.stage(args)] = {
            index: {name: torch.as_tensor(value).clone() for name, value in values.items()}
            for index, values in state_of.items()
        }


@dataclass
class Toy:
    """A model folder, its rows, and runs of recipes on them."""

    start: Path
    data: Path
    rows: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def recipe(self, stages: str = STAGES, *, initialize: str = "random", keep: str = "last") -> Recipe:
        head = RECIPE.format(model=self.start, initialize=initialize, data=self.data, keep=keep)
        return parse_recipe(head + stages, name="toy.yaml")

    def run(self, folder: Path, *callbacks: Any, stages: str = STAGES, **options: Any) -> pipeline.RunResult:
        recipe_options = {key: options.pop(key) for key in ("initialize", "keep") if key in options}
        recipe = self.recipe(stages, **recipe_options)
        return pipeline.run(recipe, folder, device="cpu", callbacks=callbacks, **options)

    def run_seen(self, folder: Path, *callbacks: Any, **options: Any) -> Recorder:
        """Run, and record rows and moments."""
        recorder = Recorder()
        original = trainer._Trainer.compute_loss

        def compute_loss(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            recorder.see(Recorder.stage(self.args), self.state.global_step, inputs)
            return original(self, model, inputs, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer._Trainer, "compute_loss", compute_loss)
            self.run(folder, recorder, *callbacks, **options)
        return recorder


@dataclass(frozen=True)
class Unbroken:
    """A run that nothing disturbed, and copies as kills left them: before its pruning, and before its last training."""

    folder: Path
    seen: Recorder
    before_prune: Path
    before_retrain: Path
