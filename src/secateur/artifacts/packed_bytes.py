"""Few bytes for whole numbers and for masks, and back: byte planes, bits or gaps, and zstd.

A weight's low mantissa bits are noise that nothing compresses; its sign and exponent are worth about 3 bits. So values
are stored plane by plane (all first bytes, all second bytes, ...), turned left by one bit first, which brings the
exponent of fp32 and bf16 into one byte. zstd then codes each plane by its own frequencies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import zstandard

from secateur.errors import CheckpointError

CHUNK = 1 << 18  # elements worked on at a time: what is computed of them fits in the cache
LONG_GAP = 255  # a byte of gaps: 255 left out, and none kept yet

# zstd without a search worth the name: noise holds no repeats, and chance ones cost more than they save (at level 3 the
# exponents of random fp32 weights take 22 % more; 4 million of them, zstd 1.5.7).
_PLAIN = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST, min_match=7, window_log=20, hash_log=10, write_content_size=1
)


def compress(data: np.ndarray, level: int) -> bytes:
    """Compress bytes with zstd, once as noise and once with a search for repeats, and give the shorter.

    Args:
        data: uint8 (n,), contiguous.
        level: of the search, 1 to 22.

    Returns:
        One frame that tells its content's size; nothing for nothing.
    """
    if not data.size:
        return b""
    searched = zstandard.ZstdCompressor(level=level).compress(data.data)
    plain = zstandard.ZstdCompressor(compression_params=_PLAIN).compress(data.data)
    return min(plain, searched, key=len)


def decompress(frame: bytes, size: int) -> np.ndarray:
    """Decompress one frame.

    Args:
        frame: from `compress`.
        size: bytes that it must hold; looked up in the frame before anything is allocated.

    Returns:
        uint8 (size,), read-only.

    Raises:
        CheckpointError: the frame is damaged, or holds another number of bytes.

    >>> decompress(compress(np.zeros(5, np.uint8), 3), 5).tolist()
    [0, 0, 0, 0, 0]
    """
    if not frame and not size:
        return np.empty(0, np.uint8)
    try:
        if zstandard.frame_content_size(frame) != size:
            raise CheckpointError(f"holds other than the {size} bytes that it should")
        return np.frombuffer(zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False), np.uint8)
    except (zstandard.ZstdError, MemoryError) as error:
        raise CheckpointError(f"cannot be decompressed ({error})") from error


def compress_numbers(numbers: np.ndarray, level: int) -> tuple[list[int], bytes]:
    """Compress whole numbers plane by plane.

    Args:
        numbers: uint8, uint16 or uint32 (n,).
        level: see `compress`.

    Returns:
        The length of each plane's frame, lowest byte first, and the frames joined.
    """
    lengths, joined = [], bytearray()
    for index in range(numbers.itemsize):  # one plane at a time: together they are as large as the numbers
        frame = compress(_plane(numbers, index), level)
        lengths.append(len(frame))
        joined += frame
    return lengths, bytes(joined)


def decompress_numbers(lengths: Sequence[int], joined: bytes, count: int) -> np.ndarray:
    """Undo `compress_numbers`.

    Args:
        lengths: of the frames, one for each byte of a number.
        joined: the frames.
        count: numbers.

    Returns:
        uint8, uint16 or uint32 (count,), writable.

    Raises:
        CheckpointError: a frame is damaged.

    >>> lengths, joined = compress_numbers(np.array([1, 0x8000], np.uint16), 3)
    >>> decompress_numbers(lengths, joined, 2).tolist()
    [1, 32768]
    """
    size, start = len(lengths), 0
    numbers = np.empty(count, f"<u{size}")
    planes = numbers.view(np.uint8).reshape(count, size)
    for index, length in enumerate(lengths):
        planes[:, index] = decompress(joined[start : start + length], count)
        start += length
    for part in chunks(count if size > 1 else 0):
        turned = numbers[part]
        numbers[part] = (turned >> 1) | (turned << (8 * size - 1))
    return numbers


def compress_mask(alive: np.ndarray, level: int) -> tuple[str, int, bytes]:
    """Compress a mask: as bits or as the gaps between what is kept, whichever is shorter.

    Args:
        alive: bool (n,), True = keep.
        level: see `compress`.

    Returns:
        "bits" or "gaps", its bytes before they were compressed, and the frame.

    >>> compress_mask(np.arange(100_000) == 50_000, 3)[:2]
    ('gaps', 197)
    """
    bits = np.packbits(alive)
    choices = [("bits", len(bits), compress(bits, level))]
    if 4 * int(np.count_nonzero(alive)) <= len(alive):  # a denser mask has more gaps than half of its bytes of bits
        gaps = _gaps(alive)
        choices.append(("gaps", len(gaps), compress(gaps, level)))
    return min(choices, key=lambda choice: len(choice[2]))


def decompress_mask(form: str, size: int, frame: bytes, count: int) -> np.ndarray:
    """Undo `compress_mask`.

    Args:
        form: "bits" or "gaps".
        size: bytes of the decompressed form.
        frame: the compressed form.
        count: elements.

    Returns:
        bool (count,), True = keep.

    Raises:
        CheckpointError: the frame is damaged, or the mask is longer than its tensor.

    >>> mask = np.arange(1000) % 300 == 0
    >>> bool((decompress_mask(*compress_mask(mask, 3), 1000) == mask).all())
    True
    """
    if form == "bits":
        return np.unpackbits(decompress(frame, -(-count // 8)), count=count).view(np.bool_)
    data = decompress(frame, size)
    alive = np.zeros(count, np.bool_)
    position = 0  # of the next element that no byte has told of yet
    for part in chunks(len(data)):
        ends = data[part] != LONG_GAP
        kept = (position + np.cumsum(data[part] + ends.astype(np.int64)))[ends] - 1
        position += int(data[part].sum(dtype=np.int64)) + int(np.count_nonzero(ends))
        if len(kept) and kept[-1] >= count:
            raise CheckpointError("is longer than its tensor")
        alive[kept] = True
    return alive


def chunks(count: int, width: int = 1) -> Iterator[slice]:
    """Cut `count` rows into slices of about CHUNK elements, so that what is computed of them stays small.

    Args:
        count: rows.
        width: elements of a row.

    Yields:
        Slices of the rows, in order.

    >>> list(chunks(3))
    [slice(0, 3, None)]
    """
    step = max(1, CHUNK // max(1, width))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def same_bytes(one: np.ndarray, other: np.ndarray) -> bool:
    """Compare two uint8 arrays, and use little memory for it."""
    return len(one) == len(other) and all(np.array_equal(one[part], other[part]) for part in chunks(len(one)))


def _plane(numbers: np.ndarray, index: int) -> np.ndarray:
    """Turn whole numbers left by one bit and take one byte of each, 0 the lowest: uint8 (n,)."""
    size = numbers.itemsize
    if size == 1:
        return numbers
    plane = np.empty(len(numbers), np.uint8)
    for part in chunks(len(numbers)):
        turned = (numbers[part] << 1) | (numbers[part] >> (8 * size - 1))
        plane[part] = turned.view(np.uint8)[index::size]
    return plane


def _gaps(alive: np.ndarray) -> np.ndarray:
    """Tell what is kept by how many are left out before each: uint8."""
    pieces, last = [np.empty(0, np.uint8)], -1
    for part in chunks(len(alive)):
        kept = np.flatnonzero(alive[part]) + part.start
        if not len(kept):
            continue
        gaps = np.diff(kept, prepend=last) - 1
        longs, rest = np.divmod(gaps, LONG_GAP)
        piece = np.full(len(gaps) + int(longs.sum()), LONG_GAP, np.uint8)
        piece[np.cumsum(longs + 1) - 1] = rest
        pieces.append(piece)
        last = int(kept[-1])
    return np.concatenate(pieces)
