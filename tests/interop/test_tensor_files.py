"""Damage of any kind ends in one plain error, and no code of a file is run."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from secateur.errors import CheckpointError
from secateur.interop.tensor_files import read_tensors
from torch_pruned import make_dense

State = dict[str, torch.Tensor]


def test_what_is_not_there(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        read_tensors(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors or pytorch_model\.bin"):
        read_tensors(tmp_path)
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"w": "gone.bin"}}')
    with pytest.raises(CheckpointError, match=r"not there: .*gone\.bin"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("form", ["torch", "old", "safetensors"])
def test_a_file_that_was_cut_short(state: State, tmp_path, share: float, form: str) -> None:
    file = write(state, tmp_path, form)
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=r"damaged or cut short|not a file of"):
        read_tensors(file)


def test_a_bit_that_turned_over_is_seen_in_files_of_torch(state: State, file: Path) -> None:
    """The archive holds a checksum of every tensor; mapped into memory, torch would not look at it."""
    torch.save(state, file)
    data = file.read_bytes()
    drawn = random.Random(0)
    found = 0
    for place in (drawn.randrange(len(data)) for _ in range(12)):
        changed = bytearray(data)
        changed[place] ^= 16
        file.write_bytes(changed)
        try:
            read = read_tensors(file).tensors
        except CheckpointError:
            found += 1
            continue
        assert all(torch.equal(read[name], tensor) for name, tensor in state.items())  # padding, or a time
    assert found > 6


def write(state: State, folder: Path, form: str) -> Path:
    if form == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "x.safetensors")
        return folder / "x.safetensors"
    torch.save(state, folder / "x.pt", _use_new_zipfile_serialization=form == "torch")
    return folder / "x.pt"


class Runs:
    """What is pickled of it is a call of print."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return print, ("code of the file ran",)


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_that_needs_more_than_tensors_is_refused_by_name(file: Path, capsys, old: bool) -> None:
    for content, name in (
        (make_dense(), "T5ForConditionalGeneration"),
        ({"args": argparse.Namespace(a=1), "state_dict": {}}, "argparse.Namespace"),
        ({"state_dict": {"w": torch.ones(1)}, "extra": Runs()}, "print"),
    ):
        torch.save(content, file, _use_new_zipfile_serialization=not old)
        with pytest.raises(CheckpointError) as caught:
            read_tensors(file)
        told = str(caught.value)
        assert name in told and "would run code" in told and "torch.save(model.state_dict(), FILE)" in told
        assert "weights_only" not in told
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([torch.ones(2)], "holds a list"),
        ({"a": 1}, "holds no tensors"),
        ({}, "holds no tensors"),
        (torch.ones(2), "holds a Tensor"),
    ],
)
def test_what_holds_no_named_tensors(file: Path, content: object, told: str) -> None:
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=told):
        read_tensors(file)


def test_a_text_is_no_checkpoint(tmp_path) -> None:
    for name in ("notes.pt", "notes.safetensors"):
        (tmp_path / name).write_text("hello, this is text\n" * 30)
        with pytest.raises(CheckpointError, match=r"damaged|not a file of"):
            read_tensors(tmp_path / name)


@pytest.mark.parametrize("old", [False, True])
def test_files_are_mapped_where_their_form_allows_it_and_never_unpickled(state: State, file, monkeypatch, old) -> None:
    torch.save(state, file, _use_new_zipfile_serialization=not old)
    asked, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: asked.append(options) or load(*args, **options))
    assert read_tensors(file).tensors.keys() == state.keys()
    assert [(options["mmap"], options["weights_only"]) for options in asked] == [(not old, True)]
