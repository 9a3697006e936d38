"""The folder of a bench: what is done stands in files of its own, so that a bench that was stopped goes on.

`cells/batch-B-threads-T.json` holds the rows of one setting, `quality/N-ENGINE.json` the figures of one artefact,
`exports/N-ENGINE` the artefact itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secateur.artifacts.claim import differing_keys, read_claim
from secateur.artifacts.lock import lock_folder
from secateur.bench_entries import Entry
from secateur.errors import CheckpointError
from secateur.files import read_json, remove_partial, write_json

BENCH = "bench.json"
FORMAT = "secateur-bench"
VERSION = 2
_PARTS = ("cells", "quality", "exports")

# What must be equal for two benches to be one. Batches, threads, the baseline, quality and memory may be asked anew.
_SAME = (
    "models", "hashes", "engines", "inputs", "data_hash", "num_texts", "source_tokens", "new_tokens", "exactly",
    "repeats", "metrics", "evaluation",
)  # fmt: skip
# Milliseconds of two machines, or of two versions of an engine, do not stand in one table.
_SAME_MACHINE = ("processor", "cores", "torch", "transformers")
_SAME_ENGINES = ("ctranslate2", "onnxruntime")


@contextmanager
def held_folder(folder: Path, about: Mapping[str, Any]) -> Iterator[None]:
    """Hold a folder for one bench; a new one is made, and says from then on which bench it is.

    Args:
        folder: new, empty, or this bench's.
        about: what bench.json says beside rows and skipped engines.

    Yields:
        Nothing.

    Raises:
        CheckpointError: something else stands there, a bench of other models, settings or another machine, or one that
            is at work.
    """
    _check(folder, about)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written: {error.strerror or error}. Choose another --out."
        ) from error
    with lock_folder(folder):
        _check(folder, about)  # another bench may have been at work until now
        for place in (folder, *(folder / name for name in _PARTS)):
            remove_partial(place)
        if not _has_figures(folder):
            write_json(folder / BENCH, {**about, "rows": [], "skipped": []})
        yield


def _check(folder: Path, about: Mapping[str, Any]) -> None:
    there = read_claim(folder, BENCH, format=FORMAT, what="bench")
    if there is None:
        return
    if there.get("version") != VERSION:
        told = f"has version {there.get('version')}; this Secateur goes on with {VERSION}"
        raise CheckpointError(f"{folder / BENCH}: {told}. Choose another --out.")
    differing = _differing(there, about)
    if differing and _has_figures(folder):
        raise CheckpointError(f"{folder}: holds a bench with other {', '.join(differing)}. Choose another --out.")


def _has_figures(folder: Path) -> bool:
    return any(folder.glob("quality/*.json")) or any(read_json(file)["rows"] for file in folder.glob("cells/*.json"))


def _differing(there: Mapping[str, Any], about: Mapping[str, Any]) -> list[str]:
    mine, theirs = about["environment"], there.get("environment") or {}
    return [
        *differing_keys(there, about, _SAME),
        *differing_keys(theirs, mine, _SAME_MACHINE),
        # An engine that was missing may have been installed since: its rows are measured together with the others anew.
        *(key for key in _SAME_ENGINES if None not in (theirs.get(key), mine.get(key)) and theirs[key] != mine[key]),
    ]


def cell_file(folder: Path, batch: int, threads: int) -> Path:
    """Name the file of one setting.

    >>> cell_file(Path("bench"), 8, 1).as_posix()
    'bench/cells/batch-8-threads-1.json'
    """
    return folder / "cells" / f"batch-{batch}-threads-{threads}.json"


def read_cell(
    folder: Path, batch: int, threads: int, entries: Sequence[Entry], mended: Collection[str] = ()
) -> dict[str, Any] | None:
    """Read what was measured in one setting.

    Args:
        folder: the bench's.
        batch: texts at once.
        threads: CPU threads.
        entries: all that a cell must hold: engines that did not take turns with the others are not compared with them.
        mended: names of entries that could not be opened when the cell was measured, and can be now.

    Returns:
        `rows`, and `skipped` with what could not be opened; None when it is still to be measured.

    Raises:
        CheckpointError: the file is damaged.
    """
    file = cell_file(folder, batch, threads)
    if not file.exists():
        return None
    cell = read_json(file)
    left_out = {item["name"] for item in cell["skipped"]} - {*mended}
    wanted = [(entry.name, entry.artefact.hash) for entry in entries if entry.name not in left_out]
    found = [(row["name"], row["hash"]) for row in cell["rows"]]
    return cell if found and found == wanted else None


def quality_file(folder: Path, entry: Entry) -> Path:
    """Name the file of one artefact's figures."""
    return folder / "quality" / f"{entry.name}.json"


def read_quality(folder: Path, entry: Entry) -> dict[str, Any] | None:
    """Read the figures of one artefact, which its hash names; None when they are still to be measured."""
    file = quality_file(folder, entry)
    if not file.exists():
        return None
    found = read_json(file)
    return found["metrics"] if found["hash"] == entry.artefact.hash else None


__all__ = ["BENCH", "FORMAT", "VERSION", "cell_file", "held_folder", "quality_file", "read_cell", "read_quality"]
