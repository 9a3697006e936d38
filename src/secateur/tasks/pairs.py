"""Rows of a task, sources and references, from files, from the hub, from a built-in set, or from rows in memory."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur.errors import DataError
from secateur.registry import suggest
from secateur.tasks.cmudict import load_cmudict
from secateur.tasks.readers import SUFFIXES, Row, read_file, read_split

Source = str | tuple[str, str]  # a text, or two that a classifier reads together
BUILTIN: dict[str, Callable[[str], Mapping[str, list[Any]]]] = {"cmudict": load_cmudict}

_MAX_FAULTS = 5  # faulty rows that one message names
_SLICE = re.compile(r"\s*([\w.-]+)\s*(\[[^\]]*\])?(?:\([\w]+\))?\s*")


@dataclass(frozen=True)
class Pairs:
    """Rows of a task.

    Args:
        sources: what the model reads, prefix applied: one text a row, or two in all rows.
        references: for each source, the texts that would be right, at least one each; in classification its one class.
        num_skipped: rows of the data that were left out, because a text of theirs was empty.
    """

    sources: tuple[Source, ...]
    references: tuple[tuple[str, ...], ...]
    num_skipped: int = field(default=0, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def has_two_texts(self) -> bool:
        """Whether a source is two texts; then all are."""
        return bool(self.sources) and not isinstance(self.sources[0], str)

    @property
    def texts(self) -> tuple[str, ...]:
        """The sources of a task that reads one text a row; seq2seq reads no others."""
        return single_texts(self.sources)

    def rows(self) -> list[tuple[Source, str]]:
        """List (source, target) for training, one row per reference.

        >>> Pairs(("a",), (("x", "y"),)).rows()
        [('a', 'x'), ('a', 'y')]
        """
        return [
            (source, target)
            for source, targets in zip(self.sources, self.references, strict=True)
            for target in targets
        ]

    @property
    def num_rows(self) -> int:
        """How many rows there are to train on."""
        return sum(map(len, self.references))

    def pick(self, numbers: Sequence[int]) -> Pairs:
        """Take rows to train on, each with its one target.

        Args:
            numbers: of `rows()`, counted from 0, in the order that is wanted.

        Returns:
            As many pairs.

        >>> Pairs(("a", "b"), (("x", "y"), ("z",))).pick([2, 1])
        Pairs(sources=('b', 'a'), references=(('z',), ('y',)))
        """
        rows = self.rows()
        return Pairs(tuple(rows[number][0] for number in numbers), tuple((rows[number][1],) for number in numbers))

    def head(self, count: int) -> Pairs:
        """Take the first rows."""
        return Pairs(self.sources[:count], self.references[:count])

    def fingerprint(self) -> str:
        """Hash the texts and their order: 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for source, targets in zip(self.sources, self.references, strict=True):
            digest.update(json.dumps([source, *targets]).encode())
            digest.update(b"\n")
        return digest.hexdigest()


def with_prefix(source: Source, prefix: str) -> Source:
    """Put a prefix before a source, of two texts before the first.

    >>> with_prefix("a", "x: "), with_prefix(("a", "b"), "x: ")
    ('x: a', ('x: a', 'b'))
    """
    return prefix + source if isinstance(source, str) else (prefix + source[0], source[1])


def without_prefix(source: Source, prefix: str) -> Source:
    """Take a prefix off a source that begins with it.

    >>> without_prefix(("x: a", "x: b"), "x: ")
    ('a', 'x: b')
    """
    return source.removeprefix(prefix) if isinstance(source, str) else (source[0].removeprefix(prefix), source[1])


def texts_of(source: Source) -> tuple[str, ...]:
    """List the texts of a source, one or two.

    >>> texts_of("ab"), texts_of(("a", "b"))
    (('ab',), ('a', 'b'))
    """
    return (source,) if isinstance(source, str) else source


def source_of(texts: Sequence[str]) -> Source:
    """Make a source of its texts, one or two: the inverse of `texts_of`.

    >>> source_of(["ab"]), source_of(["a", "b"])
    ('ab', ('a', 'b'))
    """
    return texts[0] if len(texts) == 1 else (texts[0], texts[1])


def columns_of(source: str | Sequence[str]) -> tuple[str, ...]:
    """List the columns that a task reads, one or two.

    >>> columns_of("text"), columns_of(["premise", "hypothesis"])
    (('text',), ('premise', 'hypothesis'))
    """
    return (source,) if isinstance(source, str) else tuple(source)


def single_texts(sources: Sequence[Source]) -> tuple[str, ...]:
    """Give sources as the texts that they are.

    Args:
        sources: one text each.

    Returns:
        The same.

    Raises:
        DataError: a source has two texts.

    >>> single_texts(("a", "b"))
    ('a', 'b')
    """
    texts = tuple(source for source in sources if isinstance(source, str))
    if len(texts) < len(sources):
        raise DataError("the rows have two texts each, which classification alone reads. Name one source column.")
    return texts


def spread(texts: Sequence[str], number: int) -> list[str]:
    """Choose texts evenly over the lengths, short ones first.

    Args:
        texts: any number.
        number: how many, at least 1.

    Returns:
        So many; all of them where there are fewer.

    >>> spread(["aaaa", "a", "aaa", "aa"], 2)
    ['aa', 'aaaa']
    """
    ordered = sorted(texts, key=len)
    count = min(number, len(ordered))
    return [ordered[(2 * index + 1) * len(ordered) // (2 * count)] for index in range(count)]


def load_pairs(
    data_path: str | Path,
    split: str,
    *,
    source: str | Sequence[str],
    target: str,
    prefix: str = "",
    name: str | None = None,
    labels: bool = False,
    skip_empty: bool = False,
) -> Pairs:
    """Read one split of a data set.

    Args:
        data_path: a folder with SPLIT.jsonl, .jsonl.gz, .csv or .parquet; one such file (it is the split `train`, or
            the split that it is named after); `cmudict`; or a hub id.
        split: a name, or slices of it in the grammar of `datasets`: "train[-5%:]", "test[:1000]", "a+b".
        source: the column that the model reads, or the two that it reads together.
        target: the column it must write; text, or a list of texts that are all right.
        prefix: put before every source, of two texts before the first.
        name: the hub's configuration, where a set has several.
        labels: the target is a class: one text or whole number a row.
        skip_empty: leave out rows in which a text is empty or missing, instead of refusing them.

    Returns:
        The rows, in the file's order.

    Raises:
        DataError: no such file, split or column; a row that is not text; no rows.
    """
    text = str(data_path)
    path = Path(text).expanduser()
    columns: dict[str, Any] = {"source": source, "target": target, "prefix": prefix, "labels": labels}
    columns["skip_empty"] = skip_empty
    if text in BUILTIN:
        return _from_columns(BUILTIN[text], split, where=text, **columns)
    if path.is_dir():
        read = functools.partial(read_split, path)
    elif path.is_file():
        read = functools.partial(read_file, path)
    elif _looks_local(text):
        raise DataError(f"{text}: no such file or folder. In a recipe a path counts from the recipe's folder.")
    else:
        return _from_hub(text, split, name=name, **columns)
    if name is not None:
        raise DataError(f"{text}: `name` chooses a configuration of a hub set, and this is on disk. Remove it.")
    rows = _slice(split, read, text)
    return _to_pairs(rows, where=f"{text} ({split})", **columns)


def pairs_from_rows(
    rows: Iterable[Mapping[str, Any]],
    *,
    source: str | Sequence[str],
    target: str,
    prefix: str = "",
    where: str = "rows",
    labels: bool = False,
    skip_empty: bool = False,
) -> Pairs:
    """Make pairs of rows in memory: a list of dicts, a `datasets.Dataset`, anything that gives mappings.

    Args:
        rows: one mapping a row.
        source: the key that the model reads, or the two that it reads together.
        target: the key it must write; text, or a list of texts.
        prefix: put before every source, of two texts before the first.
        where: what to call the rows in a message.
        labels: the target is a class: one text or whole number a row.
        skip_empty: leave out rows in which a text is empty or missing, instead of refusing them.

    Returns:
        The pairs, in the order of the rows.

    Raises:
        DataError: a key is missing, a value is not text, or there are no rows.

    >>> pairs_from_rows([{"word": "a", "phonemes": ["AH", "EY"]}], source="word", target="phonemes").references
    (('AH', 'EY'),)
    """
    numbered = [(f"row {number}", row) for number, row in enumerate(rows, start=1)]
    columns: dict[str, Any] = {"source": source, "target": target, "prefix": prefix, "labels": labels}
    return _to_pairs(numbered, where=where, skip_empty=skip_empty, **columns)


class _EmptyError(ValueError):
    """There is no text where one must be."""


def _to_pairs(
    rows: list[Row],
    *,
    source: str | Sequence[str],
    target: str,
    prefix: str,
    labels: bool,
    where: str,
    skip_empty: bool,
) -> Pairs:
    """Check every row, and name the faulty ones all at once."""
    if not rows:
        raise DataError(f"{where}: no rows. Choose another split or slice.")
    sources: list[Source] = []
    references: list[tuple[str, ...]] = []
    faults: list[str] = []
    read_target = _label if labels else _texts
    columns = columns_of(source)
    first = rows[0][1]
    if not isinstance(first, Mapping):
        raise DataError(f"{where}: a row must map column names to values; the first one is a {type(first).__name__}.")
    whole = (row for _, row in rows if isinstance(row, Mapping))
    known: Mapping[Any, Any] = {key: None for row in whole for key in row} if skip_empty else first
    check_columns(known, (*columns, target), where)
    num_empty = 0
    for place, row in rows:
        try:
            read, targets = source_of([_text(row, column) for column in columns]), read_target(row, target)
        except ValueError as error:
            num_empty += isinstance(error, _EmptyError)
            if not (skip_empty and isinstance(error, _EmptyError)):
                faults.append(f"{place}: {error}")
            continue
        sources.append(with_prefix(read, prefix))
        references.append(targets)
    if faults:
        more = f"\n... and {len(faults) - _MAX_FAULTS} more rows." if len(faults) > _MAX_FAULTS else ""
        advice = (
            f"\n`skip_empty: true` in task.data leaves out the {num_empty:,} empty."
            if num_empty and not skip_empty
            else ""
        )
        raise DataError(f"{where}:\n" + "\n".join(faults[:_MAX_FAULTS]) + more + advice)
    if not sources:
        raise DataError(f"{where}: all {num_empty:,} rows have an empty text. Choose another split or other columns.")
    return Pairs(tuple(sources), tuple(references), num_empty)


def check_columns(row: Mapping[Any, Any], wanted: Sequence[str], where: str, advice: str = "") -> None:
    """Refuse rows that lack a column.

    Args:
        row: the first one.
        wanted: the columns' names.
        where: what to call the rows.
        advice: what to do, a sentence after a space.

    Raises:
        DataError: columns are missing; all of them, with those that there are.
    """
    there = list(map(str, row))
    faults = [
        f"{where}: no column {column!r}. {suggest(column, there)}Columns there: {', '.join(there)}.{advice}"
        for column in wanted
        if column not in row
    ]
    if faults:
        raise DataError("\n".join(faults))


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if isinstance(value, str):
        return _whole(value, column)
    if _is_missing(value):
        raise _EmptyError(f"column {column!r} must be text, and is missing.")
    raise ValueError(f"column {column!r} must be text, and is {type(value).__name__} {value!r:.60}.")


def _texts(row: Mapping[str, Any], column: str) -> tuple[str, ...]:
    value = row.get(column)
    if not isinstance(value, list | tuple):
        return (_text(row, column),)
    if not value:
        raise _EmptyError(f"column {column!r} is an empty list. Give at least one reference, or remove the row.")
    if all(isinstance(item, str) or _is_missing(item) for item in value) and any(map(_is_missing, value)):
        raise _EmptyError(f"column {column!r} must be a list of texts, and one is missing: {value!r:.60}.")
    if not all(isinstance(item, str) for item in value):
        raise ValueError(f"column {column!r} must be a list of texts, and is {value!r:.60}.")
    return tuple(_whole(item, column) for item in value)


def _label(row: Mapping[str, Any], column: str) -> tuple[str]:
    """Read a class: outer white space is no part of its name."""
    value = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        return (str(value),)
    if not isinstance(value, str):
        must = f"column {column!r} must be a class (text or a whole number), and is"
        if _is_missing(value):
            raise _EmptyError(f"{must} missing.")
        raise ValueError(f"{must} {type(value).__name__} {value!r:.60}.")
    return (_whole(value, column).strip(),)


def _is_missing(value: object) -> bool:
    """Take None, and what pandas has in its place, for no value at all."""
    is_nan = isinstance(value, float) and math.isnan(value)
    return value is None or is_nan or type(value).__name__ in ("NAType", "NaTType")


def _whole(value: str, column: str) -> str:
    if not value.strip():
        raise _EmptyError(f"column {column!r} is empty. Remove the row, or fill it.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"column {column!r} holds half a character ({value[error.start]!a}), which no file can hold."
        ) from error
    return value


# Splits and their slices


def _slice(split: str, read: Callable[[str], list[Row]], where: str) -> list[Row]:
    """Read the named splits once each, and take the slices that the grammar of `datasets` asks for."""
    if _SLICE.fullmatch(split) and "[" not in split:
        return read(split.strip())
    from datasets.arrow_reader import ReadInstruction  # a second to import, and most splits have no slice

    names = [match[1] if (match := _SLICE.fullmatch(part)) else "" for part in split.split("+")]
    if not all(names):
        raise DataError(f"{where}: the split {split!r} cannot be read. Write train, train[:1000], train[-5%:] or a+b.")
    tables = {name: read(name) for name in dict.fromkeys(names)}
    try:
        parts = ReadInstruction.from_spec(split).to_absolute({name: len(table) for name, table in tables.items()})
    except (ValueError, AssertionError) as error:
        raise DataError(f"{where}: the split {split!r} cannot be read: {error}") from error
    return [row for part in parts for row in tables[part.splitname][part.from_ : part.to]]


def _from_columns(load: Callable[[str], Mapping[str, list[Any]]], split: str, *, where: str, **columns: Any) -> Pairs:
    def read(name: str) -> list[Row]:
        table = load(name)
        rows = zip(*table.values(), strict=True)
        return [(f"row {number}", dict(zip(table, row, strict=True))) for number, row in enumerate(rows, start=1)]

    rows = _slice(split, read, where)
    return _to_pairs(rows, where=f"{where} ({split})", **columns)


# The hub


def _looks_local(text: str) -> bool:
    """A mistyped path is "no such file", never a hub id: those are NAME or OWNER/NAME."""
    return text.endswith(SUFFIXES) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", text)


def _from_hub(path: str, split: str, *, name: str | None, **columns: Any) -> Pairs:
    import datasets

    try:
        table = datasets.load_dataset(path, name, split=split)
    except Exception as error:  # it raises classes of five libraries; all mean "not there, or not reachable"
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        near = suggest(path, BUILTIN)
        raise DataError(
            f"{path}: no such file or folder, and the hub's set cannot be loaded (split {split!r}, name {name!r}): "
            f"{reason} {near}Check the id, or download the set and give its folder."
        ) from error
    rows: Any = table
    return pairs_from_rows(rows, where=f"{path} ({split})", **columns)
