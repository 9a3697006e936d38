"""One run at a time in a folder; a killed run leaves no lock behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secateur.errors import CheckpointError

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no flock; there two runs in one folder are the user's affair
    fcntl = None


@contextmanager
def lock_folder(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder for this process; the system releases it when the process ends, however it ends.

    Args:
        folder: an existing folder.
        wait: whether to wait for another process that holds it, instead of refusing.

    Yields:
        Nothing.

    Raises:
        CheckpointError: another process holds it, or the folder cannot be written.
    """
    try:
        stream = (folder / ".lock").open("w")
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written: {error.strerror or error}. Choose another --out."
        ) from error
    with stream:
        if fcntl is not None:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError as error:
                raise CheckpointError(
                    f"{folder}: another run is at work there. Wait for it, or choose another --out."
                ) from error
        yield
