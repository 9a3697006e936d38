"""What pruning by shards cannot do is refused by name, all of it at once, with what to do instead."""

from __future__ import annotations

import pytest

from secateur.errors import RecipeError
from secateur.recipe.load import parse_recipe
from secateur.shard_recipe import check_by_shards, parse_group, recipe_of_groups

RECIPE = """
version: 1
model: m
initialize: {initialize}
task: {{data: {{path: d}}, source: a, target: b, max_source_tokens: 4, max_target_tokens: 4}}
evaluation: {{metrics: [per], max_new_tokens: 3}}
stages:
"""


def test_every_part_that_needs_the_model_is_named() -> None:
    stages = """
  - name: dense
    train: {epochs: 1, learning_rate: 0.1, batch_size: 2}
  - name: heads
    prune: {groups: [{unit: head, role: self_attention, sparsity: 0.5}, {role: norm, sparsity: 0.1, score: taylor}]}
  - name: rows
    prune: {groups: [{role: feed_forward, sparsity: 0.5, scope: row}]}
  - name: slow
    prune:
      groups: [{role: feed_forward, pattern: "2:4"}, {role: cross_attention, block: [2, 2], sparsity: 0.5}]
  - name: gradual
    prune:
      groups: [{role: feed_forward, sparsity: 0.7}]
      schedule: {kind: cubic}
      train: {epochs: 1, learning_rate: 0.1, batch_size: 2}
  - name: small
    cut: {}
  - name: packed
    pack: {}
  - name: shipped
    export: {to: onnx}
  - name: final
    evaluate: {split: test}
"""
    with pytest.raises(RecipeError) as found:
        check_by_shards(parse_recipe(RECIPE.format(initialize="random") + stages))
    starts = [fault.partition(":")[0] for fault in found.value.faults]
    assert starts == [
        "initialize",
        "stages.dense.train",
        "stages.heads.prune.groups.0.unit",
        "stages.heads.prune.groups.1.score",
        "stages.rows.prune.groups.0.scope",
        "stages.slow.prune.groups.0.pattern",
        "stages.slow.prune.groups.1.block",
        "stages.gradual.prune.schedule",
        "stages.small.cut",
        "stages.packed.pack",
        "stages.shipped.export",
        "stages.final.evaluate",
    ]
    assert "secateur evaluate" in str(found.value) and "secateur run" in str(found.value)


def test_groups_make_a_recipe_and_their_faults_are_told_by_number() -> None:
    recipe = recipe_of_groups("m", [parse_group("role=lm_head,sparsity=0.8,tie=both")])
    check_by_shards(recipe)
    assert recipe.stages[0].prune is not None and recipe.stages[0].prune.groups[0].tie == "both"
    with pytest.raises(RecipeError) as found:
        recipe_of_groups("m", [{"role": "norm", "sparsity": 0.1}, {"role": "norms", "sparcity": 0.1}, {"sparsity": 2}])
    told = found.value.faults
    assert all(fault.startswith(("group 2 ", "group 3 ")) for fault in told)
    assert any('Did you mean "sparsity"' in fault for fault in told)
    with pytest.raises(RecipeError, match="nothing to prune"):
        recipe_of_groups("m", [])


@pytest.mark.parametrize("text", ["role", "role=", "=a", "role=norm,,sparsity=0.1", "layers=[0,1", "role=a,role=b"])
def test_what_is_no_group_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="--group"):
        parse_group(text)
