"""Restore the folder that was packed, after checking that it is the one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from secateur.artifacts.packed_bytes import decompress, decompress_mask
from secateur.artifacts.packed_copies import Copy, make_copy
from secateur.artifacts.packed_facts import MALFORMED, Rounding, facts_of, part_name
from secateur.artifacts.packed_file import Entry, Layout, damaged, parse_head, read_packed, sha256
from secateur.artifacts.packed_values import Values, decode
from secateur.errors import CheckpointError
from secateur.files import OnBytes, new_folder, silent

_PARTS = ("values", "scales", "mask", "signs")


@dataclass(frozen=True)
class UnpackResult:
    """What was restored.

    Attributes:
        folder: where it is.
        values: what the weights had been stored as.
        num_files: files restored.
        num_bytes: of these files together.
        rounding: None when every file is byte for byte the one that was packed.
    """

    folder: Path
    values: Values
    num_files: int
    num_bytes: int
    rounding: Rounding | None


def unpack_file(file: Path | str, folder: Path | str, *, on_bytes: OnBytes = silent) -> UnpackResult:
    """Restore the folder that was packed.

    Every tensor has the type that it had. With exact values every file comes back byte for byte; rounded ones are as
    far from the originals as `rounding` says, and zeros are zeros.

    Args:
        file: from `pack_folder`.
        folder: a new or an empty one. It is filled when all is restored and checked, or not at all.
        on_bytes: is told ("unpacking", bytes done, bytes in all).

    Returns:
        What was restored, and how exactly.

    Raises:
        CheckpointError: the file is missing, damaged, cut short or not one of ours; or the folder holds something, or
            cannot be written.
    """
    file, folder = Path(file), Path(folder)
    layout, facts = read_packed(file)
    result = facts_of(layout, facts)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists. Give a new folder; nothing is overwritten.")
    try:
        with new_folder(folder) as place:
            num_bytes = _restore_into(place, layout, facts, on_bytes)
    except MALFORMED as error:
        raise damaged(file, "its header lacks something", error) from error
    return UnpackResult(folder, result.values, len(facts["files"]), num_bytes, result.rounding)


def _restore_into(place: Path, layout: Layout, facts: Mapping[str, Any], on_bytes: OnBytes) -> int:
    """Fill a folder, and say with how many bytes."""
    num_bytes = 0
    weights: dict[str, dict[str, Entry]] = {}
    for name, record, data in _files(layout, facts):
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data.data)
        num_bytes += len(data)
        if "tensors" in record:
            weights[name] = _entries(layout, name, record, data)
    total = num_bytes + sum(entry.num_bytes for entries in weights.values() for entry in entries.values())
    for name, begin, data in _tensors(layout, facts, weights):
        with (place / name).open("r+b") as stream:
            stream.seek(begin)
            stream.write(data.data)
        num_bytes += len(data)
        on_bytes("unpacking", num_bytes, total)
    return num_bytes


def _files(layout: Layout, facts: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], np.ndarray]]:
    """Restore the files, of weight files the headers: name, record, bytes."""
    for name, record in facts["files"].items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or not path.name:
            raise damaged(layout.file, f"it names a file outside of its folder, {name!r}")
        try:
            data = decompress(_part(layout, f"files/{name}"), record["size"])
        except (CheckpointError, *MALFORMED) as error:
            raise damaged(layout.file, name, error) from error
        if sha256(data) != record["sha256"]:
            raise damaged(layout.file, f"{name} does not match its hash")
        yield name, record, data


def _entries(layout: Layout, name: str, record: Mapping[str, Any], head: np.ndarray) -> dict[str, Entry]:
    """Read a restored weight file's header, which must list the tensors that are packed."""
    try:
        entries, _ = parse_head(head.tobytes())
    except MALFORMED as error:
        raise damaged(layout.file, f"{name} has no header", error) from error
    if entries.keys() != record["tensors"].keys():
        raise damaged(layout.file, f"{name} lists other tensors than are packed")
    return entries


def _tensors(
    layout: Layout, facts: Mapping[str, Any], weights: Mapping[str, Mapping[str, Entry]]
) -> Iterator[tuple[str, int, np.ndarray]]:
    """Restore the tensors: name of the file, place in it, bytes. What is made from the table comes after it."""
    records = {(name, tensor): record for name in weights for tensor, record in facts["files"][name]["tensors"].items()}
    tables: dict[tuple[str, str], np.ndarray] = {
        tuple(record["of"]): np.empty(0, np.uint8) for record in records.values() if "copy" in record
    }
    for place, record in sorted(records.items(), key=lambda item: "copy" in item[1]):
        name, tensor = place
        entry = weights[name][tensor]
        if place in tables:
            tables[place] = np.empty(entry.num_bytes, np.uint8)
        digest, done = hashlib.sha256(), 0
        try:
            for data in _pieces(layout, record, place, entry, tables):
                if len(data) > entry.num_bytes - done:
                    raise CheckpointError("is longer than its file says")
                if place in tables:
                    tables[place][done : done + len(data)] = data
                digest.update(data.data)
                yield name, entry.begin + done, data
                done += len(data)
        except (CheckpointError, *MALFORMED) as error:
            raise damaged(layout.file, tensor, error) from error
        if done != entry.num_bytes or digest.hexdigest() != record["sha256"]:
            raise damaged(layout.file, f"{tensor} does not match its hash")


def _pieces(
    layout: Layout,
    record: Mapping[str, Any],
    place: tuple[str, str],
    entry: Entry,
    tables: Mapping[tuple[str, ...], np.ndarray],
) -> Iterator[np.ndarray]:
    """Decode one tensor, in the pieces in which it was coded."""
    pieces = record.get("pieces", [record])
    slices = entry.pieces(record["bytes"] if "pieces" in record else entry.num_bytes)
    done = 0
    for index, (piece, rows) in enumerate(zip(pieces, slices, strict=True)):
        parts = {part: _part(layout, part_name(*place, part, index, len(pieces))) for part in _PARTS}
        shape = (rows.stop - rows.start, *entry.shape[1:]) if entry.shape else ()
        if "copy" not in piece:
            data = decode(piece, parts, dtype=entry.dtype, shape=shape)
        else:
            alive = decompress_mask(piece["mask"], piece["mask_bytes"], parts["mask"], int(np.prod(shape)))
            table = tables[tuple(piece["of"])]
            span = slice(done, done + entry.num_bytes * (rows.stop - rows.start) // max(1, entry.shape[0]))
            data = make_copy(table[span], alive, Copy(**piece["copy"]), dtype=entry.dtype)
        done += len(data)
        yield data


def _part(layout: Layout, name: str) -> bytes:
    """Read one part; one that is not there is empty."""
    return layout.read(name).tobytes() if name in layout.entries else b""
