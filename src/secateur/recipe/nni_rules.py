"""What of a prune stage goes with NNI's config_list, and what its pruners need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from secateur import nni_keys
from secateur.recipe.schema import Calibration, Movement, NniPruner, Part, Prune, Schedule
from secateur.recipe.yaml_tree import Path

Finding = tuple[Path, str]

_NUMBERS = {  # what asks for numbers, and which
    "linear": ("interval_steps", "total_times"),
    "agp": ("interval_steps", "total_times"),
    "movement": ("warmup_step", "cooldown_begin_step"),
    "slim": ("training_steps",),
}
_MAY = {"slim": ("regular_scale",)}
LEARNED = ("movement", "slim")
_TOLD = {
    ("taylor", "training_steps"): "taylor looks at calibration rows here, with the weights at rest: write calibration: "
    "{rows: ...}, as many as training_steps batches hold.",
    (
        "movement",
        "regular_scale",
    ): "acts on sparse_threshold alone, in NNI too. For a pressure, write groups with score: soft_movement.",
}


def findings(prune: dict[str, Any], path: Path) -> Iterator[Finding]:
    """Check what says what is pruned: one of groups, preset and nni_config_list, and what stands beside it.

    Args:
        prune: what stands under `prune`, as plain values.
        path: where that is.

    Yields:
        The path and the message of each fault.
    """
    given = prune.get("nni_config_list")
    groups = prune.get("groups")
    if given is None:
        if groups is None and prune.get("preset") is None:
            yield (*path, "groups"), f"is missing. Keys here: {', '.join(Prune.model_fields)}."
        elif isinstance(groups, (list, tuple)) and not groups and prune.get("preset") is None:
            yield (*path, "groups"), "must not be empty."
        for key in ("nni_pruner", "tie"):
            if prune.get(key) not in (None, NniPruner().model_dump(), {}):
                more = " In a group, tie stands beside its role." if key == "tie" else ""
                yield (*path, key), f"cannot act without nni_config_list. Remove it.{more}"
        return
    for key in ("preset", "groups"):
        if prune.get(key):
            yield (*path, "nni_config_list"), f"and {key} exclude each other: each says what is pruned. Keep one."
    if isinstance(given, (list, tuple)):
        for where, text in nni_keys.findings(given):
            yield (*path, "nni_config_list", *where), text
    pruner = prune.get("nni_pruner")
    yield from _pruner(pruner if isinstance(pruner, dict) else {}, prune, (*path, "nni_pruner"))


def schedules_itself(prune: dict[str, Any]) -> bool:
    """Tell whether one of NNI's pruners says when the stage prunes.

    >>> schedules_itself({"nni_config_list": [], "nni_pruner": {"schedule": "agp"}})
    True
    """
    pruner = prune.get("nni_pruner")
    if prune.get("nni_config_list") is None or not isinstance(pruner, dict):
        return False
    return pruner.get("schedule") is not None or pruner.get("name") in LEARNED


def _pruner(pruner: dict[str, Any], prune: dict[str, Any], path: Path) -> Iterator[Finding]:
    """The numbers that a pruner needs, and those that cannot act."""
    name, schedule = pruner.get("name", "level"), pruner.get("schedule")
    if schedule is not None and name in LEARNED:
        yield (*path, "schedule"), f"{name} says itself when it prunes. Remove it."
        schedule = None
    needed = {*_NUMBERS.get(name, ()), *_NUMBERS.get(schedule or "", ())}
    for key in sorted(needed):
        if pruner.get(key) is None:
            yield (*path, key), f"is missing: {schedule if key in _NUMBERS.get(schedule or '', ()) else name} needs it."
    for key in NniPruner.model_fields:
        if key in ("name", "schedule") or pruner.get(key) is None or key in needed or key in _MAY.get(name, ()):
            continue
        yield (*path, key), _TOLD.get((name, key), f"cannot act with {schedule or name}. Remove it.")
    first, last = pruner.get("warmup_step"), pruner.get("cooldown_begin_step")
    if isinstance(first, int) and isinstance(last, int) and first >= last:
        yield (*path, "warmup_step"), f"{first} is not before cooldown_begin_step, {last}."
    yield from _beside(name, prune, path)


def _beside(name: Any, prune: dict[str, Any], path: Path) -> Iterator[Finding]:
    """What else of the stage goes with a pruner."""
    stage = path[:-1]
    if schedules_itself(prune):
        if prune.get("train") is None:
            yield (*stage, "train"), "is missing: this pruner prunes while it trains. Give the stage a train block."
        if _says(prune.get("schedule"), Schedule):
            yield (*stage, "schedule"), "cannot act: nni_pruner says when. Remove it."
        if _says(prune.get("movement"), Movement):
            yield (*stage, "movement"), "cannot act: NNI's rate is fixed, and regular_scale stands in nni_pruner."
        train = prune.get("train")
        if isinstance(train, dict) and train.get("rewind") is not None:
            yield (*stage, "train", "rewind"), "cannot act inside a gradual pruning. Rewind in a train stage after it."
    if name != "taylor" and _says(prune.get("calibration"), Calibration):
        yield (*stage, "calibration"), f"cannot act: {name} asks no rows. Remove it."
    entries = prune.get("nni_config_list")
    for index, entry in enumerate(entries if isinstance(entries, (list, tuple)) else ()):
        if isinstance(entry, dict):
            yield from _entry(name, entry, (*stage, "nni_config_list", index))


def _says(values: Any, part: type[Part]) -> bool:
    """Tell whether a block says more than its defaults, which a saved recipe holds."""
    given = values if isinstance(values, dict) else {}
    return any(value != part.model_fields[key].default for key, value in given.items() if key in part.model_fields)


def _entry(name: Any, entry: dict[str, Any], path: Path) -> Iterator[Finding]:
    """What a pruner cannot read of an entry."""
    blocks = [entry, *(block for block in _values(entry.get("target_settings")) if isinstance(block, dict))]
    if name == "movement" and any(block.get("sparse_threshold") is not None for block in blocks):
        told = (
            "leaves open how much movement removes. Write sparse_ratio; for soft movement with its pressure, groups "
            "with score: soft_movement and a sparsity."
        )
        yield (*path, "sparse_threshold"), told
    if name == "fpgm" and any(block.get("granularity") in ([1, 1], (1, 1)) for block in blocks):
        yield (*path, "granularity"), "single weights have no distances. Leave it out, or give larger blocks."


def _values(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else []


__all__ = ["LEARNED", "findings", "schedules_itself"]
