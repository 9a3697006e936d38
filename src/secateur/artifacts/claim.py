"""A folder that one measurement owns: it says in a file of its own what it is, and nothing else is written over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.errors import CheckpointError
from secateur.files import PARTIAL, read_json

_ELSEWHERE = "Choose another --out."
_HASHED = {  # key -> what it is the hash of, for readers who never wrote it
    "hash": "the model",
    "data_hash": "the rows that are measured",
    "calibration_hash": "the rows of calibration",
    "score_code": "your score's file",
}


def read_claim(folder: Path, file: str, *, format: str, what: str) -> dict[str, Any] | None:
    """Read what a folder says that it holds.

    Args:
        folder: of a measurement; it need not exist.
        file: the name of the file that says so.
        format: what its key `format` must be.
        what: the measurement's kind in words, for the messages: "sweep".

    Returns:
        The file's content; None for a folder that is new, empty, or left by a kill before its first file.

    Raises:
        CheckpointError: something else stands there; it is left alone.
    """
    if not (folder / file).exists():
        items = [folder] if folder.is_file() else folder.iterdir() if folder.is_dir() else ()
        if any(item.name != ".lock" and not item.name.startswith(PARTIAL) for item in items):
            raise CheckpointError(f"{folder}: exists and holds no {what}; it is left alone. {_ELSEWHERE}")
        return None
    there = read_json(folder / file)
    if not isinstance(there, dict) or there.get("format") != format:
        raise CheckpointError(f"{folder / file}: is not a {what} of Secateur; it is left alone. {_ELSEWHERE}")
    return there


def refuse_differing(folder: Path, differing: Sequence[str], *, what: str) -> None:
    """Refuse to go on with a measurement of something else.

    Args:
        folder: of the measurement.
        differing: what is not as it was; when it is empty nothing happens.
        what: the measurement's kind in words.

    Raises:
        CheckpointError: the message names all that differs.
    """
    if differing:
        told = " and another ".join(differing)
        hashed = "".join(f" {key} is of {_HASHED[key]}." for key in differing if key in _HASHED)
        raise CheckpointError(f"{folder}: holds a {what} with another {told}.{hashed} {_ELSEWHERE}")


def differing_keys(there: Mapping[str, Any], about: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """List the keys whose values differ.

    >>> differing_keys({"split": "test", "rows": 3}, {"split": "validation", "rows": 3}, ["split", "rows"])
    ['split']
    """
    return [key for key in keys if there.get(key) != about.get(key)]


__all__ = ["differing_keys", "read_claim", "refuse_differing"]
