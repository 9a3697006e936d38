"""Pack a model folder into one small file: zeros become bytes saved. `unpack_file` restores the folder.

The file is the whole artefact: weights, configuration, tokenizer and whatever else the folder holds. Every tensor is
decoded again while it is packed, and the hash of what comes out stands in the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from secateur.artifacts.packed_bytes import compress, compress_mask, same_bytes
from secateur.artifacts.packed_copies import TABLES, Copy, alive_of, find_copy, make_copy
from secateur.artifacts.packed_facts import PackResult, Rounding, part_name, read_packed_facts
from secateur.artifacts.packed_file import Layout, PackedWriter, is_packed, read_layout, sha256
from secateur.artifacts.packed_values import KINDS, Coded, Values, decode, encode, measure_rounding, stored_kind
from secateur.artifacts.unpack import UnpackResult, unpack_file
from secateur.errors import CheckpointError
from secateur.files import OnBytes, silent
from secateur.registry import choose

__all__ = [
    "PackResult",
    "Rounding",
    "UnpackResult",
    "Values",
    "is_packed",
    "pack_folder",
    "read_packed_facts",
    "unpack_file",
]

LEVEL = 3  # of zstd's search for repeats; weights hardly have any, so more costs time and saves next to nothing
PIECE = 1 << 27  # bytes of a tensor that are coded at once: a larger one is coded in pieces of whole rows
_FILE_LEVEL = 19  # of the other files: text, small
_OTHER_WEIGHTS = (".bin", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth", ".ckpt", ".npz", ".gguf")


def pack_folder(
    folder: Path | str,
    file: Path | str,
    *,
    values: Values = "fp32",
    level: int = LEVEL,
    on_bytes: OnBytes = silent,
) -> PackResult:
    """Pack a plain Hugging Face folder into one file, tensor by tensor: the model is never in memory.

    A tensor is stored as its non-zeros and a mask, where that is shorter. A head that is the embedding table times a
    mask (`tie: view`) is stored as its mask alone.

    Args:
        folder: with config.json and model.safetensors, in one piece or in shards. It is only read; folders in it whose
            names begin with a dot are left out.
        file: the packed file; a packed one that stands there is replaced.
        values: what floats are stored as. fp32 keeps every tensor as it is; fp16, bf16 and int8 (one scale per row of a
            matrix; vectors and position biases stay) round what is wider.
        level: of zstd, 1 to 22.
        on_bytes: is told ("packing", bytes done, bytes in all).

    Returns:
        The file's figures.

    Raises:
        CheckpointError: this is no such folder, one of its files is damaged, weights cannot be rounded so, or the file
            cannot be written.
        SecateurError: there are no such values.
    """
    folder, file = Path(folder), Path(file)
    choose(KINDS, values, "values")
    if not 1 <= level <= 22:
        raise CheckpointError(f"level {level}: zstd has 1 (fast) to 22 (slow). {LEVEL} does for weights.")
    names = _list_files(folder)
    _check_target(folder, file)
    layouts = {name: read_layout(folder / name) for name in names if name.endswith(".safetensors")}
    records: dict[str, dict[str, Any]] = {}
    with PackedWriter(file) as writer:
        for name in names:
            # Of a weight file the header, byte for byte: it has the order of the tensors and the metadata.
            data = np.frombuffer(layouts[name].head if name in layouts else _read_file(folder / name), np.uint8)
            writer.add(f"files/{name}", compress(data, _FILE_LEVEL))
            records[name] = {"size": len(data), "sha256": sha256(data)} | ({"tensors": {}} if name in layouts else {})
        packer, done = _Packer(layouts, values, level, writer), 0
        total = sum(entry.num_bytes for layout in layouts.values() for entry in layout.entries.values())
        for name, tensor in packer.places():
            for num_bytes in packer.pack(name, tensor, records[name]["tensors"]):
                done += num_bytes
                on_bytes("packing", done, total)
        writer.finish({"values": values, "files": records})
    return read_packed_facts(file)


def _list_files(folder: Path) -> list[str]:
    """List a model folder's files by their names in it, or say why it is none."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}. Give a model folder.")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: holds no config.json. Give a folder that save_pretrained wrote.")
    paths = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts[:-1])]
    if not any(name.endswith(".safetensors") for name in names):
        raise CheckpointError(f"{folder}: holds no .safetensors file. Save the model with save_pretrained first.")
    for name in names:
        if name.endswith(_OTHER_WEIGHTS):
            raise CheckpointError(
                f"{folder / name}: weights in another format, which would go into the file whole. Remove it, or move "
                "it away; the .safetensors files are packed."
            )
        if not name.isprintable():
            raise CheckpointError(f"{folder}: holds a file with an unprintable name, {name!r}. Rename it.")
    return names


def _check_target(folder: Path, file: Path) -> None:
    """Refuse a place where something else stands, or where the file would be packed next time."""
    if file.is_dir():
        raise CheckpointError(f"{file}: is a folder. Give the name of a file.")
    if file.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"{file}: lies in the folder that is packed. Give a place beside it.")
    if file.exists() and not is_packed(file):
        raise CheckpointError(f"{file}: exists and is no packed file of ours. Give another name, or remove it.")


def _read_file(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}.") from error


class _Packer:
    """Codes tensors, piece by piece where they are large, and keeps of them what its copies are checked against."""

    def __init__(self, layouts: Mapping[str, Layout], values: Values, level: int, writer: PackedWriter) -> None:
        self.layouts, self.level, self.writer = layouts, level, writer
        self.values: Values = values
        all_places = [(name, tensor) for name, layout in layouts.items() for tensor in layout.entries]
        self.table = next((place for place in all_places if place[1] in TABLES), None)
        self.restored_table = np.empty(0, np.uint8)
        self._places = all_places

    def places(self) -> list[tuple[str, str]]:
        """List the tensors, file and name; the embedding table first, from which others are made."""
        return sorted(self._places, key=lambda place: place != self.table)

    def pack(self, name: str, tensor: str, records: dict[str, Any]) -> Iterator[int]:
        """Code one tensor and write its parts.

        Args:
            name: of its file.
            tensor: its name.
            records: gets the tensor's facts.

        Yields:
            Bytes that were worked on.
        """
        layout, place = self.layouts[name], (name, tensor)
        entry, is_table = layout.entries[tensor], place == self.table
        copy = None if self.table is None or is_table else _find_copy(self.layouts, self.table, place)
        if is_table and self._twins():
            self.restored_table = np.empty(entry.num_bytes, np.uint8)
        digest, found, rounding, done = hashlib.sha256(), [], None, 0
        pieces = entry.pieces(PIECE)
        for index, rows in enumerate(pieces):
            data = layout.read(tensor, rows)
            span = slice(done, done + len(data))
            coded, restored = self._code(data, rows, layout, tensor, copy, span)
            if not same_bytes(data, restored):
                assert self.values != "fp32", f"{layout.file}: {tensor} does not come back"
                rounding = _larger(rounding, measure_rounding(data, restored, entry.dtype))
            digest.update(restored.data)
            if is_table and len(self.restored_table):
                self.restored_table[span] = restored
            for part, bytes_ in coded.parts.items():
                self.writer.add(part_name(name, tensor, part, index, len(pieces)), bytes_)
            found.append(coded.facts)
            done += len(data)
            yield len(data)
        records[tensor] = _join(found) | {"sha256": digest.hexdigest()} | ({"rounding": rounding} if rounding else {})

    def _twins(self) -> bool:
        """Whether any other tensor could be the table again."""
        entries = [self.layouts[name].entries[tensor] for name, tensor in self._places]
        assert self.table is not None
        table = self.layouts[self.table[0]].entries[self.table[1]]
        return sum((entry.dtype, entry.shape) == (table.dtype, table.shape) for entry in entries) > 1

    def _code(
        self, data: np.ndarray, rows: slice, layout: Layout, tensor: str, copy: Copy | None, span: slice
    ) -> tuple[Coded, np.ndarray]:
        """Code a piece, and give what is restored of it."""
        entry = layout.entries[tensor]
        if copy is not None and self.table is not None:
            coded, alive = _encode_copy(data, entry.dtype, copy, self.table, self.level)
            return coded, make_copy(self.restored_table[span], alive, copy, dtype=entry.dtype)
        shape = (rows.stop - rows.start, *entry.shape[1:]) if entry.shape else ()
        kind = stored_kind(tensor, entry.dtype, entry.shape, self.values)
        where = f"{layout.file}: {tensor}"
        coded = encode(data, entry.dtype, shape, kind=kind, level=self.level, where=where)
        return coded, decode(coded.facts, coded.parts, dtype=entry.dtype, shape=shape)


def _join(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Make the facts of a tensor of those of its pieces."""
    if len(found) == 1:
        return found[0]
    sums = {key: sum(facts[key] for facts in found) for key in ("stored", "nonzero")}
    return {"pieces": found, "bytes": PIECE, **sums} | {key: found[0][key] for key in ("copy", "of") if key in found[0]}


def _larger(one: tuple[float, float] | None, other: tuple[float, float]) -> tuple[float, float]:
    return other if one is None else (max(one[0], other[0]), max(one[1], other[1]))


def _find_copy(layouts: Mapping[str, Layout], table: tuple[str, str], place: tuple[str, str]) -> Copy | None:
    """Find out whether a tensor is the table again, if it could be."""
    source, copied = layouts[table[0]], layouts[place[0]]
    entry = copied.entries[place[1]]
    if (entry.dtype, entry.shape) != (source.entries[table[1]].dtype, source.entries[table[1]].shape):
        return None
    return find_copy(
        lambda rows: source.read(table[1], rows),
        lambda rows: copied.read(place[1], rows),
        dtype=entry.dtype,
        shape=entry.shape,
    )


def _encode_copy(
    data: np.ndarray, dtype: str, copy: Copy, table: tuple[str, str], level: int
) -> tuple[Coded, np.ndarray]:
    """Code a tensor that is made from the table: its mask, which is given too."""
    alive = alive_of(data, dtype)
    form, size, mask = compress_mask(alive, level)
    facts = {"copy": copy.as_json(), "of": list(table), "mask": form, "mask_bytes": size, "stored": 0, "nonzero": 0}
    return Coded(facts, {"mask": mask}), alive
