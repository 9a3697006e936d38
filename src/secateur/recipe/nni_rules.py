"""What of a prune stage goes with NNI's config_list, and what its pruners need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from secateur import nni_keys
from secateur.recipe import rounds
from secateur.recipe.schema import Calibration, Movement, NniPruner, Part, Prune, Schedule
from secateur.recipe.unchecked import Finding, is_given, listing, mapping, word
from secateur.recipe.yaml_tree import Path

_NUMBERS = {  # what asks for numbers, and which
    "linear": ("interval_steps", "total_times"),
    "agp": ("interval_steps", "total_times"),
    "movement": ("warmup_step", "cooldown_begin_step"),
    "slim": ("training_steps",),
    rounds.LOTTERY: ("total_iteration",),
}
_MAY = {
    "slim": ("regular_scale",),
    rounds.LOTTERY: ("reset_weight",),
    **dict.fromkeys(nni_keys.OF_OUTPUTS, ("activation",)),
}
LEARNED = ("movement", "slim")
ASK_ROWS = ("taylor", *nni_keys.OF_OUTPUTS)
_TOLD = {
    **{
        (name, "training_steps"): f"{name} looks at calibration rows here, with the weights at rest: write "
        "calibration: {rows: ...}, as many as training_steps batches hold."
        for name in ASK_ROWS
    },
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
            if _says(prune.get(key), NniPruner) if key == "nni_pruner" else prune.get(key) is not None:
                more = " In a group, tie stands beside its role." if key == "tie" else ""
                yield (*path, key), f"cannot act without nni_config_list. Remove it.{more}"
        return
    for key in ("preset", "groups"):
        if prune.get(key):
            yield (*path, "nni_config_list"), f"and {key} exclude each other: each says what is pruned. Keep one."
    if isinstance(given, (list, tuple)):
        for where, text in nni_keys.findings(given):
            yield (*path, "nni_config_list", *where), text
    yield from _pruner(mapping(prune.get("nni_pruner")), prune, (*path, "nni_pruner"))


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
    name, schedule = word(pruner.get("name", "level")), word(pruner.get("schedule"))
    if schedule is not None and name in LEARNED:
        yield (*path, "schedule"), f"{name} says itself when it prunes. Remove it."
        schedule = None
    needed = {*_NUMBERS.get(name or "", ()), *_NUMBERS.get(schedule or "", ())}
    for key in sorted(needed):
        if pruner.get(key) is None:
            yield (*path, key), f"is missing: {schedule if key in _NUMBERS.get(schedule or '', ()) else name} needs it."
    for key in NniPruner.model_fields:
        may = (*_MAY.get(name or "", ()), *_MAY.get(schedule or "", ()))
        if key in ("name", "schedule") or pruner.get(key) is None or key in needed or key in may:
            continue
        idle = name if schedule is None else f"{name} and {schedule}"
        yield (*path, key), _TOLD.get((name or "", key), f"cannot act with {idle}. Remove it.")
    first, last = pruner.get("warmup_step"), pruner.get("cooldown_begin_step")
    if isinstance(first, int) and isinstance(last, int) and first >= last:
        yield (*path, "warmup_step"), f"{first} is not before cooldown_begin_step, {last}."
    yield from _beside(name, prune, path)


def _beside(name: Any, prune: dict[str, Any], path: Path) -> Iterator[Finding]:
    """What else of the stage goes with a pruner."""
    stage = path[:-1]
    by_rounds = mapping(prune.get("nni_pruner")).get("schedule") == rounds.LOTTERY
    if schedules_itself(prune):
        if prune.get("train") is None:
            does = "trains in every round" if by_rounds else "prunes while it trains"
            yield (*stage, "train"), f"is missing: this pruner {does}. Give the stage a train block."
        if _says(prune.get("schedule"), Schedule):
            yield (*stage, "schedule"), "cannot act: nni_pruner says when. Remove it."
        if _says(prune.get("movement"), Movement):
            yield (*stage, "movement"), "cannot act: NNI's rate is fixed, and regular_scale stands in nni_pruner."
        train = prune.get("train")
        rewinds = mapping(train).get("rewind") is not None
        if rewinds and not by_rounds:
            yield (*stage, "train", "rewind"), "cannot act inside a gradual pruning. Rewind in a train stage after it."
        elif rewinds and mapping(prune.get("nni_pruner")).get("reset_weight") is False:
            yield (*stage, "train", "rewind"), "cannot act: reset_weight is false. Remove one of the two."
    rows = {key: value for key, value in mapping(prune.get("calibration")).items() if key != "precision"}
    if name not in ASK_ROWS and _says(rows, Calibration):  # precision may be that of another machine
        yield (*stage, "calibration"), f"cannot act: {name} asks no rows. Remove it."
    entries = prune.get("nni_config_list")
    for index, entry in enumerate(listing(entries)):
        if isinstance(entry, dict):
            yield from _entry(name, entry, (*stage, "nni_config_list", index), by_rounds=by_rounds)


def _says(values: Any, part: type[Part]) -> bool:
    """Tell whether a block says more than its defaults, which a saved recipe holds."""
    said = mapping(values)
    return any(is_given(said, key, part) for key in said.keys() & part.model_fields)


def _entry(name: Any, entry: dict[str, Any], path: Path, *, by_rounds: bool) -> Iterator[Finding]:
    """What a pruner, or rounds around it, cannot read of an entry."""
    blocks = [entry, *(block for block in mapping(entry.get("target_settings")).values() if isinstance(block, dict))]
    by_threshold = any(block.get("sparse_threshold") is not None for block in blocks)
    if name in nni_keys.OF_OUTPUTS:
        yield from (((*path, *where), told) for where, told in nni_keys.output_findings(entry))
    if by_rounds and by_threshold:
        told = "leaves open how much goes by round. Write sparse_ratio."
        yield (*path, "sparse_threshold"), told
    if name == "movement" and by_threshold:
        told = (
            "leaves open how much movement removes. Write sparse_ratio; for soft movement with its pressure, groups "
            "with score: soft_movement and a sparsity."
        )
        yield (*path, "sparse_threshold"), told
    if name == "fpgm" and any(block.get("granularity") in ([1, 1], (1, 1)) for block in blocks):
        yield (*path, "granularity"), "single weights have no distances. Leave it out, or give larger blocks."


__all__ = ["ASK_ROWS", "LEARNED", "findings", "schedules_itself"]
