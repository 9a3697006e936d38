"""The two tasks of the quality benchmarks: their data, their dense models, and how each is retrained and measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur.recipe.load import parse_recipe
from secateur.recipe.schema import Recipe

ROOT = Path(__file__).parents[2]
SHARES = {"self_attention": 15, "cross_attention": 20, "feed_forward": 15, "lm_head": 30}  # epochs of the report
SPARSITIES = {"self_attention": 0.9, "cross_attention": 0.4, "feed_forward": 0.7, "lm_head": 0.8}  # of the report
RETRAINING = {  # of every arm of both tasks; what differs stands with the task
    "optimizer": "adafactor",
    "schedule": "cosine",
    "warmup_steps": 50,
    "attention": "eager",
    "save_every": 250,
}
NON_EMBEDDING = ("self_attention", "cross_attention", "feed_forward")


@dataclass(frozen=True)
class Task:
    """What a recipe of the task begins with, and how much training is the report's.

    Attributes:
        name: g2p or debian.
        dense: folder of the dense model, as `recipes/NAME/dense-long.yaml` leaves it.
        searched: a recipe with the sparsities that a search found.
        full_epochs: of retraining in all, in the arms that get the whole budget.
        metric: the one that counts.
        data: where the rows are.
        task: columns and lengths.
        evaluation: how quality is measured.
        retrain: how every arm is trained, but for its epochs and dropout.
        dropout: by share of the full epochs; chosen on validation data for controls too.
        distillation: what ours learns from the dense model beside its logits; chosen on validation data.
    """

    name: str
    dense: Path
    searched: Path
    full_epochs: float
    metric: str
    data: dict[str, str]
    task: dict[str, Any]
    evaluation: dict[str, Any]
    retrain: dict[str, Any] = field(default_factory=dict)
    dropout: Mapping[float, float] = field(default_factory=dict)
    distillation: dict[str, float] = field(default_factory=dict)

    def recipe(
        self,
        stages: Sequence[Mapping[str, Any]],
        *,
        seed: int = 42,
        model: Path | str | None = None,
        tuning: bool = False,
    ) -> Recipe:
        """Make a recipe of stages, ended by the evaluation on test data; without it while choices are made."""
        final = [] if tuning and stages else [{"name": "final", "evaluate": {"split": "test"}}]
        values = {
            "version": 1,
            "model": str(model or self.dense),
            "seed": seed,
            "task": {"kind": "seq2seq", "data": self.data, **self.task},
            "evaluation": self.evaluation,
            "stages": [*stages, *final],
        }
        return parse_recipe(json.dumps(values), name=self.name)


def _debian_data() -> Path:
    own, shared = ROOT / "recipes" / "debian" / "data", ROOT.parent / "shared" / "data" / "debian-synopsis"
    return own if own.exists() else shared


TASKS = {
    "g2p": Task(
        name="g2p",
        dense=ROOT / "recipes" / "g2p" / "dense-long",
        searched=ROOT / "recipes" / "g2p" / "searched.yaml",
        full_epochs=40,
        metric="per",
        data={"path": "cmudict"},
        task={"source": "word", "target": "phonemes", "max_source_tokens": 40, "max_target_tokens": 40},
        evaluation={"metrics": ["per", "wer", "mean_length"], "max_new_tokens": 40, "batch_size": 256},
        retrain={**RETRAINING, "learning_rate": 1.0e-2, "batch_size": 128},
        # An epoch after ours' pruning: 6.41 % phoneme error without dropout, 6.78 % with 0.1 (no teacher).
        dropout={1.0: 0.1, 0.1: 0.0},
    ),
    "debian": Task(
        name="debian",
        dense=ROOT / "recipes" / "debian" / "dense-long",
        searched=ROOT / "recipes" / "debian" / "searched.yaml",
        full_epochs=10,
        metric="rougeLsum",
        data={"path": str(_debian_data())},
        task={"source": "text", "target": "summary", "max_source_tokens": 256, "max_target_tokens": 32},
        evaluation={"metrics": ["rouge", "course_rouge_lsum", "mean_length"], "max_new_tokens": 28, "batch_size": 64},
        retrain={**RETRAINING, "learning_rate": 5.0e-3, "batch_size": 32},
        # An epoch of the dense model: ROUGE-Lsum 0.3938 before, 0.3637 without dropout, which learns the rows by heart.
        dropout={1.0: 0.1, 0.5: 0.1, 0.1: 0.1},
        # ROUGE-Lsum on validation rows, ours, seed 1: 0.3908, from logits alone 0.3871.
        distillation={"hidden": 1.0},
    ),
}
