"""Pack a model folder into one small file: zeros become bytes saved. `unpack_file` restores the folder.

The file is the whole artefact: weights, configuration, tokenizer and whatever else the folder holds. Every tensor is
decoded again while it is packed, and the hash of what comes out stands in the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from secateur.artifacts.packed_bytes import compress, compress_mask, same_bytes
from secateur.artifacts.packed_copies import TABLES, Copy, alive_of, find_copy, make_copy
from secateur.artifacts.packed_facts import PackResult, Rounding, read_packed_facts
from secateur.artifacts.packed_file import Layout, is_packed, read_layout, sha256, write_packed
from secateur.artifacts.packed_values import KINDS, Coded, Values, decode, encode, measure_rounding, stored_kind
from secateur.artifacts.unpack import UnpackResult, unpack_file
from secateur.errors import CheckpointError
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
_FILE_LEVEL = 19  # of the other files: text, small
_OTHER_WEIGHTS = (".bin", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth", ".ckpt", ".npz", ".gguf")


def pack_folder(folder: Path | str, file: Path | str, *, values: Values = "fp32", level: int = LEVEL) -> PackResult:
    """Pack a plain Hugging Face folder into one file.

    A tensor is stored as its non-zeros and a mask, where that is shorter. A head that is the embedding table times a
    mask (`tie: view`) is stored as its mask alone.

    Args:
        folder: with config.json and model.safetensors, in one piece or in shards. It is only read; folders in it whose
            names begin with a dot are left out.
        file: the packed file; a packed one that stands there is replaced.
        values: what floats are stored as. fp32 keeps every tensor as it is; fp16, bf16 and int8 (one scale per row of a
            matrix; vectors and position biases stay) round what is wider.
        level: of zstd, 1 to 22.

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
    parts: dict[str, bytes] = {}
    records: dict[str, dict[str, Any]] = {}
    for name in names:
        # Of a weight file the header, byte for byte: it has the order of the tensors and the metadata.
        data = np.frombuffer(layouts[name].head if name in layouts else _read_file(folder / name), np.uint8)
        parts[f"files/{name}"] = compress(data, _FILE_LEVEL)
        records[name] = {"size": len(data), "sha256": sha256(data)} | ({"tensors": {}} if name in layouts else {})
    for name, tensor, coded in _pack_tensors(layouts, values, level):
        records[name]["tensors"][tensor] = coded.facts
        parts.update({f"tensors/{name}/{tensor}/{part}": data for part, data in coded.parts.items()})
    write_packed(file, parts, {"values": values, "files": records})
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


def _pack_tensors(layouts: Mapping[str, Layout], values: Values, level: int) -> Iterator[tuple[str, str, Coded]]:
    """Code every tensor, the embedding table first: its copies are checked against what is restored of it."""
    places = [(name, tensor) for name, layout in layouts.items() for tensor in layout.entries]
    table = next((place for place in places if place[1] in TABLES), None)
    restored_table = np.empty(0, np.uint8)
    for place in sorted(places, key=lambda place: place != table):
        name, tensor = place
        layout, where = layouts[name], f"{layouts[name].file}: {tensor}"
        entry = layout.entries[tensor]
        kind = stored_kind(tensor, entry.dtype, entry.shape, values)
        copy = None if table is None or place == table else _find_copy(layouts, table, place)
        data = layout.read(tensor)
        if copy is not None and table is not None:
            coded, alive = _encode_copy(data, entry.dtype, copy, table, level)
            restored = make_copy(restored_table, alive, copy, dtype=entry.dtype)
        else:
            coded = encode(data, entry.dtype, entry.shape, kind=kind, level=level, where=where)
            restored = decode(coded.facts, coded.parts, dtype=entry.dtype, shape=entry.shape)
        coded.facts["sha256"] = sha256(restored)
        if not same_bytes(data, restored):
            assert values != "fp32", f"{where} does not come back"
            coded.facts["rounding"] = measure_rounding(data, restored, entry.dtype)
        if place == table:
            restored_table = restored
        yield name, tensor, coded


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
