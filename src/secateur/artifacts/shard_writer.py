"""Write a model folder shard by shard, its tensors block by block."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateur.artifacts.packed_file import Layout
from secateur.artifacts.shards import INDEX, Shards
from secateur.errors import CheckpointError
from secateur.files import safetensors_head, sha256_names, write_json

Content = Callable[[str], Iterator[np.ndarray]]  # tensor name -> its bytes, uint8, piece by piece


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        hash: of the folder's weights, as `sha256_folder` computes it.
        num_bytes: of the weight files.
        num_parameters: values in them.
    """

    hash: str
    num_bytes: int
    num_parameters: int


@dataclass(frozen=True)
class Outline:
    """One tensor of a file that is to be written: its name, its type and shape, and its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


def outline(layout: Layout, *, without: Sequence[str], added: Mapping[str, str]) -> list[Outline]:
    """List what a new file holds.

    Args:
        layout: the file that it is made of.
        without: tensors that it does not take over.
        added: new tensor -> the tensor of the old file whose type and shape it has.

    Returns:
        The tensors in the order of their bytes, new ones last.
    """
    sources = {name: name for name in layout.entries if name not in without} | dict(added)
    found = [(name, layout.entries[source]) for name, source in sources.items()]
    return [Outline(name, entry.dtype, entry.shape, entry.end - entry.begin) for name, entry in found]


def write_shards(shards: Shards, place: Path, plan: Mapping[str, Sequence[Outline]], content: Content) -> Written:
    """Write the weight files of a folder, and its index.

    Args:
        shards: the folder that it is made of; a file whose tensors stay has the same header.
        place: the new folder.
        plan: file name -> its tensors.
        content: gives a tensor's bytes.

    Returns:
        What was written.

    Raises:
        OSError: it cannot be written.
    """
    hashes = {}
    for name, outlines in plan.items():
        layout = shards.layouts[name]
        same = [item.name for item in outlines] == list(layout.entries)
        head = layout.head if same else _head(outlines, layout.metadata)
        hashes[name] = _write_file(place / name, head, outlines, content)
    total = sum(item.num_bytes for outlines in plan.values() for item in outlines)
    if shards.index is not None:
        _write_index(place / INDEX, shards.index, plan, total)
    return Written(
        sha256_names(hashes),
        sum((place / name).stat().st_size for name in plan),
        sum(int(np.prod(item.shape, dtype=np.int64)) for outlines in plan.values() for item in outlines),
    )


def _head(outlines: Sequence[Outline], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for item in outlines:
        end = begin + item.num_bytes
        header[item.name] = {"dtype": item.dtype, "shape": list(item.shape), "data_offsets": [begin, end]}
        begin = end
    return safetensors_head(header)


def _write_file(file: Path, head: bytes, outlines: Sequence[Outline], content: Content) -> str:
    """Write one safetensors file and give its hash."""
    digest = hashlib.sha256(head)
    with file.open("wb") as stream:
        stream.write(head)
        for item in outlines:
            written = 0
            for piece in content(item.name):
                stream.write(piece.data)
                digest.update(piece.data)
                written += piece.nbytes
            assert written == item.num_bytes, f"{item.name} has other bytes than its header says"
        stream.flush()
        os.fsync(stream.fileno())  # shard by shard: else the whole model waits in memory for the disk
    return digest.hexdigest()


def _write_index(file: Path, index: Mapping[str, Any], plan: Mapping[str, Sequence[Outline]], total: int) -> None:
    metadata = dict(index.get("metadata") or {})
    metadata["total_size"] = total
    if "total_parameters" in metadata:
        metadata["total_parameters"] = sum(
            int(np.prod(item.shape, dtype=np.int64)) for outlines in plan.values() for item in outlines
        )
    places = {item.name: name for name, outlines in plan.items() for item in outlines}
    write_json(file, {**index, "metadata": metadata, "weight_map": dict(sorted(places.items()))})


def check_room(place: Path, num_bytes: int) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        place: an existing folder on that disk.
        num_bytes: that will be written.

    Raises:
        CheckpointError: there is too little room; says how much.
    """
    free = shutil.disk_usage(place).free
    if free < num_bytes:
        raise CheckpointError(
            f"{place}: {num_bytes / 1e9:.1f} GB are to be written there, and {free / 1e9:.1f} GB are free. Free space "
            "or choose another --out."
        )
