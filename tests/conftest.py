"""Fixtures of whole runs; what they are made of is in toy.py and classes.py, which tests import too."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration, TrainerCallback

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode leaves the path alone

from classes import Classes, make_classes, text_pairs_of
from secateur import stages, state
from toy import ROOT, VOCABULARY, WORDS, Killed, Recorder, Toy, Unbroken


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Equal bits need an equal number of threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_waiting() -> Iterator[None]:
    """No test cuts the power, so nothing waits for the disk; and what was imported is no garbage to look for.

    Both together were half of a toy's run: accelerate collects garbage twice a training, among a million objects.
    """
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def one_thread_again() -> Iterator[None]:
    """What a test sets would last: the models that later tests share would be trained at another number."""
    yield
    torch.set_num_threads(1)


@pytest.fixture
def no_card() -> Iterator[None]:
    """Runs without card and picture, which take longer than a toy's training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "write_card", lambda folder: None)
        yield


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    place = tmp_path_factory.mktemp("toy")
    sizes = {"d_model": 24, "d_kv": 4, "num_heads": 3, "d_ff": 20, "num_layers": 1, "decoder_start_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, **sizes))
    model.save_pretrained(place / "start")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "recipes" / "tiny" / "start" / name, place / "start" / name)
    rows = [{"word": word, "phonemes": phonemes} for word, phonemes in WORDS.items()]
    splits = {"train": rows, "validation": rows[:3], "test": rows[3:5]}
    (place / "data").mkdir()
    for split, some in splits.items():
        (place / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return Toy(place / "start", place / "data", splits)


@pytest.fixture(scope="session")
def unbroken(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    place = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "write_card", lambda folder: None)
        seen = toy.run_seen(place / "run")

        class Kill(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if Recorder.stage(args) == "03-retrain":
                    raise Killed

        def killed(*args: Any) -> None:
            raise Killed

        with pytest.MonkeyPatch.context() as kill, pytest.raises(Killed):
            kill.setattr(stages, "prune_live", killed)
            toy.run(place / "prune")
        shutil.copytree(place / "prune", place / "retrain")
        with pytest.raises(Killed):
            toy.run(place / "retrain", Kill(), resume=True)
    return Unbroken(place / "run", seen, place / "prune", place / "retrain")


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Classes:
    return make_classes(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="session")
def text_pairs(tmp_path_factory: pytest.TempPathFactory) -> Classes:
    """Two texts a row."""
    return make_classes(tmp_path_factory.mktemp("pairs"), text_pairs_of, "[premise, hypothesis]")


@pytest.fixture(scope="session")
def trained(classes: Classes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that trained a classifier."""
    return classes.run(tmp_path_factory.mktemp("trained") / "run").folder
