"""A recipe is found by its file, its run, or itself, and its paths come out whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from secateur.errors import RecipeError
from secateur.recipe.open import RECIPE, open_recipe, resolve_paths
from toy import ROOT

TINY = ROOT / "recipes" / "tiny" / "report.yaml"


def test_paths_come_out_whole(tmp_path: Path) -> None:
    recipe = open_recipe(TINY)
    assert recipe.model == str(ROOT / "recipes" / "tiny" / "start") and recipe.task.data.path == "cmudict"
    other = recipe.model_copy(update={"model": "google-t5/t5-small"})
    assert resolve_paths(other, tmp_path).model == "google-t5/t5-small"
    missing = recipe.model_copy(update={"model": "./missing"})
    assert resolve_paths(missing, tmp_path).model == str(tmp_path / "missing")


def test_a_run_folder_stands_for_its_recipe(tmp_path: Path) -> None:
    shutil.copy(TINY, tmp_path / RECIPE)
    overrides = ["seed=7", f"model={ROOT / 'recipes' / 'tiny' / 'start'}"]
    assert open_recipe(tmp_path, overrides) == open_recipe(TINY, ["seed=7"])
    assert open_recipe(open_recipe(TINY)) == open_recipe(TINY)
    assert open_recipe(open_recipe(TINY), overrides) == open_recipe(TINY, overrides)
    with pytest.raises(RecipeError, match="--set sed=7"):
        open_recipe(open_recipe(TINY), ["sed=7"])


def test_a_folder_without_a_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=str(tmp_path)):
        open_recipe(tmp_path)
