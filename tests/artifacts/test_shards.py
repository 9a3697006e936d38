"""Shards and their index are checked against each other before anything is read, and each fault is told by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from secateur.artifacts.shard_writer import check_room, outline, write_shards
from secateur.artifacts.shards import INDEX, SINGLE, open_shards
from secateur.errors import CheckpointError
from secateur.files import sha256_folder

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "m"
    place.mkdir()
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(5)}, place / ONE, metadata={"format": "pt"})
    save_file({"c": torch.arange(4.0).half()}, place / TWO, metadata={"format": "pt"})
    write_index(place, {"a": ONE, "b": ONE, "c": TWO})
    return place


def write_index(place: Path, places: Any) -> None:
    (place / INDEX).write_text(json.dumps({"metadata": {"total_size": 52, "mine": 1}, "weight_map": places}))


def cut_short(place: Path) -> None:
    (place / TWO).write_bytes((place / TWO).read_bytes()[:-3])


def twice(place: Path) -> None:
    save_file({"c": torch.arange(4.0), "a": torch.zeros(1)}, place / TWO)


def stale(place: Path) -> None:
    save_file({"a": torch.zeros(1)}, place / SINGLE)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda place: (place / TWO).unlink(), f"{TWO} is missing"),
    "cut short": (cut_short, f"{TWO}: damaged, cut short"),
    "twice": (twice, f"a stands in {ONE} and in {TWO}"),
    "wrong place": (lambda place: write_index(place, {"a": TWO, "b": ONE, "c": TWO}), f"a is in {ONE}, the index"),
    "not there": (lambda place: write_index(place, {"a": ONE, "b": ONE, "c": TWO, "d": TWO}), f"d is not in {TWO}"),
    "not in the index": (lambda place: write_index(place, {"a": ONE, "c": TWO}), f"b in {ONE} is not in the index"),
    "another file": (
        lambda place: save_file({"x": torch.ones(1)}, place / "x.safetensors"),
        "x.safetensors is no part",
    ),
    "one and many": (stale, f"holds {SINGLE} and {INDEX}"),
    "no map": (lambda place: (place / INDEX).write_text("[]"), "names no tensors"),
    "no JSON": (lambda place: (place / INDEX).write_text("{"), "cannot be read as JSON"),
    "elsewhere": (lambda place: write_index(place, {"a": "../x.safetensors"}), "no .safetensors file beside it"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_by_name(folder: Path, damage: str) -> None:
    spoil, told = DAMAGES[damage]
    spoil(folder)
    with pytest.raises(CheckpointError) as found:
        open_shards(folder)
    assert told in str(found.value)


def test_one_file_needs_no_index(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / SINGLE)
    shards = open_shards(tmp_path)
    assert shards.index is None and dict(shards.places) == {"a": SINGLE} and shards.entry("a").shape == (3,)
    assert shards.largest_bytes == (tmp_path / SINGLE).stat().st_size
    (tmp_path / SINGLE).unlink()
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors file"):
        open_shards(tmp_path)


def test_what_stays_is_the_same_file_and_what_is_new_is_indexed(folder: Path, tmp_path: Path) -> None:
    shards, place = open_shards(folder), tmp_path / "new"
    place.mkdir()
    plan = {
        name: outline(layout, without=["b"], added={"d": "a"} if name == ONE else {})
        for name, layout in shards.layouts.items()
    }
    written = write_shards(
        shards,
        place,
        plan,
        lambda name: shards.layout("a" if name == "d" else name).blocks("a" if name == "d" else name, 8),
    )
    assert (place / TWO).read_bytes() == (folder / TWO).read_bytes()
    state = load_file(place / ONE)
    assert list(state) == ["a", "d"] and torch.equal(state["a"], state["d"])
    index = json.loads((place / INDEX).read_text())
    assert index["weight_map"] == {"a": ONE, "c": TWO, "d": ONE}
    assert index["metadata"] == {"total_size": 56, "mine": 1}
    assert written.hash == sha256_folder(place, "*.safetensors") and written.num_parameters == 16
    assert written.num_bytes == sum((place / name).stat().st_size for name in (ONE, TWO))
    assert set(open_shards(place).places) == {"a", "c", "d"}


def test_too_little_room_is_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"1000000000\.0 GB are to be written there"):
        check_room(tmp_path, 10**18)
