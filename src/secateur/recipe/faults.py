"""Turn what the schema refuses into sentences that say what is wrong, what was probably meant, and what there is."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from secateur.nni_keys import NO_PRESETS
from secateur.recipe import names
from secateur.recipe.schema import Part, Recipe
from secateur.recipe.walk import choices_of, item_of, part_at
from secateur.recipe.yaml_tree import Path, shown
from secateur.registry import suggest

VERSIONS = "this Secateur understands version 1"

_FORMS = {  # what a text of a certain form looks like, by key
    "name": "at most 80 letters, digits, dots, dashes and underscores, the first a letter or digit: it names a folder",
    "pattern": "n:m, such as 2:4: keep 2 of every 4 neighbours",
    "score": f"{', '.join(names.words(names.Score))}, for whole units {', '.join(names.words(names.UnitScore))}, "
    "or your own function as package.module:function",
}


def schema_findings(values: Any) -> tuple[Recipe | None, list[tuple[Path, str]]]:
    """Check plain values against the schema.

    Args:
        values: the recipe as dicts, lists and scalars.

    Returns:
        The recipe, or none when there are findings; and the path and the message of every fault, in the schema's order.
    """
    frozen = tuples(values)
    try:
        return Recipe.model_validate(frozen), []
    except ValidationError as error:
        found: dict[tuple[Path, str], None] = {}  # a union tells one fault once for each of its choices
        for detail in error.errors(include_url=False):
            if detail["type"] == "too_short" and len(detail["input"]) >= detail.get("ctx", {}).get("min_length", 0):
                continue  # pydantic counts only the items without a fault, and theirs are told anyway
            path = _real_path(detail["loc"], frozen)
            short = detail["type"] == "missing" and isinstance(detail["loc"][-1], int)
            found[path, "has too few values." if short else _message(path, dict(detail))] = None
        return None, list(found)


def tuples(value: Any) -> Any:
    """Make every list a tuple: what YAML calls a list is a frozen sequence in a recipe.

    >>> tuples({"layers": [0, [1]]})
    {'layers': (0, (1,))}
    """
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in value.items()}
    return tuple(tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def dotted(path: Path, values: Any) -> str:
    """Write a path as messages do and `--set` takes it: a stage by its name where that is unmistakable.

    Args:
        path: keys and indexes from the top.
        values: the recipe, for the stages' names.

    Returns:
        Steps joined by dots; empty for the whole recipe.

    >>> dotted(("stages", 0, "prune", "groups", 1, "role"), {"stages": [{"name": "first"}]})
    'stages.first.prune.groups.1.role'
    """
    steps = [str(step) for step in path]
    if len(path) > 1 and path[0] == "stages" and isinstance(path[1], int):
        stages = values.get("stages") if isinstance(values, dict) else None
        known = stage_names(stages)
        name = known[path[1]] if path[1] < len(known) else None
        if name and known.count(name) == 1 and "." not in name and not name.isdigit():
            steps[1] = name
    return ".".join(steps)


def stage_names(stages: Any) -> list[str | None]:
    """List the stages' names as far as they have any.

    >>> stage_names([{"name": "a"}, {"train": None}, 3])
    ['a', None, None]
    """
    if not isinstance(stages, (list, tuple)):
        return []
    found = [stage.get("name") if isinstance(stage, dict) else None for stage in stages]
    return [name if isinstance(name, str) else None for name in found]


def _real_path(loc: tuple[str | int, ...], values: Any) -> Path:
    """Drop from pydantic's location what is not in the recipe: the names of a union's choices."""
    path: list[str | int] = []
    for place, step in enumerate(loc):
        if isinstance(values, dict) and step not in values and place < len(loc) - 1:
            continue  # a choice that is a mapping; what comes last is a key that is missing
        if isinstance(values, dict):
            values = values.get(step)
        elif isinstance(values, tuple) and isinstance(step, int) and step < len(values):
            values = values[step]
        else:
            break
        path.append(step)
    return tuple(path)


def _keys_here(path: Path) -> str:
    part = part_at(path)
    return f"Keys here: {', '.join(part.written_keys())}." if part else ""


def _message(path: Path, detail: dict[str, Any]) -> str:
    """Say what is wrong with the value at a path."""
    kind, value = detail["type"], detail["input"]
    key = path[-1] if path else ""
    parent = part_at(path[:-1])
    if kind == "extra_forbidden":
        return _unknown_key(str(key), path[:-1])
    if kind == "missing":
        return f"is missing. {_keys_here(path[:-1])}"
    if path == ("version",):
        return f"must be 1, not {shown(value)}: {VERSIONS}."
    if key == "score":
        known = (*names.words(names.Score), *names.words(names.UnitScore))
        near = suggest(value, known) if isinstance(value, str) else ""
        return f"no {shown(value)}. {near}It is one of {_FORMS['score']}."
    if kind == "literal_error":
        return _wrong_choice(path, value, parent)
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"must be a mapping, not {shown(value)}. {_keys_here(path)}"
    return _wrong_value(str(key), kind, value, detail.get("ctx", {})) or f"{detail['msg']}, not {shown(value)}."


def _unknown_key(key: str, path: Path) -> str:
    part = part_at(path)
    if part is None:
        return "unknown key."
    return f"unknown key. {suggest(key, part.written_keys())}{_keys_here(path)}"


def _wrong_choice(path: Path, value: Any, parent: type[Part] | None) -> str:
    annotation = parent.model_fields[str(path[-1])].annotation if parent and path[-1] in parent.model_fields else None
    choices = _choices(annotation) if parent else _choices(_list_annotation(path))
    listed = f"Choices: {', '.join(choices)}."
    if path[-2:] == ("nni_pruner", "name") and isinstance(value, str) and value in NO_PRESETS:
        return f"{value} {NO_PRESETS[value]}"
    near = suggest(value, choices) if isinstance(value, str) else ""
    return f"no {shown(value)}. {near}{listed}{_MORE.get(str(path[-1]), '')}"


_LISTS = " Or the teacher's layers for each layer here, counted from 1: {encoder: [1, 3], decoder: [2, 4]}."
_MORE = {
    "map": _LISTS,
    "link": _LISTS,
    "activation": " The ranks are of a ReLU's zeros and means: gelu hardly ever gives a zero. Remove it.",
}


def _list_annotation(path: Path) -> Any:
    """Find the type of the list that an item stands in."""
    owner = part_at(path[:-2])
    return owner.model_fields[str(path[-2])].annotation if owner else None


def _choices(annotation: Any) -> tuple[str, ...]:
    """List the words of the literal inside an annotation."""
    words = tuple(word for word in names.words(annotation) if isinstance(word, str))
    if words:
        return words
    opened = [*choices_of(annotation), item_of(annotation)]
    return next((found for found in map(_choices, filter(None, opened)) if found), ())


_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
}
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def number(value: float) -> str:
    """Write a bound: whole numbers in full, others short.

    >>> number(2**32), number(1.0), number(0.5)
    ('4294967296', '1', '0.5')
    """
    return str(int(value)) if value == int(value) else f"{value:g}"


def _wrong_value(key: str, kind: str, value: Any, context: dict[str, Any]) -> str:
    """Say which type, bound or form a value misses; empty for a kind of fault that has no sentence here."""
    if kind in _TYPES:
        hint = " Put it in quotes." if kind == "string_type" and isinstance(value, (bool, int, float)) else ""
        return f"must be {_TYPES[kind]}, not {shown(value)}.{hint}"
    if kind in _BOUNDS:
        limit, words = _BOUNDS[kind]
        hint = f" It is a share: {value / 100:g} is {value:g} %." if context[limit] == 1.0 and 1 < value <= 100 else ""
        return f"must be {words} {number(context[limit])}, not {shown(value)}.{hint}"
    if kind in ("too_short", "string_too_short"):
        return "must not be empty." if context["min_length"] == 1 else f"needs {context['min_length']} values."
    if kind == "too_long":
        return f"takes {context['max_length']} values, not {context['actual_length']}."
    if kind in ("string_pattern_mismatch", "string_too_long"):
        return f"no {shown(value)}. It is {_FORMS[key]}."
    return ""
