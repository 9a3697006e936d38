"""Lottery tickets: rounds become plain stages, whatever names them means the last, and faults stand where they are."""

from __future__ import annotations

import pytest

from secateur.errors import RecipeError
from secateur.recipe import rules
from secateur.recipe.load import check_recipe, dump_recipe, parse_recipe
from secateur.recipe.rounds import names_of
from secateur.recipe.schema import Recipe, Stage

HEAD = """\
version: 1
model: ./m
task: {data: {path: ./rows}, source: a, target: b, max_source_tokens: 8, max_target_tokens: 8}
evaluation: {metrics: [per], max_new_tokens: 4}
stages:
"""
TRAIN = "epochs: 1, learning_rate: 1.0e-3, batch_size: 4"
DENSE = f"  - {{name: dense, train: {{{TRAIN}}}}}\n"
ENTRIES = (
    "[{op_types: [Linear], sparse_ratio: 0.75, min_sparse_ratio: 0.5, max_sparse_ratio: 0.9375, "
    "target_settings: {bias: {sparse_ratio: 0.5}}}]"
)
AFTER = f"  - {{name: after, train: {{{TRAIN}, teacher: ticket, rewind: ticket}}}}\n"


def ticket(*, pruner: str = "name: level, total_iteration: 3", train: str = TRAIN, entries: str = ENTRIES) -> str:
    return f"""\
  - name: ticket
    prune:
      nni_config_list: {entries}
      nni_pruner: {{schedule: lottery_ticket, {pruner}}}
      train: {{{train}}}
"""


def recipe_of(stages: str, *overrides: str) -> Recipe:
    return parse_recipe(HEAD + stages, name="r.yaml", overrides=overrides)


def faults(stages: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        recipe_of(stages, *overrides)
    return list(caught.value.faults)


def test_rounds_become_plain_stages_that_read_back_as_they_are() -> None:
    recipe = recipe_of(DENSE + ticket() + AFTER)
    names = ["dense", *(f"ticket-{index}{end}" for index in (1, 2, 3) for end in ("", "-train")), "after"]
    assert [stage.name for stage in recipe.stages] == names
    assert not list(rules.findings(recipe.model_dump(mode="json")))
    text = dump_recipe(recipe)
    assert "lottery_ticket" not in text and parse_recipe(text) == recipe
    after = recipe.stages[-1].train
    assert after and (after.teacher, after.rewind) == ("ticket-3-train", "ticket-3-train")


def test_after_a_round_so_much_is_gone_of_the_original() -> None:
    recipe = recipe_of(ticket(pruner="name: l1_norm, total_iteration: 2"))
    entries = [stage.prune.nni_config_list[0] for stage in recipe.stages if stage.prune and stage.prune.nni_config_list]
    assert [entry["sparse_ratio"] for entry in entries] == [0.5, 0.75]
    assert [entry["max_sparse_ratio"] for entry in entries] == [0.75, 0.9375]
    assert [entry["min_sparse_ratio"] for entry in entries] == pytest.approx([1 - 0.5**0.5, 0.5])
    assert [entry["target_settings"]["bias"]["sparse_ratio"] for entry in entries] == pytest.approx([1 - 0.5**0.5, 0.5])
    assert all(stage.prune.nni_pruner.name == "l1_norm" for stage in recipe.stages if stage.prune)


@pytest.mark.parametrize(
    ("before", "more", "train", "named"),
    [
        ("", "", TRAIN, "given"),
        (DENSE, "", TRAIN, "dense"),
        (DENSE + "  - {name: look, evaluate: {}}\n", "", TRAIN, "dense"),
        (DENSE, "", TRAIN + ", rewind: given", "given"),
        (DENSE, ", reset_weight: true", TRAIN, "dense"),
        (DENSE, ", reset_weight: false", TRAIN, None),
        (ticket().replace("ticket\n", "first\n"), "", TRAIN, "first-3-train"),
    ],
    ids=["first", "after a stage", "past what changes nothing", "named", "said", "off", "after rounds"],
)
def test_each_training_starts_from_the_weights_before_the_rounds(
    before: str, more: str, train: str, named: str | None
) -> None:
    recipe = recipe_of(before + ticket(pruner="name: level, total_iteration: 2" + more, train=train))
    trainings = [stage.train for stage in recipe.stages if stage.name in ("ticket-1-train", "ticket-2-train")]
    assert [train.rewind for train in trainings if train] == [named, named]


def test_an_override_reaches_the_stage_as_it_is_written_and_each_stage_that_was_saved() -> None:
    few = recipe_of(ticket(), "stages.ticket.prune.nni_pruner.total_iteration=1")
    assert [stage.name for stage in few.stages] == ["ticket-1", "ticket-1-train"]
    saved = dump_recipe(recipe_of(ticket()))
    longer = parse_recipe(saved, overrides=["stages.ticket-2-train.train.epochs=3"])
    assert [stage.train.epochs for stage in longer.stages if stage.train] == [1.0, 3.0, 1.0]


def test_a_later_stage_may_name_one_round() -> None:
    recipe = recipe_of(ticket() + AFTER.replace("teacher: ticket, rewind: ticket", "rewind: ticket-2-train"))
    assert recipe.stages[-1].train and recipe.stages[-1].train.rewind == "ticket-2-train"
    (fault,) = faults(ticket() + AFTER.replace("teacher: ticket, rewind: ticket", "rewind: ticket-4-train"))
    assert 'no stage is called "ticket-4-train"' in fault


def test_a_recipe_made_in_python_is_written_out_too() -> None:
    plain = recipe_of(DENSE)
    assert check_recipe(plain) is plain
    written = recipe_of(ticket(pruner="name: level, total_iteration: 1"))
    prune, train = written.stages[0].prune, written.stages[1].train
    assert prune and train
    around = prune.nni_pruner.model_copy(update={"schedule": "lottery_ticket", "total_iteration": 1})
    inner = train.model_copy(update={"rewind": None})
    whole = Stage(name="ticket", prune=prune.model_copy(update={"nni_pruner": around, "train": inner}))
    assert check_recipe(written.model_copy(update={"stages": (whole,)})) == written


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        (ticket(pruner="name: level"), "r.yaml:9 stages.ticket.prune.nni_pruner.total_iteration: is missing: lottery_"),
        (ticket(pruner="total_iteration: 100"), "total_iteration: must be at most 99, not 100."),
        (ticket(pruner="name: slim, total_iteration: 2, training_steps: 3"), "schedule: slim says itself when"),
        (ticket(pruner="name: movement, total_iteration: 2"), "schedule: movement says itself when"),
        (ticket(pruner="total_iteration: 2, interval_steps: 3"), "interval_steps: cannot act with level and lottery_"),
        (ticket(entries="[{op_types: [Linear], sparse_threshold: 0.1}]"), "leaves open how much goes by round"),
        (
            ticket(pruner="total_iteration: 2, reset_weight: false", train=TRAIN + ", rewind: given"),
            "r.yaml:10 stages.ticket.prune.train.rewind: cannot act: reset_weight is false.",
        ),
        (ticket().replace(f"      train: {{{TRAIN}}}\n", ""), "train: is missing: this pruner trains in every round"),
        (ticket() + "  - {name: ticket-2, evaluate: {}}\n", 'a round of it is called "ticket-2", and so is stage 1.'),
        (ticket().replace("ticket\n", f"{'t' * 75}\n"), "name: is too long: its last round is called"),
        (
            "  - {name: a, prune: {groups: [{role: norm, sparsity: 0.1}], nni_pruner: {total_iteration: 2}}}\n",
            "nni_pruner: cannot act without nni_config_list",
        ),
    ],
)  # fmt: skip
def test_faults_stand_where_the_stage_is_written(stages: str, told: str) -> None:
    assert any(told in fault for fault in faults(stages)), faults(stages)


@pytest.mark.parametrize("stage", [{}, {"name": 3}, {"name": "a", "prune": 3}, {"name": "a", "prune": {}}])
def test_what_has_no_rounds_is_called_by_its_own_name(stage: dict[str, object]) -> None:
    assert names_of(stage) == ([] if stage.get("name") != "a" else ["a"])
