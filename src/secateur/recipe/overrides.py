"""Write a `--set a.b=c` into a recipe that has been read but not yet checked."""

from __future__ import annotations

from typing import Any

from secateur.recipe.faults import stage_names
from secateur.recipe.yaml_tree import Fault, Path, Tree, read_tree, shown
from secateur.registry import suggest


def apply_override(tree: Tree, argument: str) -> None:
    """Write one value into a tree, and remember that it came from the command line.

    A path that the schema does not know is written too: the check that follows tells it as it tells any unknown key.

    Args:
        tree: changed in place; what cannot be written becomes one of its faults.
        argument: `a.b=c`; the path goes through keys, list indexes from 0 and stages' names; the value is YAML.

    >>> tree = read_tree("stages: [{name: dense, train: {epochs: 15}}]", "recipe.yaml")
    >>> apply_override(tree, "stages.dense.train.epochs=1")
    >>> tree.values, tree.origin(("stages", 0, "train", "epochs"))
    ({'stages': [{'name': 'dense', 'train': {'epochs': 1}}]}, '--set stages.dense.train.epochs=1')
    """
    origin = f"--set {argument}"
    dots, equals, text = argument.partition("=")
    steps = [step.strip() for step in dots.split(".")]
    if not equals or not all(steps):
        tree.faults.append(Fault(origin, (), "is not of the form a.b=c."))
        return
    value = read_tree(text, origin)
    if value.faults:
        tree.faults += [Fault(origin, (), fault.message) for fault in value.faults]
        return
    path = _set(tree, steps, value.values, origin)
    if path is not None:
        tree.origins = {known: where for known, where in tree.origins.items() if known[: len(path)] != path}
        tree.origins[path] = origin
        tree.faults = [fault for fault in tree.faults if fault.path[: len(path)] != path]


def _set(tree: Tree, steps: list[str], value: Any, origin: str) -> Path | None:
    """Walk to the last step's parent, making mappings where nothing stands, and write; none when the way is barred."""
    path: Path = ()
    place = tree.values
    for position, step in enumerate(steps):
        key, trouble = _step(place, step, is_stages=path == ("stages",))
        if key is None:
            tree.faults.append(Fault(origin, path, trouble))
            return None
        path = (*path, key)
        if position == len(steps) - 1:
            place[key] = value
        else:
            if isinstance(place, dict) and place.get(key) is None:
                place[key] = {}
                tree.origins[path] = origin
            place = place[key]
    return path


def _step(place: Any, step: str, *, is_stages: bool) -> tuple[str | int | None, str]:
    """Turn one step of a path into a key or an index of the place it is taken at, or say why it leads nowhere."""
    if isinstance(place, dict):
        return step, ""
    if not isinstance(place, list):
        return None, f"is {shown(place)} and has nothing called {shown(step)} inside."
    if step.isascii() and step.isdigit() and int(step) < len(place):
        return int(step), ""
    known = stage_names(place) if is_stages else []
    if step in known:
        return known.index(step), ""
    if is_stages:
        words = [name for name in known if name]
        return (
            None,
            f"no stage {shown(step)}. {suggest(step, words)}Stages: {', '.join(words)}; or 0 to {len(place) - 1}.",
        )
    return None, f"is a list of {len(place)}: an index from 0 to {len(place) - 1} is needed, not {shown(step)}."
