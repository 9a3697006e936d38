"""The recipes of docs/from-nni.md are valid as the page shows them."""

from __future__ import annotations

import re

from secateur.recipe.load import parse_recipe
from toy import ROOT

HEAD = """\
version: 1
model: ./dense
task: {data: {path: cmudict}, source: word, target: phonemes, max_source_tokens: 40, max_target_tokens: 40}
evaluation: {metrics: [per], max_new_tokens: 40}
"""


def test_the_pages_recipes_are_valid() -> None:
    text = (ROOT / "docs" / "from-nni.md").read_text(encoding="utf-8")
    fences = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    recipes = [parse_recipe(fence if fence.startswith("version") else HEAD + fence) for fence in fences]
    assert len(recipes) == 2
    rounds = [f"ticket-{index}{end}" for index in (1, 2, 3) for end in ("", "-train")]
    assert [stage.name for stage in recipes[1].stages] == [*rounds, "retrain"]
    assert recipes[1].stages[-1].train and recipes[1].stages[-1].train.distillation.map == "nearest"
