"""What a training asks of its teacher: which keys go together, and which layers a map of one's own lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from secateur.recipe import names
from secateur.recipe.schema import Distillation, NniDistiller
from secateur.recipe.yaml_tree import Path

Finding = tuple[Path, str]


def findings(train: dict[str, Any], path: Path, *, kind: str) -> Iterator[Finding]:
    """Check what stands beside a teacher.

    Args:
        train: a training, as plain values; anything may be missing or of the wrong type.
        path: where it stands.
        kind: the task's.

    Yields:
        The path and the message of each fault.

    >>> [path for path, _ in findings({"distillation": {"hidden": 1.0}}, ("train",), kind="seq2seq")]
    [('train', 'distillation')]
    """
    if train.get("nni_distiller") is not None:
        yield from _distiller(train, (*path, "nni_distiller"), kind)
        return
    parts = train.get("distillation")
    parts, where = parts if isinstance(parts, dict) else {}, (*path, "distillation")
    if train.get("teacher") is None and any(_given(parts, key) for key in parts.keys() & Distillation.model_fields):
        yield where, "cannot act: no teacher is named. Write one, or remove it."
    elif train.get("teacher") is None and train.get("pseudo_labels") is not None:
        yield (*path, "pseudo_labels"), "cannot act: no teacher is named who could write them. Name one, or remove it."
    elif train.get("teacher") is not None and not asks_logits(train) and train.get("pseudo_labels") is None:
        yield where, "asks nothing of the teacher: give logits or hidden a weight, or remove teacher."
    elif not _weight(parts, "hidden"):
        for key in ("map", "projection"):
            if _given(parts, key):
                yield (*where, key), f"cannot act: hidden weighs nothing. Give it a weight, or remove {key}."
    yield from _layers(parts.get("map"), (*where, "map"), kind)


def asks_logits(train: dict[str, Any]) -> bool:
    """Tell whether a training asks its teacher for more than texts, so that both have to read the same tokens.

    >>> asks_logits({"teacher": "given"}), asks_logits({"distillation": {"logits": 0.0}, "pseudo_labels": {}})
    (True, False)
    """
    parts = train.get("distillation")
    parts = parts if isinstance(parts, dict) else {}
    return train.get("nni_distiller") is not None or _weight(parts, "logits") or _weight(parts, "hidden")


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def _given(parts: dict[str, Any], key: str) -> bool:
    """Tell whether a key says something: a default is what a saved recipe holds, and says nothing."""
    return key in parts and parts[key] != Distillation.model_fields[key].default


def _weight(parts: dict[str, Any], key: str) -> bool:
    return bool(parts.get(key, Distillation.model_fields[key].default))


def _distiller(train: dict[str, Any], path: Path, kind: str) -> Iterator[Finding]:
    """What goes with one of NNI's distillers."""
    given = train["nni_distiller"]
    given = given if isinstance(given, dict) else {}
    if "distillation" in train:
        yield path, "and distillation exclude each other: each says what is learned. Keep one."
    if train.get("teacher") is None:
        yield path, "cannot act: no teacher is named. Write one, or remove it."
    elif given.get("lambda", NniDistiller.model_fields["lambda_"].default) == 0 and not train.get("pseudo_labels"):
        yield (*path, "lambda"), "asks nothing of the teacher: give it a weight, or remove teacher."
    link = given.get("link")
    if given.get("apply_method") == "kl" and link is not None:
        yield (*path, "link"), "cannot act beside kl, which compares the logits. Write apply_method: mse, or remove it."
    yield from _layers(link, (*path, "link"), kind)
    if given.get("name") == "adaptive_1d_layerwise" and isinstance(link, dict):
        for stack, layers in link.items():
            for index, choices in enumerate(_list(layers)):
                if len(_list(choices)) > 1:
                    told = "adaptive_1d_layerwise learns from one layer. Name one, or write dynamic_layerwise."
                    yield (*path, "link", stack, index), told


def _layers(lists: Any, path: Path, kind: str) -> Iterator[Finding]:
    """Lists of layers name every stack that the task's models have, and no other."""
    if not isinstance(lists, dict):
        return
    stacks = ("encoder",) if kind == "classification" else names.words(names.Stack)
    for stack in names.words(names.Stack):
        if lists.get(stack) is None and stack in stacks:
            yield (*path, stack), f"is missing: list a layer of the teacher for each layer of the {stack} stack."
        elif lists.get(stack) is not None and stack not in stacks:
            yield (*path, stack), f"cannot act: a classifier has no {stack} stack. Remove it."
        for index, choices in enumerate(_list(lists.get(stack))):
            known = [item for item in _list(choices) if isinstance(item, int)]
            if len(set(known)) < len(known):
                yield (*path, stack, index), "lists a layer twice. Remove one."


__all__ = ["asks_logits", "findings"]
