"""What is loaded is what the folder says; whatever does not fit is told by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from published import given
from secateur.artifacts.loading import load_model, load_tokenizer, random_model
from secateur.errors import CheckpointError


def test_a_random_model_follows_from_its_seed_alone(tmp_path: Path) -> None:
    folder = str(given("t5", tmp_path / "given", own_head=False))
    state = torch.get_rng_state()
    one = random_model(folder, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(9)
    two, three = random_model(folder, seed=1).state_dict(), random_model(folder, seed=2).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], three[name]) for name in one)


def test_faults_of_a_folder_are_named(tmp_path: Path) -> None:
    folder = given("t5", tmp_path / "given", own_head=False)
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        load_tokenizer(str(folder))
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    state = {name: tensor.clone() for name, tensor in load_file(file).items()}  # load_file maps what is damaged below
    cases: list[tuple[str, Callable[[], Any]]] = [
        ("cannot be loaded", lambda: file.write_bytes(whole[: len(whole) // 2])),
        (
            "not those of config.json: .*shared.weight is missing.* Copy the folder again",
            lambda: save_file({k: v for k, v in state.items() if k != "shared.weight"}, file, {"format": "pt"}),
        ),
        (
            r"shared.weight has shape \[39, 24\], not \[40, 24\]",
            lambda: save_file(state | {"shared.weight": torch.zeros(39, 24)}, file, {"format": "pt"}),
        ),
        (
            "extra.weight has no place",
            lambda: save_file(state | {"extra.weight": torch.zeros(3)}, file, {"format": "pt"}),
        ),
        ("cannot be loaded", file.unlink),
    ]
    for message, damage in cases:
        damage()
        with pytest.raises(CheckpointError, match=message):
            load_model(str(folder))
    with pytest.raises(CheckpointError, match="no configuration there"):
        random_model(str(tmp_path), seed=1)


def test_a_configuration_with_fewer_layers_than_weights_is_refused(tmp_path: Path) -> None:
    """Half a model would load, run, and answer otherwise."""
    folder = given("t5", tmp_path / "given", own_head=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_decoder_layers": 1}))
    with pytest.raises(CheckpointError, match=r"decoder\.block\.1\..* has no place, .* and \d+ more"):
        load_model(str(folder))
