"""The reference page is what the schema says."""

from __future__ import annotations

from pathlib import Path

from secateur.recipe import reference, schema

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"


def test_the_page_holds_the_generated_reference():
    # To mend: replace what stands below "## Every key" by what `print(markdown(), end="")` prints.
    assert PAGE.read_text(encoding="utf-8").endswith(reference.markdown())


def test_every_part_and_every_key_is_told_and_explained():
    parts = [part for part in vars(schema).values() if isinstance(part, type) and issubclass(part, schema.Part)]
    assert set(reference.PARTS) == set(parts) - {schema.Part}
    for part in reference.PARTS:
        assert set(reference.comments()[part.__name__]) == set(part.written_keys()), part
        for key in part.written_keys():
            assert f"| `{key}` |" in reference.markdown()
