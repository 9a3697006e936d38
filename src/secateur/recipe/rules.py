"""What types cannot say: which keys go together. Works on a recipe with other faults too, so all are told at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from secateur.recipe import kinds, lessons, names, nni_rules, presets, rounds
from secateur.recipe.schema import Group, Movement, Schedule, Task, Train
from secateur.recipe.unchecked import Finding, is_given, listing, mapping, number
from secateur.recipe.yaml_tree import Path

_KINDS = ", ".join(names.words(names.StageKind))
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
    values = mapping(values)
    yield from _data(mapping(mapping(values.get("task")).get("data")))
    yield from _metrics(mapping(values.get("evaluation")), ("evaluation",))
    stages = listing(values.get("stages"))
    yield from kinds.findings(
        mapping(values.get("task")),
        mapping(values.get("evaluation")),
        [training for index, stage in enumerate(stages) for training in _trainings(mapping(stage), ("stages", index))],
        [*map(mapping, stages)],
    )
    yield from _names(stages)
    yield from rounds.findings(stages)
    kind = mapping(values.get("task")).get("kind", Task.model_fields["kind"].default)
    for index, stage in enumerate(stages):
        for train, path in _trainings(mapping(stage), ("stages", index)):
            yield from lessons.findings(train, path, kind=kind)
            yield from _earlier(train, "teacher", path, stages, index, random=values.get("initialize") == "random")
            yield from _earlier(train, "rewind", path, stages, index, random=False)
    for index, stage in enumerate(stages):
        if isinstance(stage, dict):
            yield from _stage(stage, ("stages", index))


def _data(data: dict[str, Any]) -> Iterator[Finding]:
    if data.get("path") == "cmudict" and data.get("name") is not None:
        yield ("task", "data", "name"), "cannot act: the dictionary cmudict has one configuration. Remove it."


def _metrics(values: dict[str, Any], path: Path) -> Iterator[Finding]:
    for value in _twice(listing(values.get("metrics"))):
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
        name = mapping(stage).get("name")
        if not isinstance(name, str):
            continue
        if name == "given":
            yield ("stages", index, "name"), "given is the model that the run begins with. Choose another name."
        if name in first:
            yield (
                ("stages", index, "name"),
                f'stage {first[name]} is called "{name}" already. Every stage has its own name.',
            )
        first.setdefault(name, index)


def _trainings(stage: dict[str, Any], path: Path) -> list[tuple[dict[str, Any], Path]]:
    """List what a stage trains: its own training, and the one inside a gradual pruning."""
    prune = mapping(stage.get("prune"))
    found = [(mapping(stage.get("train")), (*path, "train"))]
    return [*found, (mapping(prune.get("train")), (*path, "prune", "train"))]


def _earlier(
    train: dict[str, Any], key: str, path: Path, stages: Sequence[Any], index: int, *, random: bool
) -> Iterator[Finding]:
    """A stage that a training names has to be done before, and to have a model of its own."""
    named, path = train.get(key), (*path, key)
    if named == "given" and random:
        yield path, "the given model starts at random and knows nothing. Name an earlier stage, or a model."
    found = [mapping(stage) for stage in stages]
    other = next((place for place, stage in enumerate(found) if named in rounds.names_of(stage)), None)
    since = -1 if named == "given" else index if other is None else other
    if key == "teacher" and lessons.asks_logits(train) and _rows_cut(found[:index], since=since):
        told = "reads other tokens: rows of the table were cut after it. Name a stage after that cut"
        yield path, f"{told} (a cut of vocab_row alone leaves the dense model with the smaller table)."
    if other is None:
        if key == "rewind" and isinstance(named, str) and named != "given":
            yield path, f'no stage is called "{named}". Name an earlier stage, or given.'
        elif key == "rewind" and named == "given" and any(stage.get("cut") is not None for stage in found[:index]):
            yield path, "the model was cut, and the given weights no longer fit. Name a stage after the cut."
    elif other >= index:
        more = ", or a model" if key == "teacher" else ""
        yield path, f'stage "{named}" is not done before this one. Name an earlier stage, given{more}.'
    elif not any(found[other].get(kind) is not None for kind in ("train", "prune", "cut")):
        yield path, f'stage "{named}" has no model of its own. Name a train, prune or cut stage.'
    elif key == "rewind" and any(stage.get("cut") is not None for stage in found[other + 1 : index]):
        yield path, f'the model was cut after stage "{named}", whose weights no longer fit. Name a later stage.'


def _rows_cut(stages: Sequence[dict[str, Any]], *, since: int) -> bool:
    """Tell whether a cut after a stage (-1: after the given model) takes rows of the table."""
    masked = False
    for place, stage in enumerate(stages):
        if stage.get("cut") is not None:
            if masked and place > since:
                return True
            masked = False
        groups = listing(mapping(stage.get("prune")).get("groups"))
        masked = masked or any(mapping(group).get("unit") == "vocab_row" for group in groups)
    return False


def _stage(stage: dict[str, Any], path: Path) -> Iterator[Finding]:
    kinds = [kind for kind in names.words(names.StageKind) if stage.get(kind) is not None]
    empty = [kind for kind in names.words(names.StageKind) if kind in stage and stage[kind] is None]
    if len(kinds) > 1:
        yield path, f"has {' and '.join(kinds)}: a stage is exactly one of {_KINDS}. Make two stages of it."
    elif not kinds and empty in (["evaluate"], ["cut"], ["pack"]):
        does = {"evaluate": "measure as the recipe's evaluation says", "cut": "cut what masks name", "pack": "pack"}
        yield (*path, empty[0]), f"is empty. Write `{empty[0]}: {{}}` to {does[empty[0]]}."
    elif not kinds:
        yield path, f"does nothing: a stage is exactly one of {_KINDS}."
    for train, place in _trainings(stage, path):
        yield from _train(train, place)
    yield from _metrics(mapping(stage.get("evaluate")), (*path, "evaluate"))
    prune = mapping(stage.get("prune"))
    if prune.get("preset") is not None and "groups" in prune:
        yield (*path, "prune", "preset"), "stands for groups of its own. Remove it, or remove groups."
    if isinstance(stage.get("prune"), dict):
        yield from nni_rules.findings(prune, (*path, "prune"))
    if prune and not nni_rules.schedules_itself(prune):
        yield from _schedule(prune, (*path, "prune"))
    for index, group in enumerate(listing(prune.get("groups"))):
        if isinstance(group, dict):
            yield from _group(group, (*path, "prune", "groups", index))


def _schedule(prune: dict[str, Any], path: Path) -> Iterator[Finding]:
    """What a schedule needs beside it, and what cannot go step by step."""
    schedule, train = mapping(prune.get("schedule")), prune.get("train")
    where = (*path, "schedule")
    yield from _learning(prune, path)
    if schedule.get("kind", "one_shot") == "one_shot":
        for key in schedule.keys() & Schedule.model_fields:
            if key != "kind" and is_given(schedule, key, Schedule):
                yield (*where, key), "cannot act: one_shot prunes at once. Choose kind: cubic or linear, or remove it."
        if train is not None:
            told = "one_shot prunes before any training. Make it a train stage of its own, or choose kind: cubic."
            yield (*path, "train"), told
        return
    if train is None:
        told = f"{schedule['kind']} prunes while it trains. Give the stage a train block under prune."
        yield (*path, "train"), f"is missing: {told}"
    if mapping(train).get("rewind") is not None:
        yield (*path, "train", "rewind"), "cannot act inside a gradual pruning. Rewind in a train stage after it."
    start, end = (number(schedule.get(key, Schedule.model_fields[key].default)) for key in ("start", "end"))
    if start is not None and end is not None and start >= end:
        yield (*where, "start"), f"{start:g} is not before end, {end:g}. Both are shares of the training's steps."
    key = "groups" if "groups" in prune else "preset"
    for index, group in enumerate(map(mapping, listing(mapping(presets.expand(prune)).get("groups")))):
        place = (*path, key, index) if key == "groups" else (*path, key)
        yield from _step_by_step(group, place, regrow=schedule.get("regrow") is True)


_LEARNED = ("movement", "soft_movement")


def _learning(prune: dict[str, Any], path: Path) -> Iterator[Finding]:
    """What scores need that are learned while a stage trains."""
    learned = [
        (index, group["score"])
        for index, group in enumerate(map(mapping, listing(prune.get("groups"))))
        if group.get("score") in _LEARNED
    ]
    settings = mapping(prune.get("movement"))
    if not learned and any(is_given(settings, key, Movement) for key in settings.keys() & Movement.model_fields):
        yield (*path, "movement"), f"cannot act: no group's score is {' or '.join(_LEARNED)}. Remove it."
    if mapping(prune.get("schedule")).get("regrow") is True and prune.get("train") is not None:
        return
    for index, score in learned:
        told = (
            f"{score} is learned while the stage trains, and what went may come back. Give the stage a train block and "
            "schedule: {kind: cubic, regrow: true}."
        )
        yield (*path, "groups", index, "score"), told


def _step_by_step(group: dict[str, Any], path: Path, *, regrow: bool) -> Iterator[Finding]:
    """What of a group cannot go step by step, or cannot come back."""
    if group.get("pattern") is not None:
        yield (*path, "pattern"), "cannot go step by step: n of m is what it is. Prune it with schedule one_shot."
    if group.get("score") == "spacing":
        told = "cannot go step by step: which layers stay even depends on how many go in all."
        yield (*path, "score"), f"{told} Prune them with schedule one_shot, in a stage of their own."
    if group.get("unit") == "vocab_row" and group.get("sparsity") is None:
        yield (*path, "sparsity"), "is missing: only a number can be reached step by step. Give it, or use one_shot."
    layers = group.get("role") not in _NO_LAYER and group.get("tie") != "both"
    if regrow and not (layers and group.get("unit", "weight") not in _WHOLE):
        told = "regrow works on the matrices of linear layers, by single weights, rows, columns or blocks."
        yield path, f"cannot come back: {told} Make it a group of another stage."


def _train(train: dict[str, Any], path: Path) -> Iterator[Finding]:
    if is_given(train, "momentum", Train) and train.get("optimizer", "adamw") != "sgd":
        optimizer = train.get("optimizer", "adamw")
        yield (*path, "momentum"), f"only optimizer: sgd has it, and this is {optimizer}. Remove one of the two."


def _group(group: dict[str, Any], path: Path) -> Iterator[Finding]:
    yield from _shape(group, path)
    yield from _amount(group, path)
    yield from _caps(group, path)
    layers = listing(group.get("layers"))
    if isinstance(group.get("layers"), (list, tuple)) and not layers:
        yield (*path, "layers"), "names no layer. Remove it to select all."
    for layer in _twice(layers):
        yield (*path, "layers"), f"{layer} is listed twice. Remove one."
    yield from _units(group, path)
    role = group.get("role")
    if is_given(group, "tie", Group) and role in names.words(names.Role) and role not in ("lm_head", "embedding"):
        yield (*path, "tie"), f"only lm_head and embedding share a table, and this is {role}. Remove it."


_NO_LAYER = ("embedding", "position_embedding", "position_bias", "norm")  # roles whose weights multiply nothing
_WHOLE = ("head", "ffn_neuron", "layer", "vocab_row", "hidden_dim")
_ROLES = {"head": ("self_attention", "cross_attention"), "ffn_neuron": ("feed_forward",)}
_IDLE = {  # keys that cannot act beside a whole unit, and why
    "scope": "width says it: uniform, ragged or by_heads",
    "match": "units are chosen by stack and layers",
    "tie": "a unit goes from every table at once",
}


def _units(group: dict[str, Any], path: Path) -> Iterator[Finding]:
    """What goes with whole units, and what only with weights."""
    unit, role, score = group.get("unit", "weight"), group.get("role"), group.get("score", "magnitude")
    if unit not in _WHOLE:
        if role is None and unit in names.words(names.Unit):
            yield (*path, "role"), f"is missing. One of {', '.join(names.words(names.Role))}."
        if score in names.words(names.UnitScore) and score not in names.words(names.Score):
            yield (*path, "score"), f"{score} judges whole units ({', '.join(_WHOLE)}). Use magnitude, or set unit."
        no_layer = role in _NO_LAYER or group.get("tie") == "both"
        if score in ("activation", "obs", "obs_fisher") and no_layer:
            yield (*path, "score"), f"{score} asks what a linear layer reads, and this is none. Use taylor."
        if is_given(group, "width", Group):
            yield (*path, "width"), "cannot act: only heads and neurons have a width. Remove it."
        return
    if is_given(group, "block", Group) or is_given(group, "pattern", Group):
        return  # told already: they exclude each other
    if role in names.words(names.Role) and role not in _ROLES.get(unit, ()):
        allowed = f"Use {' or '.join(_ROLES[unit])}, or remove it." if unit in _ROLES else "Remove it."
        yield (*path, "role"), f"{role} has no {unit}. {allowed}"
    for key, reason in _IDLE.items():
        if is_given(group, key, Group):
            yield (*path, key), f"cannot act beside unit {unit}: {reason}. Remove it."
    if unit != "ffn_neuron" and group.get("width") == "by_heads":
        yield (*path, "width"), f"by_heads shares neurons out by the heads that each layer kept, and this is {unit}."
    if unit not in _ROLES:
        for key in ("width", "layers"):
            if is_given(group, key, Group):
                yield (*path, key), f"cannot act beside unit {unit}. Remove it."
    if unit in ("vocab_row", "hidden_dim") and is_given(group, "stack", Group):
        yield (*path, "stack"), f"cannot act: both stacks share {unit}s. Remove it."
    yield from _unit_score(unit, score, path)


_FOR_ALL = ("magnitude", "random")  # scores that go with single weights and with whole units

_OF_WIDTH = ("fpgm", "activation_mean", "apoz")


def _unit_score(unit: Any, score: Any, path: Path) -> Iterator[Finding]:
    if isinstance(score, str) and ":" in score:
        yield (*path, "score"), "functions of your own score weights, not whole units. Use taylor or l2_norm."
    elif score in names.words(names.Score) and score not in (*_FOR_ALL, *names.words(names.UnitScore)):
        yield (*path, "score"), f"{score} judges single weights, not whole units. Use taylor or l2_norm."
    elif unit == "vocab_row" and score != "frequency":
        yield (*path, "score"), "rows of the table go by how often the texts need them. Write score: frequency."
    elif unit != "vocab_row" and score == "frequency":
        yield (*path, "score"), f"frequency counts rows of the table, and this is {unit}. Use taylor or l2_norm."
    elif unit not in _ROLES and score in _OF_WIDTH:
        yield (*path, "score"), f"{score} judges heads and neurons, and this is {unit}. Use taylor or l2_norm."
    elif unit == "head" and score == "apoz":
        yield (*path, "score"), "apoz counts zeros, and attention gives none. Use activation_mean or taylor."
    elif unit != "layer" and score == "spacing":
        yield (*path, "score"), f"spacing chooses layers, and this is {unit}. Use taylor or l2_norm."


def _shape(group: dict[str, Any], path: Path) -> Iterator[Finding]:
    """What is removed at once: single weights, or one of unit, block and pattern."""
    given = [key for key in ("unit", "block", "pattern") if is_given(group, key, Group)]
    if len(given) > 1:
        yield (
            (*path, given[-1]),
            f"{' and '.join(given)} exclude each other: each says what is removed at once. Keep one.",
        )
    if given and group.get("role") == "norm" and group.get("unit") not in _WHOLE:
        yield (*path, given[0]), "a norm's weight is a vector: it has single weights only. Remove it."
    elif given and given[0] != "pattern" and group.get("unit") not in _WHOLE and group.get("scope") == "row":
        yield (*path, "scope"), f"row is for single weights, and {given[0]} says what goes whole. Write tensor."
    if "pattern" in given:
        for key in ("scope", "max_sparsity", "min_keep"):
            if is_given(group, key, Group):
                yield (*path, key), "cannot act: a pattern removes the same number from every m neighbours. Remove it."


def _amount(group: dict[str, Any], path: Path) -> Iterator[Finding]:
    """How much is removed: sparsity, or what the pattern says."""
    sparsity = number(group.get("sparsity"))
    if group.get("pattern") is None:
        if group.get("sparsity") is None and group.get("unit") != "vocab_row":
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
    sparsity, cap = number(group.get("sparsity")), number(group.get("max_sparsity"))
    if cap is None or group.get("pattern") is not None:
        return
    if sparsity is not None and cap < sparsity:
        yield (
            (*path, "max_sparsity"),
            f"{cap:g} per tensor cannot add up to sparsity {sparsity:g}. Raise it, or lower sparsity.",
        )
    elif (scope := group.get("scope")) in ("row", "tensor"):
        yield (
            (*path, "max_sparsity"),
            f"cannot act: with scope: {scope} every tensor loses exactly `sparsity`. Remove it.",
        )
    elif (unit := group.get("unit")) in _WHOLE and unit not in _ROLES:
        yield (*path, "max_sparsity"), f"cannot act beside unit {unit}: all of them stand in one place. Remove it."
    elif unit in _WHOLE and group.get("width", "uniform") == "uniform":
        yield (
            (*path, "max_sparsity"),
            "cannot act: with width: uniform every layer loses exactly `sparsity`. Remove it, or use width: ragged.",
        )
    elif unit in _WHOLE and group.get("width") == "by_heads":
        yield (*path, "max_sparsity"), "cannot act: the heads say how many neurons a layer keeps. Remove it."
