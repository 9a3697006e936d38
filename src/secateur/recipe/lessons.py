"""What a training asks of its teacher: which keys go together, and which layers a map of one's own lists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from secateur.recipe import names
from secateur.recipe.schema import Distillation, NniDistiller, Train
from secateur.recipe.unchecked import Finding, is_given, listing, mapping
from secateur.recipe.yaml_tree import Path


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
    parts, where = mapping(train.get("distillation")), (*path, "distillation")
    said = [key for key in parts.keys() & Distillation.model_fields if is_given(parts, key, Distillation)]
    if train.get("teacher") is None and said:
        yield where, "cannot act: no teacher is named. Write one, or remove it."
    elif train.get("teacher") is None and train.get("pseudo_labels") is not None:
        yield (*path, "pseudo_labels"), "cannot act: no teacher is named who could write them. Name one, or remove it."
    elif train.get("teacher") is not None and not asks_logits(train) and train.get("pseudo_labels") is None:
        yield where, "asks nothing of the teacher: give logits or hidden a weight, or remove teacher."
    else:
        yield from _idle(parts, train, path)
    yield from _layers(parts.get("map"), (*where, "map"), kind)


def _idle(parts: dict[str, Any], train: dict[str, Any], path: Path) -> Iterator[Finding]:
    """What says something of a part of the loss that weighs nothing."""
    where = (*path, "distillation")
    for part, keys in (("hidden", ("map", "projection")), ("logits", ("temperature",))):
        for key in () if _weight(parts, part) else keys:
            if is_given(parts, key, Distillation):
                yield (*where, key), f"cannot act: {part} weighs nothing. Give it a weight, or remove {key}."
    if train.get("teacher") is not None and not asks_logits(train) and is_given(parts, "labels", Distillation):
        yield (*where, "labels"), "cannot act: the teacher's texts alone are learned from, in full. Remove it."
    if not _weight(parts, "labels") and is_given(train, "label_smoothing", Train):
        yield (*path, "label_smoothing"), "cannot act: labels weighs nothing. Give it a weight, or remove this."


def asks_logits(train: dict[str, Any]) -> bool:
    """Tell whether a training asks its teacher for more than texts, so that both have to read the same tokens.

    >>> asks_logits({"teacher": "given"}), asks_logits({"distillation": {"logits": 0.0}, "pseudo_labels": {}})
    (True, False)
    """
    parts = mapping(train.get("distillation"))
    return train.get("nni_distiller") is not None or _weight(parts, "logits") or _weight(parts, "hidden")


def _weight(parts: dict[str, Any], key: str) -> bool:
    return bool(parts.get(key, Distillation.model_fields[key].default))


def _distiller(train: dict[str, Any], path: Path, kind: str) -> Iterator[Finding]:
    """What goes with one of NNI's distillers."""
    distiller = mapping(train["nni_distiller"])
    if "distillation" in train:
        yield path, "and distillation exclude each other: each says what is learned. Keep one."
    if train.get("teacher") is None:
        yield path, "cannot act: no teacher is named. Write one, or remove it."
    elif distiller.get("lambda", NniDistiller.model_fields["lambda_"].default) == 0 and not train.get("pseudo_labels"):
        yield (*path, "lambda"), "asks nothing of the teacher: give it a weight, or remove teacher."
    link = distiller.get("link")
    if distiller.get("apply_method") == "kl" and link is not None:
        yield (*path, "link"), "cannot act beside kl, which compares the logits. Write apply_method: mse, or remove it."
    yield from _layers(link, (*path, "link"), kind)
    if distiller.get("name") == "adaptive_1d_layerwise" and isinstance(link, dict):
        for stack, layers in link.items():
            for index, choices in enumerate(listing(layers)):
                if len(listing(choices)) > 1:
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
        for index, choices in enumerate(listing(lists.get(stack))):
            known = [item for item in listing(choices) if isinstance(item, int)]
            if len(set(known)) < len(known):
                yield (*path, stack, index), "lists a layer twice. Remove one."


__all__ = ["asks_logits", "findings"]
