"""Classes of a classification task: their names, their order, and rows of text with the number of their class."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from secateur.errors import DataError
from secateur.tasks.encode import EncodedPairs, check_ids, tokenize_sources
from secateur.tasks.pairs import Pairs

_GENERIC = re.compile(r"LABEL_(\d+)")  # what transformers calls a class without a name
_MAX_NAMED = 5  # labels that one message names


def found_labels(pairs: Pairs) -> tuple[str, ...]:
    """List the classes that rows name.

    Args:
        pairs: one reference a row, its class.

    Returns:
        Each once; whole numbers in their own order, else in that of their characters.

    >>> found_labels(Pairs(("a", "b", "c"), (("10",), ("9",), ("9",))))
    ('9', '10')
    """
    names = {name for (name,) in pairs.references}
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def labels_of(config: Any) -> tuple[str, ...]:
    """Read a classifier's classes off its configuration.

    Args:
        config: with `id2label`; a class that is called LABEL_3 there has no name, and is called 3.

    Returns:
        Their names, in the order of its logits.

    Raises:
        DataError: two classes have one name.
    """
    known = {int(index): str(name) for index, name in config.id2label.items()}
    names = [known.get(index, f"LABEL_{index}") for index in range(config.num_labels)]
    if all(
        match and int(match[1]) == index for index, name in enumerate(names) for match in [_GENERIC.fullmatch(name)]
    ):
        names = [str(index) for index in range(len(names))]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"config.json: id2label calls several classes {_some(twice)}. Give each its own name.")
    return tuple(names)


def name_labels(config: Any, labels: Sequence[str]) -> None:
    """Write classes into a configuration.

    Args:
        config: gets id2label and label2id, which also say how many there are.
        labels: their names, in the order of the logits.
    """
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: index for index, name in enumerate(labels)}


def check_labels(pairs: Pairs, labels: Sequence[str], where: str) -> None:
    """Refuse rows whose class a model does not know.

    Args:
        pairs: one reference a row, its class.
        labels: the classes that there are.
        where: what to call the rows.

    Raises:
        DataError: there are such rows; their classes are named, and how many rows have them.
    """
    unknown = Counter(name for (name,) in pairs.references if name not in set(labels))
    if unknown:
        rows = sum(unknown.values())
        raise DataError(
            f"{where}: {rows:,} of {len(pairs):,} rows have a class that the model does not know: "
            f"{_some([*unknown])}. It knows {_some(labels)}. Remove these rows, or put some of the class into the "
            "training split and train anew."
        )


def encode_labelled(
    pairs: Pairs,
    tokenizer: Any,
    labels: Sequence[str],
    *,
    max_source_tokens: int,
    vocab_size: int | None = None,
    where: str = "rows",
) -> EncodedPairs:
    """Turn texts and their classes into training rows.

    Args:
        pairs: sources of one text or two, prefix applied; one reference a row, its class.
        tokenizer: a Hugging Face tokenizer.
        labels: the classes, in the order of the model's logits.
        max_source_tokens: the longest source, special tokens counted.
        vocab_size: rows of the model's embedding table, to check the ids against.
        where: what to call the rows in a message.

    Returns:
        The rows, in order; the labels of each are one number, that of its class.

    Raises:
        DataError: a class is unknown, or the tokenizer belongs to another model.
    """
    check_labels(pairs, labels, where)
    found = tokenize_sources(tokenizer, pairs.sources, max_source_tokens)
    check_ids(found.input_ids, vocab_size)
    number = {name: index for index, name in enumerate(labels)}
    return EncodedPairs(
        found.input_ids,
        [[number[name]] for (name,) in pairs.references],
        token_type_ids=found.token_type_ids,
        num_cut_sources=found.num_cut,
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(map(repr, names[:_MAX_NAMED])) + more
