"""What a folder can be pruned by without loading its model: a recipe's prune stages, or groups alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from secateur.errors import RecipeError
from secateur.recipe import rules
from secateur.recipe.faults import schema_findings
from secateur.recipe.schema import Group, Recipe, Stage
from secateur.recipe.yaml_tree import read_tree

_TEXTS = ("match",)  # keys whose values are not read as YAML, where a leading * has a meaning of its own
# What a recipe of prune stages alone would not say; none of it is looked at.
_UNUSED = {
    "task": {
        "data": {"path": "unused"}, "source": "unused", "target": "unused", "max_source_tokens": 1,
        "max_target_tokens": 1,
    },
    "evaluation": {"metrics": ["rouge"], "max_new_tokens": 1},
}  # fmt: skip
_AFTERWARDS = {
    "cut": "`secateur cut OUT`",
    "export": "`secateur export OUT`",
    "pack": "`secateur pack OUT`",
    "evaluate": "`secateur evaluate OUT`",
}


def parse_group(text: str) -> dict[str, Any]:
    """Read a group from one line: keys as in a recipe's `groups`, with = and commas.

    Args:
        text: such as `role=feed_forward,layers=[0,1],sparsity=0.7`.

    Returns:
        The keys and values; whether they make sense is for `recipe_of_groups`.

    Raises:
        RecipeError: it is not of that form.

    >>> parse_group("role=feed_forward,layers=[0,1],match=*.wi.weight,sparsity=0.7")
    {'role': 'feed_forward', 'layers': [0, 1], 'match': '*.wi.weight', 'sparsity': 0.7}
    """
    group: dict[str, Any] = {}
    for piece in re.split(r",(?![^\[]*\])", text):
        key, equals, value = (part.strip() for part in piece.partition("="))
        tree = None if key in _TEXTS else read_tree(value, f"--group {text}")
        if not (equals and key and value) or (tree and tree.faults):
            raise RecipeError([f"--group {text}: {piece!r} is not KEY=VALUE. Write role=self_attention,sparsity=0.9."])
        if key in group:
            raise RecipeError([f"--group {text}: {key} is given twice. Remove one."])
        group[key] = tree.values if tree else value
    return group


def recipe_of_groups(model: str, groups: Sequence[Mapping[str, Any]]) -> Recipe:
    """Make a recipe of one prune stage.

    Args:
        model: what it prunes.
        groups: keys and values as in a recipe's `groups`.

    Returns:
        The recipe; its task and evaluation say nothing.

    Raises:
        RecipeError: all that is wrong with the groups.
    """
    if not groups:
        raise RecipeError(["nothing to prune: give a recipe or groups."])
    prune = {"groups": [dict(group) for group in groups]}
    values = {"version": 1, "model": model, "stages": [{"name": "prune", "prune": prune}], **_UNUSED}
    recipe, found = schema_findings(values)
    found += rules.findings(values)
    if recipe is None or found:
        raise RecipeError([_line(path, told) for path, told in sorted(found, key=lambda fault: str(fault[0]))])
    return recipe


def _line(path: Sequence[str | int], told: str) -> str:
    """Name a group by its number instead of its place in a recipe that nobody wrote."""
    _, _, _, _, index, *keys = path
    return f"group {int(index) + 1}{' ' if keys else ''}{'.'.join(map(str, keys))}: {told}"


def check_by_shards(recipe: Recipe) -> None:
    """Refuse what cannot be done without loading the model.

    Args:
        recipe: any recipe.

    Raises:
        RecipeError: all such parts by name, and what to do.
    """
    faults = list(_faults(recipe))
    if faults:
        raise RecipeError(faults, "A folder is pruned by shards without loading its model, which leaves these out:")


def _faults(recipe: Recipe) -> Iterator[str]:
    if recipe.initialize == "random":
        yield "initialize: random weights are in no folder. Leave it out, or use `secateur run`."
    for stage in recipe.stages:
        where = f"stages.{stage.name}"
        if stage.kind in _AFTERWARDS:
            yield f"{where}.{stage.kind}: is a step of its own here. Remove it, and call {_AFTERWARDS[stage.kind]}."
        elif stage.kind == "train":
            yield f"{where}.train: the whole model has to be in memory. Remove it, or use `secateur run`."
        elif stage.prune:
            yield from _prune_faults(stage, where)


def _prune_faults(stage: Stage, where: str) -> Iterator[str]:
    assert stage.prune is not None
    kind = stage.prune.schedule.kind
    if kind != "one_shot":
        yield f"{where}.prune.schedule: {kind} prunes while it trains. Write one_shot, or use `secateur run`."
    for index, group in enumerate(stage.prune.groups):
        for key, told in _group_faults(group):
            yield f"{where}.prune.groups.{index}.{key}: {told}, or use `secateur run`."


def _group_faults(group: Group) -> Iterator[tuple[str, str]]:
    if group.unit != "weight":
        yield "unit", f"{group.unit} is judged as a whole. Leave it out (single weights)"
    if group.block is not None:
        yield "block", "blocks are judged as a whole. Leave it out (single weights)"
    if group.pattern is not None:
        yield "pattern", "only single weights go by shards. Leave it out and write scope: tensor"
    if group.scope == "row":
        yield "scope", "every row would have a threshold of its own. Write tensor"
    if group.score != "magnitude":
        yield "score", f"{group.score} asks more than the weight's magnitude. Write magnitude"
