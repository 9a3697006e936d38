"""What tests of classification share: a BERT of two layers without a head, rows whose letters say their class."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from secateur import pipeline, state
from secateur.recipe.load import parse_recipe
from secateur.recipe.schema import Recipe

VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *ascii_lowercase)
Rows = Callable[..., list[dict[str, str]]]
LABELS = ("early", "late", "middle")
SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 20, "max_position_embeddings": 24, "type_vocab_size": 2, "pad_token_id": 0,
}  # fmt: skip

RECIPE = """
version: 1
model: {model}
seed: 7
keep: {keep}
task:
  kind: classification
  data: {{path: {data}}}
  source: {source}
  target: label
  max_source_tokens: 12
evaluation: {{metrics: [accuracy, macro_f1], batch_size: 8}}
stages:
"""
_TRAIN = "learning_rate: 5.0e-3, batch_size: 4, precision: fp32, dropout: 0.05, save_every: 10"
TRAIN = "{epochs: 1, " + _TRAIN  # to be gone on with, and closed
STAGES = f"""
  - name: dense
    train: {{epochs: 6, {_TRAIN}}}
  - name: final
    evaluate: {{split: test}}
"""
# Groups whose scores read calibration rows, and a stage whose score is learned.
SCORED = """
        - {role: self_attention, sparsity: 0.3, score: obs}
        - {role: feed_forward, sparsity: 0.3, score: fisher}"""
MOVEMENT = f"""
  - name: movement
    prune:
      groups: [{{role: self_attention, sparsity: 0.5, score: movement}}]
      schedule: {{kind: cubic, every: 3, regrow: true}}
      train: {TRAIN}}}"""


def rows_of(count: int, *, start: int = 0) -> list[dict[str, str]]:
    """Rows of letters with spaces between, each class with letters of its own; the same for the same numbers."""
    drawn = torch.Generator().manual_seed(start)
    rows = []
    for index, length in enumerate((torch.arange(count) % 7 + 1).tolist()):
        label = index % 3
        letters = (torch.randint(8, (length,), generator=drawn) + 8 * label).tolist()
        rows.append({"text": " ".join(ascii_lowercase[letter] for letter in letters), "label": LABELS[label]})
    return rows


def text_pairs_of(count: int, *, start: int = 0) -> list[dict[str, str]]:
    """Rows of two texts whose class is which one has the earlier letters; some are too long for the recipe."""
    drawn = torch.Generator().manual_seed(start)
    rows = []
    for index in range(count):
        label = index % 3
        texts = [
            " ".join(
                ascii_lowercase[letter]
                for letter in (torch.randint(8, (length,), generator=drawn) + 8 * group).tolist()
            )
            for length, group in zip((index % 5 + 1, 3 * index % 7 + 1), ((0, 2), (2, 0), (1, 1))[label], strict=True)
        ]
        rows.append({"premise": texts[0], "hypothesis": texts[1], "label": LABELS[label]})
    return rows


@dataclass
class Classes:
    """A model folder without a head, its rows, and runs of recipes on them."""

    start: Path
    data: Path
    source: str = "text"

    def recipe(self, stages: str = STAGES, *, model: Path | None = None, keep: str = "last") -> Recipe:
        head = RECIPE.format(model=model or self.start, data=self.data, keep=keep, source=self.source)
        return parse_recipe(head + stages, name="classes.yaml")

    def run(self, folder: Path, stages: str = STAGES, *callbacks: Any, **options: Any) -> pipeline.RunResult:
        recipe = self.recipe(stages, **{key: options.pop(key) for key in ("model", "keep") if key in options})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(state, "write_card", lambda folder: None)
            return pipeline.run(recipe, folder, device="cpu", callbacks=callbacks, **options)


def make_classes(place: Path, rows_of: Rows = rows_of, source: str = "text") -> Classes:
    """Write the model, its tokenizer and the rows."""
    (place / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCABULARY))
    BertTokenizerFast(str(place / "vocab.txt")).save_pretrained(place / "start")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = BertModel(BertConfig(**SIZES))
        for parameter in model.parameters():
            if parameter.ndim > 1:  # wide enough to learn within a few steps
                parameter.data.normal_(0.0, 0.15)
    model.save_pretrained(place / "start")
    splits = {"train": rows_of(42), "validation": rows_of(20, start=1), "test": rows_of(16, start=2)}
    (place / "data").mkdir()
    for split, rows in splits.items():
        (place / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Classes(place / "start", place / "data", source)
