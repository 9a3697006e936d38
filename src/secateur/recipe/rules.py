"""What types cannot say: which keys go together. Works on a recipe with other faults too, so all are told at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from secateur.recipe import names
from secateur.recipe.schema import Group, Part, Train
from secateur.recipe.yaml_tree import Path

Finding = tuple[Path, str]
NEAR = 1e-6  # 1 - n/m cannot always be written out: 0.666667 is 1:3


def findings(values: Any) -> Iterator[Finding]:
    """Check the rules of a whole recipe.

    Args:
        values: the recipe as plain values; anything may be missing or of the wrong type, which others report.

    Yields:
        The path and the message of each fault.

    >>> recipe = {"stages": [{"name": "a", "train": {"momentum": 0.9}}]}
    >>> [path for path, message in findings(recipe)]
    [('stages', 0, 'train', 'momentum')]
    """
    values = _mapping(values)
    yield from _data(_mapping(_mapping(values.get("task")).get("data")))
    yield from _metrics(_mapping(values.get("evaluation")), ("evaluation",))
    stages = _list(values.get("stages"))
    yield from _names(stages)
    for index, stage in enumerate(stages):
        if isinstance(stage, dict):
            yield from _stage(stage, ("stages", index))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _given(values: dict[str, Any], key: str, part: type[Part]) -> bool:
    """Tell whether a key says something: a value that is the default is what a saved recipe holds, and says nothing."""
    return key in values and values[key] != part.model_fields[key].default


def _data(data: dict[str, Any]) -> Iterator[Finding]:
    if data.get("path") == "cmudict" and data.get("name") is not None:
        yield ("task", "data", "name"), "cannot act: the dictionary cmudict has one configuration. Remove it."


def _metrics(values: dict[str, Any], path: Path) -> Iterator[Finding]:
    for value in _twice(_list(values.get("metrics"))):
        yield (*path, "metrics"), f"{value} is listed twice. Remove one."


def _twice(values: Sequence[Any]) -> list[Any]:
    """List what occurs more than once, each once.

    >>> _twice([1, 2, 1, 1])
    [1]
    """
    found: list[Any] = []
    for index, value in enumerate(values):
        if value in values[:index] and value not in found:
            found.append(value)
    return found


def _names(stages: Sequence[Any]) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for index, stage in enumerate(stages):
        name = _mapping(stage).get("name")
        if not isinstance(name, str):
            continue
        if name in first:
            yield (
                ("stages", index, "name"),
                f'stage {first[name]} is called "{name}" already. Every stage has its own name.',
            )
        first.setdefault(name, index)


def _stage(stage: dict[str, Any], path: Path) -> Iterator[Finding]:
    kinds = [kind for kind in names.words(names.StageKind) if stage.get(kind) is not None]
    empty = [kind for kind in names.words(names.StageKind) if kind in stage and stage[kind] is None]
    later = [kind for kind in names.RESERVED_STAGE_KINDS if kind in stage]
    if len(kinds) > 1:
        yield (
            path,
            f"has {' and '.join(kinds)}: a stage is exactly one of train, prune, evaluate. Make two stages of it.",
        )
    elif not kinds and empty == ["evaluate"]:
        yield (*path, "evaluate"), "is empty. Write `evaluate: {}` to measure as the recipe's evaluation says."
    elif not kinds and not later:
        yield path, "does nothing: a stage is exactly one of train, prune, evaluate."
    yield from _train(_mapping(stage.get("train")), (*path, "train"))
    yield from _metrics(_mapping(stage.get("evaluate")), (*path, "evaluate"))
    prune = _mapping(stage.get("prune"))
    for index, group in enumerate(_list(prune.get("groups"))):
        if isinstance(group, dict):
            yield from _group(group, (*path, "prune", "groups", index))


def _train(train: dict[str, Any], path: Path) -> Iterator[Finding]:
    if _given(train, "momentum", Train) and train.get("optimizer", "adamw") != "sgd":
        optimizer = train.get("optimizer", "adamw")
        yield (*path, "momentum"), f"only optimizer: sgd has it, and this is {optimizer}. Remove one of the two."


def _group(group: dict[str, Any], path: Path) -> Iterator[Finding]:
    yield from _shape(group, path)
    yield from _amount(group, path)
    yield from _caps(group, path)
    layers = _list(group.get("layers"))
    if isinstance(group.get("layers"), (list, tuple)) and not layers:
        yield (*path, "layers"), "names no layer. Remove it to select all."
    for layer in _twice(layers):
        yield (*path, "layers"), f"{layer} is listed twice. Remove one."
    role = group.get("role")
    if _given(group, "tie", Group) and role in names.words(names.Role) and role not in ("lm_head", "embedding"):
        yield (*path, "tie"), f"only lm_head and embedding share a table, and this is {role}. Remove it."


def _shape(group: dict[str, Any], path: Path) -> Iterator[Finding]:
    """What is removed at once: single weights, or one of unit, block and pattern."""
    given = [key for key in ("unit", "block", "pattern") if _given(group, key, Group)]
    if len(given) > 1:
        yield (
            (*path, given[-1]),
            f"{' and '.join(given)} exclude each other: each says what is removed at once. Keep one.",
        )
    if given and group.get("role") == "norm":
        yield (*path, given[0]), "a norm's weight is a vector: it has single weights only. Remove it."
    if "pattern" in given:
        for key in ("scope", "max_sparsity", "min_keep"):
            if _given(group, key, Group):
                yield (*path, key), "cannot act: a pattern removes the same number from every m neighbours. Remove it."


def _amount(group: dict[str, Any], path: Path) -> Iterator[Finding]:
    """How much is removed: sparsity, or what the pattern says."""
    sparsity = _number(group.get("sparsity"))
    if group.get("pattern") is None:
        if group.get("sparsity") is None:
            yield (*path, "sparsity"), "is missing: the share of the group's original elements to remove, 0 to below 1."
        return
    kept, of = _pattern(group["pattern"])
    if kept is None or of is None:
        return
    if kept >= of:
        yield (*path, "pattern"), f"n:m keeps n of every m, so n < m is needed, and {kept} is not less than {of}."
    elif sparsity is not None and abs(sparsity - (1 - kept / of)) > NEAR:
        says = f"pattern {kept}:{of} removes {1 - kept / of:.6g}, and this says {sparsity:g}. Remove one of the two."
        yield (*path, "sparsity"), says


def _pattern(pattern: Any) -> tuple[int, int] | tuple[None, None]:
    n, colon, m = pattern.partition(":") if isinstance(pattern, str) else ("", "", "")
    if not colon or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in (n, m)):
        return None, None
    return int(n), int(m)


def _caps(group: dict[str, Any], path: Path) -> Iterator[Finding]:
    """Limits per tensor that cannot be met, or cannot act."""
    sparsity, cap = _number(group.get("sparsity")), _number(group.get("max_sparsity"))
    if cap is None or group.get("pattern") is not None:
        return
    if sparsity is not None and cap < sparsity:
        yield (
            (*path, "max_sparsity"),
            f"{cap:g} per tensor cannot add up to sparsity {sparsity:g}. Raise it, or lower sparsity.",
        )
    elif group.get("scope") == "tensor":
        yield (
            (*path, "max_sparsity"),
            "cannot act: with scope: tensor every tensor loses exactly `sparsity`. Remove it.",
        )
