"""`secateur plan`."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from secateur.cli.options import Json, RecipeFile, Set


def plan(recipe: RecipeFile, overrides: Set = None, as_json: Json = False) -> None:
    """Tell what a recipe would do, from its model's config.json alone: what goes, counts, steps, disk, memory.

    Example: `secateur plan recipes/report/t5-small-billsum.yaml --set model=path/to/t5-small`
    """
    from secateur.recipe.open import open_recipe

    checked = open_recipe(recipe, overrides or [])  # its faults need no torch, which takes seconds to load
    from secateur import console, measure

    found = measure.plan(checked)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        console.print_plan(found)
