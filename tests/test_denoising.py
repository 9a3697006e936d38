"""A recipe's denoising reaches the training: early rows are span corruption, and a resumed run reads the same ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, T5Config, TrainerCallback

from secateur.errors import DataError
from toy import NUM_STEPS, VOCABULARY, Killed, Recorder, Toy

NUM_SENTINELS = 9
TRAIN = (
    "{epochs: 4, learning_rate: 5.0e-3, batch_size: 2, accumulation: 2, precision: fp32, dropout: 0.1, save_every: 3"
)


def stages(until: float) -> str:
    return f"\n  - name: dense\n    train: {TRAIN}, denoising: {{share: 0.7, until: {until}}}}}\n"


@pytest.fixture(scope="module")
def denoiser(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The toy with sentinels behind its tokenizer's ids."""
    start = tmp_path_factory.mktemp("denoiser") / "start"
    tokenizer = AutoTokenizer.from_pretrained(toy.start)
    tokenizer.add_special_tokens({"extra_special_tokens": [f"<extra_id_{n}>" for n in range(NUM_SENTINELS)]})
    tokenizer.save_pretrained(start)
    config = T5Config.from_pretrained(toy.start)
    config.vocab_size = VOCABULARY + NUM_SENTINELS
    config.save_pretrained(start)
    return Toy(start, toy.data, toy.rows)


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Killed


def corrupted(seen: Recorder, step: int) -> int:
    """Count the rows of a step whose target begins with the first sentinel."""
    rows = [row for batch in seen.rows["01-dense", step] for row in batch["labels"]]
    return sum(row[0] == VOCABULARY for row in rows)


@pytest.mark.usefixtures("no_card")
def test_early_steps_are_mixed_and_later_ones_are_not(denoiser: Toy, tmp_path: Path) -> None:
    seen = denoiser.run_seen(tmp_path / "run", stages=stages(0.5))
    counts = [corrupted(seen, step) for step in range(NUM_STEPS)]
    assert all(counts[:3]) and 8 <= sum(counts[:8]) <= 26  # of 2 x 13 rows
    assert not any(counts[8:])


@pytest.mark.usefixtures("no_card")
def test_a_killed_run_goes_on_with_the_rows_of_an_unbroken_one(denoiser: Toy, tmp_path: Path) -> None:
    unbroken = denoiser.run_seen(tmp_path / "unbroken", stages=stages(1.0))
    with pytest.raises(Killed):
        denoiser.run(tmp_path / "run", KillAt(6), stages=stages(1.0))
    seen = denoiser.run_seen(tmp_path / "run", stages=stages(1.0), resume=True)
    steps = sorted(step for _, step in seen.rows)
    assert 0 < steps[0] <= 6 and steps[-1] == NUM_STEPS - 1
    assert seen.rows == {key: unbroken.rows[key] for key in seen.rows}
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("unbroken", "run")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.usefixtures("no_card")
def test_a_tokenizer_without_sentinels_is_refused(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="denoising: the tokenizer has no sentinel tokens"):
        toy.run(tmp_path / "run", stages=stages(1.0))
