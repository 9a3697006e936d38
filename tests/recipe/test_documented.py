"""The recipes that the pages show are valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from secateur.recipe.load import parse_recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WHOLE = re.compile(r"^```yaml\n(version:.*?)^```", re.MULTILINE | re.DOTALL)
SHOWN = [
    pytest.param(text, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, text in enumerate(WHOLE.findall(page.read_text(encoding="utf-8")))
    if ": ...\n" not in text  # shortened
]


@pytest.mark.parametrize("text", SHOWN)
def test_shown_recipes_are_valid(text: str) -> None:
    assert parse_recipe(text, name="shown.yaml").stages


def test_the_first_pages_show_one() -> None:
    assert len(SHOWN) >= 3  # README, index, quickstart
