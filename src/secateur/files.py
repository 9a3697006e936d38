"""Write files and folders so that a reader sees the old one or the new one, never a part; and hash them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from secateur.errors import CheckpointError

OnBytes = Callable[[str, int, int], None]  # is told what is being done, bytes done, and bytes in all (at most)
_UMASK = os.umask(0)  # read by setting it, so once and before any thread is there
os.umask(_UMASK)
PARTIAL = ".partial-"  # prefix of what is not finished; safe to delete when no run is at work


def silent(what: str, done: int, total: int) -> None:
    """Is an OnBytes that tells nobody."""


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk; folders cannot be synced everywhere, and need not be."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        if Path(path).is_dir():  # Windows opens no folder
            return
        raise
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path | str) -> None:
    """Flush every file under a folder to the disk, so that what is written after them means that they are there."""
    for file in sorted(Path(path).rglob("*")):
        _sync(file)


def unwritable(path: Path, error: OSError) -> CheckpointError:
    """Make the error for a place that cannot be written, to be raised."""
    reason = error.strerror or error
    return CheckpointError(f"{path}: cannot be written: {reason}. Free space or choose another folder.")


@contextmanager
def new_file(path: Path | str) -> Iterator[BinaryIO]:
    """Fill a file beside its final place and move it there when the block ends well; its folder is made first.

    Args:
        path: the final place; a file that stands there is replaced.

    Yields:
        The stream to write into. When the block raises, nothing of it is left and `path` is as it was.

    Raises:
        CheckpointError: the disk is full, or the place cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=PARTIAL, dir=path.parent)
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)
        os.replace(temporary, path)
        temporary = None
        _sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def write_bytes(path: Path | str, data: bytes) -> Path:
    """Replace a file in one step, making its folder first if there is none.

    Args:
        path: the file.
        data: its whole new content.

    Returns:
        The file's path.

    Raises:
        CheckpointError: the disk is full, or the place cannot be written; the old file is as it was.
    """
    with new_file(path) as stream:
        stream.write(data)
    return Path(path)


def check_writable(path: Path | str) -> None:
    """Refuse a file that cannot be written, before the work whose result it is to hold.

    Args:
        path: the file; its folder is made if there is none.

    Raises:
        CheckpointError: it is a folder, or nothing can be written beside it.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder. Give a file in it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(prefix=PARTIAL, dir=path.parent):
            pass
    except OSError as error:
        raise unwritable(path, error) from error


def check_new_folder(path: Path | str) -> None:
    """Refuse a folder in which something stands already, before work is put into what would go there.

    Args:
        path: the folder to be written.

    Raises:
        CheckpointError: it is a file, or not empty.
    """
    path = Path(path)
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists():
        kind = "is not empty" if path.is_dir() else "is a file"
        raise CheckpointError(f"{path}: {kind}; it is left alone. Choose another --out.")


def write_text(path: Path | str, text: str) -> Path:
    """Replace a text file in one step (UTF-8); see `write_bytes`."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: Path | str, value: Any) -> Path:
    """Replace a JSON file in one step, indented, keys in the order given; see `write_bytes`."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.

    Returns:
        The decoded value.

    Raises:
        CheckpointError: no such file, or it is not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}.") from error


@contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """Fill a folder beside its final place and move it there when the block ends well.

    Args:
        path: the final place. A folder that stands there is replaced, so ask before whether it is ours.

    Yields:
        The folder to write into. When the block raises, it is removed and `path` is as it was.

    Raises:
        CheckpointError: the disk is full, or the place cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{PARTIAL}{path.name}-", dir=path.parent))
        yield temporary
        os.chmod(temporary, 0o777 & ~_UMASK)
        for file in temporary.rglob("*"):
            # safetensors makes files that only their owner may read
            os.chmod(file, (0o777 if file.is_dir() else 0o666) & ~_UMASK)
        sync_folder(temporary)
        _put_in_place(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(temporary: Path, path: Path) -> None:
    """Rename a folder to its final name; what stood there goes, or comes back when that fails."""
    if not path.exists():
        os.replace(temporary, path)
        return
    old = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=path.parent))
    try:
        os.replace(path, old / path.name)
        try:
            os.replace(temporary, path)
        except OSError:
            os.replace(old / path.name, path)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def remove_partial(folder: Path | str) -> int:
    """Remove what killed writers left directly in a folder.

    Args:
        folder: any folder; a missing one holds nothing.

    Returns:
        How many files and folders were removed.
    """
    leftovers = list(Path(folder).glob(f"{PARTIAL}*")) if Path(folder).is_dir() else []
    for leftover in leftovers:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
    return len(leftovers)


def safetensors_head(header: Mapping[str, Any]) -> bytes:
    """Write the beginning of a safetensors file, as the library does: the tensors' bytes follow it.

    Args:
        header: tensor name -> dtype, shape and data_offsets, in the order of the bytes; `__metadata__` first, if any.

    Returns:
        The header's length in 8 bytes, and the header as JSON, padded with spaces to a multiple of 8.

    >>> safetensors_head({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}})[8:]
    b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}   '
    """
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def sha256_file(path: Path | str) -> str:
    """Hash one file's bytes: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def sha256_folder(path: Path | str, pattern: str = "*") -> str:
    """Hash a folder: every file's relative name and bytes, in the order of the names.

    Args:
        path: the folder.
        pattern: which files count, a glob on their relative names.

    Returns:
        64 hexadecimal digits.
    """
    path = Path(path)
    files = [item for item in path.rglob(pattern) if item.is_file()]
    return sha256_names({file.relative_to(path).as_posix(): sha256_file(file) for file in sorted(files)})


def sha256_names(hashes: Mapping[str, str]) -> str:
    """Join the hashes of a folder's files into the folder's own; see `sha256_folder`.

    Args:
        hashes: relative name -> hash, in the order of the paths.

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256("".join(f"{name}\0{value}\n" for name, value in hashes.items()).encode()).hexdigest()
