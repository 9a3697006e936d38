"""A model folder's safetensors, in one file or in shards with an index: what is where, checked, without the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.artifacts.packed_file import Entry, Layout, read_layout
from secateur.errors import CheckpointError
from secateur.files import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_AGAIN = "Copy the folder again, or write it anew with save_pretrained."


@dataclass(frozen=True)
class Shards:
    """Where a model's tensors are.

    Attributes:
        folder: the model folder.
        layouts: file name -> what the file says about itself, in the order of the names.
        places: tensor name -> file name.
        index: what the index holds; None for one file without an index.
    """

    folder: Path
    layouts: Mapping[str, Layout]
    places: Mapping[str, str]
    index: Mapping[str, Any] | None

    def entry(self, tensor: str) -> Entry:
        """Look a tensor up; a name that is not there is a KeyError."""
        return self.layouts[self.places[tensor]].entries[tensor]

    def layout(self, tensor: str) -> Layout:
        """Find the file that holds a tensor."""
        return self.layouts[self.places[tensor]]

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest file."""
        return max(layout.file.stat().st_size for layout in self.layouts.values())


def open_shards(folder: Path) -> Shards:
    """Find a model's weight files and check them against each other; their tensors are not read.

    Args:
        folder: with model.safetensors, or with an index and its shards.

    Returns:
        What is where.

    Raises:
        CheckpointError: there is no such file, a shard is missing, damaged or cut short, or the index and the shards
            disagree; all disagreements at once.
    """
    index_file, single = folder / INDEX, folder / SINGLE
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    if not files and not index_file.is_file():
        raise CheckpointError(f"{folder}: holds no .safetensors file. Save the model with save_pretrained first.")
    index = _read_index(index_file) if index_file.is_file() else None
    if index is not None and single.is_file() and SINGLE not in index["weight_map"].values():
        raise CheckpointError(
            f"{folder}: holds {SINGLE} and {INDEX}, and one does not know the other. Remove what is not the model."
        )
    named = sorted(set(index["weight_map"].values())) if index is not None else [SINGLE]
    faults = [f"{name} is missing" for name in named if name not in files]
    faults += [f"{name} is no part of the model" for name in files if name not in named]
    if faults:
        raise CheckpointError(f"{folder}: {_listed(faults)}. {_AGAIN}")
    layouts = {name: read_layout(folder / name) for name in named}
    places: dict[str, str] = {}
    for name, layout in layouts.items():
        for tensor in layout.entries:
            if tensor in places:
                faults.append(f"{tensor} stands in {places[tensor]} and in {name}")
            places.setdefault(tensor, name)
    faults += [] if index is None else _disagreements(index["weight_map"], places)
    if faults:
        raise CheckpointError(f"{folder}: {_listed(faults)}. {_AGAIN}")
    return Shards(folder, layouts, places, index)


def _read_index(file: Path) -> dict[str, Any]:
    """Read an index, whose map must lead to files beside it."""
    index = read_json(file)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{file}: names no tensors (weight_map). {_AGAIN}")
    for name in set(map(str, places.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{file}: names a file {name!r}, which is no .safetensors file beside it. {_AGAIN}")
    return index


def _disagreements(told: Mapping[str, str], places: Mapping[str, str]) -> list[str]:
    """List the tensors that are not where an index says."""
    faults = [
        f"{tensor} is in {places[tensor]}, the index says {name}" if tensor in places else f"{tensor} is not in {name}"
        for tensor, name in told.items()
        if places.get(tensor) != name
    ]
    return faults + [f"{tensor} in {name} is not in the index" for tensor, name in places.items() if tensor not in told]


def _listed(faults: list[str]) -> str:
    return ", ".join(faults[:5]) + (f", and {len(faults) - 5} more" if len(faults) > 5 else "")
