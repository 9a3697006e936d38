"""The timer of shapes: real models in a real engine, timed once, and nothing left behind but the times."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.fields import load_split
from secateur.search.shapes import Shape
from secateur.shape_timer import ShapeTimer
from toy import Toy

pytestmark = pytest.mark.usefixtures("no_card")


@pytest.mark.parametrize("engine", ["hf-fp32", "ct2-int8"])
def test_shapes_are_timed_once(toy: Toy, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine.startswith("ct2"):
        pytest.importorskip("ctranslate2", reason="needs secateur[ctranslate2]")
    shapes = [Shape(2, 2, 2, 8), Shape(1, 1, 2, 4)]

    def timer() -> ShapeTimer:
        recipe = toy.recipe()
        pairs = load_split(recipe, "validation")
        return ShapeTimer(tmp_path, str(toy.start), recipe, pairs, engine=engine, threads=1, repeats=1)

    found = timer().times(shapes)
    assert list(found) == shapes and all(taken > 0 for taken in found.values())
    assert [file.name for file in tmp_path.iterdir()] == ["times.json"]
    assert 1 <= timer().new_tokens <= 3  # the recipe's limit; the mean target is longer
    monkeypatch.setattr(ShapeTimer, "_time", None)
    assert timer().times(shapes) == found
