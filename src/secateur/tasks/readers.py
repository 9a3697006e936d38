"""Rows of data files: JSON lines, CSV, parquet; and plain words about what is wrong with them.

The standard library and pyarrow read them, not `datasets`: that copies each file into the user's cache, guesses the
columns' types, and tells of faults in pyarrow's words without a line number.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from secateur.errors import DataError
from secateur.registry import suggest

SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".parquet")
Row = tuple[str, Mapping[str, Any]]  # where it stands ("line 3"), column -> value


def _suffix(path: Path) -> str | None:
    return next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)


def read_split(folder: Path, split: str) -> list[Row]:
    """Read the file of a folder that is named after a split.

    Args:
        folder: an existing one.
        split: a plain name.

    Returns:
        The rows, each with its place.

    Raises:
        DataError: no such file, several, or one that cannot be read.
    """
    files = [file for suffix in SUFFIXES if (file := folder / f"{split}{suffix}").is_file()]
    if len(files) > 1:
        raise DataError(
            f"{folder}: split {split!r} is in {len(files)} files: {', '.join(f.name for f in files)}. Keep one."
        )
    if not files:
        there = sorted(file.name.removesuffix(_suffix(file) or "") for file in folder.iterdir() if _suffix(file))
        known = f"Splits there: {', '.join(there)}." if there else "No data files are there."
        raise DataError(f"{folder}: no file {split}{{{','.join(SUFFIXES)}}}. {suggest(split, there)}{known}")
    return _rows(files[0])


def read_file(path: Path, split: str) -> list[Row]:
    """Read a file that is given by itself.

    Args:
        path: an existing file.
        split: "train", or the file's name without its ending.

    Returns:
        The rows, each with its place.

    Raises:
        DataError: another split, a kind of file that is not known, or one that cannot be read.
    """
    suffix = _suffix(path)
    if suffix is None:
        raise DataError(f"{path}: cannot be read. Files end in {', '.join(SUFFIXES)}.")
    stem = path.name.removesuffix(suffix)
    # Any other name is refused: with `test` read from the file that `train` is, a model would be tested on what it saw.
    if split not in ("train", stem):
        choice = " or ".join(dict.fromkeys((repr("train"), repr(stem))))
        raise DataError(
            f"{path}: a single file has no split {split!r}: write {choice}, with slices such as train[:-100] and "
            "train[-100:] for several, or give the folder."
        )
    return _rows(path)


def _rows(path: Path) -> list[Row]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from error
    if path.name.endswith(".parquet"):
        return list(_parquet_rows(path, data))
    if path.name.endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: not a whole gzip file: {error}.") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8 text ({error.reason}). Convert the file to UTF-8.") from error
    return list(_csv_rows(path, text) if path.name.endswith(".csv") else _jsonl_rows(path, text))


def _jsonl_rows(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: JSON strings may hold U+2028
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not JSON: {error}. Each line must be one object.") from error
        if not isinstance(row, dict):
            raise DataError(
                f'{path}:{number}: must be an object such as {{"text": "..."}}, and is a {type(row).__name__}.'
            )
        yield f"line {number}", row


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    limit = csv.field_size_limit(sys.maxsize)  # one document may be longer than the standard 128 KiB
    try:
        names = reader.fieldnames or ()
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"{path}:1: several columns are called {repeated[0]!r}. Give each a name of its own.")
        for row in reader:
            if None in row:
                raise DataError(f"{path}:{reader.line_num}: more values than the header has columns. Quote the commas.")
            yield f"line {reader.line_num}", row
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV: {error}.") from error
    finally:
        csv.field_size_limit(limit)


def _parquet_rows(path: Path, data: bytes) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(pyarrow.BufferReader(data))
        for number, row in enumerate(table.to_pylist(), start=1):
            yield f"row {number}", row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a whole parquet file: {str(error).splitlines()[0]}") from error
