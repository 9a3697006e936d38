"""The container of a packed folder: one safetensors file of byte strings, whose header tells what they are.

Safetensors has no checksum of its own. The header carries a hash of everything that it tells, and every tensor and file
a hash of what must come out, so that a damaged file is refused and never restored.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from secateur.errors import CheckpointError
from secateur.files import PARTIAL, new_file, safetensors_head, unwritable

FORMAT = "secateur-packed"
VERSION = 1
_KEY = "secateur"


@dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors file: its type and shape, and where in the file its bytes are, [begin, end)."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor."""
        return self.end - self.begin

    def pieces(self, num_bytes: int) -> list[slice]:
        """Cut a tensor that is larger than so many bytes into pieces of whole rows.

        >>> Entry("F32", (5, 2), 0, 40).pieces(16)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
        """
        rows = self.shape[0] if self.shape else 1
        step = max(1, rows if self.num_bytes <= num_bytes else num_bytes * rows // self.num_bytes)
        return [slice(start, min(start + step, rows)) for start in range(0, max(rows, 1), step)]


@dataclass(frozen=True)
class Layout:
    """What a safetensors file says about itself.

    Attributes:
        file: where it is.
        head: all bytes before the first tensor's.
        entries: tensor name -> entry, in the order of the bytes.
        metadata: what `__metadata__` holds.
    """

    file: Path
    head: bytes
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Read a tensor's bytes, or those of some of its rows.

        Args:
            name: of the tensor.
            rows: a slice of its first dimension; all by default.

        Returns:
            uint8, writable.

        Raises:
            CheckpointError: the file changed, or cannot be read.
        """
        entry = self.entries[name]
        if rows is None:
            return self._read(entry.begin, entry.end)
        row = entry.num_bytes // max(1, entry.shape[0] if entry.shape else 1)
        return self._read(entry.begin + rows.start * row, entry.begin + rows.stop * row)

    def blocks(self, name: str, num_bytes: int) -> Iterator[np.ndarray]:
        """Read a tensor's bytes piece by piece. They are read, not mapped: mapped ones would count as our memory.

        Args:
            name: of the tensor.
            num_bytes: of a piece; the last one may be shorter.

        Yields:
            uint8, writable.

        Raises:
            CheckpointError: the file changed, or cannot be read.
        """
        entry = self.entries[name]
        for begin in range(entry.begin, entry.end, num_bytes):
            yield self._read(begin, min(begin + num_bytes, entry.end))

    def _read(self, begin: int, end: int) -> np.ndarray:
        try:
            data = np.fromfile(self.file, np.uint8, end - begin, offset=begin)
        except OSError as error:
            raise CheckpointError(f"{self.file}: cannot be read: {error.strerror or error}.") from error
        if len(data) != end - begin:
            raise CheckpointError(f"{self.file}: became shorter while it was read. Save or copy it again.")
        return data


def parse_head(head: bytes) -> tuple[dict[str, Entry], dict[str, str]]:
    """Read a safetensors header that is known to be sound.

    Args:
        head: its length in 8 bytes, and the header.

    Returns:
        Entries in the order of their bytes, and the metadata.

    Raises:
        ValueError: it is no such header.
        KeyError: an entry lacks something.
        TypeError: it is JSON, and of another form.
    """
    raw = json.loads(head[8:])
    metadata = raw.pop("__metadata__", None) or {}
    entries = {
        name: Entry(item["dtype"], tuple(item["shape"]), *(len(head) + offset for offset in item["data_offsets"]))
        for name, item in raw.items()
    }
    return dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end))), metadata


def read_layout(file: Path) -> Layout:
    """Read and check the header of a safetensors file; its tensors are not read.

    Args:
        file: the file.

    Returns:
        What it says.

    Raises:
        CheckpointError: there is no such file, or it is damaged, cut short, or something else.
    """
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file.")
    try:
        with safe_open(file, framework="np"):  # checks every offset, and the file's length
            pass
        with file.open("rb") as stream:
            length = stream.read(8)
            head = length + stream.read(int.from_bytes(length, "little"))
        return Layout(file, head, *parse_head(head))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{file}: damaged, cut short, or not a safetensors file ({error}). Copy it or write it again."
        ) from error


class PackedWriter:
    """A packed file that is written part by part, none of which stays in memory.

    The parts wait in a file without a name, beside the packed one, until the header is known that goes before them; so
    the disk needs room for both.

    Args:
        file: the packed file; it is replaced in one step by `finish`.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.entries: dict[str, dict[str, Any]] = {}
        self.offset = 0

    def __enter__(self) -> PackedWriter:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.stream = tempfile.TemporaryFile(prefix=PARTIAL, dir=self.file.parent)
        except OSError as error:
            raise unwritable(self.file, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # on a full disk what waits to be written cannot be
            self.stream.close()

    def add(self, name: str, part: bytes) -> None:
        """Write one part.

        Args:
            name: of the part.
            part: its bytes.

        Raises:
            CheckpointError: it cannot be written.
        """
        try:
            self.stream.write(part)
        except OSError as error:
            raise unwritable(self.file, error) from error
        end = self.offset + len(part)
        self.entries[name] = {"dtype": "U8", "shape": [len(part)], "data_offsets": [self.offset, end]}
        self.offset = end

    def finish(self, facts: Mapping[str, Any]) -> Path:
        """Write the packed file.

        Args:
            facts: JSON-ready; the format, the version and a hash are added.

        Returns:
            The file's path.

        Raises:
            CheckpointError: it cannot be written.
        """
        facts = {"format": FORMAT, "version": VERSION, **facts}
        header = {"__metadata__": {_KEY: json.dumps(facts | {"hash": _hash(facts)})}, **self.entries}
        with new_file(self.file) as stream:
            stream.write(safetensors_head(header))
            self.stream.seek(0)
            shutil.copyfileobj(self.stream, stream, 1 << 22)
        return self.file


def write_packed(file: Path, parts: Mapping[str, bytes], facts: Mapping[str, Any]) -> Path:
    """Write a packed file in one step; see `PackedWriter`.

    Args:
        file: the file; it is replaced.
        parts: name -> bytes.
        facts: JSON-ready; the format, the version and a hash are added.

    Returns:
        The file's path.

    Raises:
        CheckpointError: it cannot be written.
    """
    with PackedWriter(file) as writer:
        for name, part in parts.items():
            writer.add(name, part)
        return writer.finish(facts)


def read_packed(file: Path) -> tuple[Layout, dict[str, Any]]:
    """Read and check the header of a packed file.

    Args:
        file: the file.

    Returns:
        Its layout and its facts; nothing is decompressed.

    Raises:
        CheckpointError: it is missing, damaged, cut short, not one of ours, or of a later version.
    """
    layout = read_layout(file)
    facts = _facts(layout)
    if facts is None:
        raise CheckpointError(f"{file}: not a packed file of ours. Give one that `secateur pack` wrote.")
    if facts.get("version") != VERSION:
        raise CheckpointError(
            f"{file}: packed in format {facts.get('version')}, this version reads {VERSION}. Update secateur."
        )
    if _hash({key: value for key, value in facts.items() if key != "hash"}) != facts.get("hash"):
        raise damaged(file, "its header does not match its hash")
    return layout, facts


def damaged(file: Path, what: str, reason: object = "") -> CheckpointError:
    """Make the error for a packed file that is not what was written.

    Args:
        file: the packed file.
        what: the part of it, or what is wrong.
        reason: what was found there.

    Returns:
        The error, to be raised.
    """
    return CheckpointError(f"{file}: damaged: {what}{f' ({reason})' if reason else ''}. Copy it or pack it again.")


def sha256(data: np.ndarray) -> str:
    """Hash bytes: 64 hexadecimal digits."""
    return hashlib.sha256(data.data).hexdigest()


def is_packed(file: Path | str) -> bool:
    """Say whether a file is a packed one of ours, from its header; a missing or damaged one is not.

    Args:
        file: any path.

    Returns:
        True or False; nothing is raised.
    """
    try:
        return _facts(read_layout(Path(file))) is not None
    except CheckpointError:
        return False


def _facts(layout: Layout) -> dict[str, Any] | None:
    """Read our facts off a header, if it has any."""
    try:
        facts = json.loads(layout.metadata.get(_KEY, "null"))
    except (ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) and facts.get("format") == FORMAT else None


def _hash(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
