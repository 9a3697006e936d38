"""`secateur validate`."""

from __future__ import annotations

from pathlib import Path

import typer

from secateur.cli.options import RecipeFile, Set


def validate(recipe: RecipeFile, overrides: Set = None) -> None:
    """Check a recipe's text: every fault at once, with file and line. Needs neither torch nor the model.

    Example: `secateur validate recipes/g2p/report.yaml --set stages.dense.train.epochs=3`
    """
    from secateur.recipe.load import load_recipe

    file = Path(recipe) / "recipe.yaml" if (Path(recipe) / "manifest.json").exists() else Path(recipe)
    checked = load_recipe(file, overrides or [])
    typer.echo(f"{file}: valid, {len(checked.stages)} stages: {', '.join(stage.name for stage in checked.stages)}")
