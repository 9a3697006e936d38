"""Write a mask file piece by piece: byte for byte what `MaskSet.save` writes, without the masks in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from secateur.files import safetensors_head
from secateur.masks.mask import Mode, hash_masks, mask_facts, mask_metadata


class MaskWriter:
    """A mask file that is filled in any order; it is sound once the block ends well.

    Args:
        file: the file; it is replaced at once, so give one in a folder that is not in its final place yet.
        shapes: parameter name -> shape of its mask.
        modes: the same names -> "hold" or "view".
        owner: see `MaskSet`.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(
        self, file: Path, shapes: Mapping[str, tuple[int, ...]], modes: Mapping[str, Mode], *, owner: str
    ) -> None:
        self.file = file
        self.facts = mask_facts(shapes, modes, owner)
        self.sizes = {path: -(-math.prod(shape) // 8) for path, shape in sorted(shapes.items())}
        self.begins: dict[str, int] = {}
        begin = len(self._head("0" * 64))  # a hash of any value is as long
        for path, size in self.sizes.items():
            self.begins[path] = begin
            begin += size
        self.stream = file.open("w+b")
        self.stream.truncate(begin)

    def __enter__(self) -> MaskWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                digest = hash_masks(self.facts, _Written(self))
                self.stream.seek(0)
                self.stream.write(self._head(digest))
        finally:
            self.stream.close()

    def write(self, path: str, start: int, kept: np.ndarray) -> None:
        """Write a piece of one mask.

        Args:
            path: the parameter's name.
            start: flat index of the piece's first element, a multiple of 8.
            kept: bool (n,), True = keep; n is a multiple of 8 but in the last piece.
        """
        assert start % 8 == 0, "a piece begins inside of a byte"
        self.stream.seek(self.begins[path] + start // 8)
        self.stream.write(np.packbits(kept).data)

    def _head(self, digest: str) -> bytes:
        header: dict[str, object] = {"__metadata__": mask_metadata(self.facts | {"hash": digest})}
        begin = 0
        for path, size in self.sizes.items():
            header[path] = {"dtype": "U8", "shape": [size], "data_offsets": [begin, begin + size]}
            begin += size
        return safetensors_head(header)


class _Written(Mapping[str, np.ndarray]):
    """The masks that are in the file, read one after another."""

    def __init__(self, writer: MaskWriter) -> None:
        self.writer = writer

    def __getitem__(self, path: str) -> np.ndarray:
        self.writer.stream.seek(self.writer.begins[path])
        return np.frombuffer(self.writer.stream.read(self.writer.sizes[path]), np.uint8)

    def __iter__(self) -> Iterator[str]:
        return iter(self.writer.sizes)

    def __len__(self) -> int:
        return len(self.writer.sizes)
