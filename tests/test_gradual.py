"""Gradual pruning in a run: exact at its end, nested on the way, the same when it is broken and gone on with."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from secateur.errors import RecipeError, RunInterrupted, SecateurError
from secateur.gradual import GradualPruner
from secateur.masks.mask import MaskSet
from secateur.measure import plan
from toy import Toy

pytestmark = pytest.mark.usefixtures("no_card")

TRAIN = "{epochs: 4, learning_rate: 5.0e-3, batch_size: 4, precision: fp32, dropout: 0.1, save_every: 3}"  # 16 steps
STAGES = """
  - name: prune
    prune:
      schedule: SCHEDULE
      calibration: {rows: 6, batch_size: 3}
      groups:
        - {role: self_attention, sparsity: 0.9, score: SCORE}
        - {role: feed_forward, sparsity: 0.5, scope: tensor}
        - {role: lm_head, sparsity: 0.6, tie: TIE}
      train: TRAIN
"""
CUBIC = "{kind: cubic, start: 0.1, end: 0.8, every: 2}"
REGROW = "{kind: linear, end: 0.8, every: 2, regrow: true}"


def stages(schedule: str = CUBIC, *, score: str = "magnitude", tie: str = "view", train: str = TRAIN) -> str:
    words = {"SCHEDULE": schedule, "SCORE": score, "TIE": tie, "TRAIN": train}
    text = STAGES
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def run(toy: Toy, folder: Path, text: str, *callbacks: Any, **options: Any) -> Any:
    return toy.run(folder, *callbacks, stages=text, initialize="pretrained", keep="all", **options)


def learned(score: str, tie: str = "view") -> str:
    text = stages(REGROW, score=score, tie=tie)
    return text.replace("      train:", "      movement: {learning_rate: 0.1, regularization: 20.0}\n      train:")


def result(folder: Path, stage: str = "01-prune") -> tuple[dict[str, torch.Tensor], MaskSet]:
    place = folder / stage
    return load_file(place / "model" / "model.safetensors"), MaskSet.load(place / "masks.safetensors")


class Spy:
    """Remembers every mask set that a gradual pruning lays on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[float, MaskSet]] = []
        original = GradualPruner.prune

        def prune(pruner: GradualPruner, share: float) -> MaskSet:
            masks = original(pruner, share)
            self.seen.append((share, masks))
            return masks

        patch.setattr(GradualPruner, "prune", prune)


@pytest.mark.parametrize("tie", ["view", "both", "untie"])
@pytest.mark.parametrize("score", ["magnitude", "taylor"])
def test_the_end_is_exact_and_the_way_is_nested(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: str, tie: str
) -> None:
    spy = Spy(monkeypatch)
    entry = run(toy, tmp_path / "run", stages(score=score, tie=tie)).manifest["stages"][0]
    for group in entry["groups"]:
        assert group["num_removed"] == round(group["sparsity"] * group["num_elements"])
    assert entry["train"]["steps"] == 16 and [share for share, _ in spy.seen][-1] == 1.0
    for (_, earlier), (_, later) in zip(spy.seen, spy.seen[1:], strict=False):
        assert earlier.num_removed < later.num_removed
        assert all(bool((earlier.masks[path] | ~mask).all()) for path, mask in later.masks.items())
    weights, masks = result(tmp_path / "run")
    for path, mask in masks.masks.items():
        if masks.modes[path] == "hold":
            assert not weights[path][~mask].any(), path
    assert masks.modes["shared.weight" if tie == "both" else "lm_head.weight"] == ("view" if tie == "view" else "hold")


@pytest.fixture(scope="module")
def unbroken_run(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """Run stages from beginning to end, once: several tests compare with it."""

    @cache
    def whole(text: str) -> tuple[Path, Any]:
        folder = tmp_path_factory.mktemp("whole") / "run"
        return folder, run(toy, folder, text)

    return whole


@pytest.mark.parametrize(
    "text",
    [stages(CUBIC, score="taylor"), stages(REGROW, score="taylor"), learned("movement"), learned("soft_movement")],
    ids=["nested", "regrow", "movement", "soft_movement"],
)
@pytest.mark.parametrize("stop", [1, 5, 8, 13, 15])
def test_a_broken_run_ends_with_the_same_bits(
    toy: Toy, tmp_path: Path, unbroken_run: Callable[[str], tuple[Path, Any]], text: str, stop: int
) -> None:
    folder, whole = unbroken_run(text)
    steps: list[int] = []

    class Count(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            steps.append(state.global_step)

    with pytest.raises(RunInterrupted):
        run(toy, tmp_path / "broken", text, Count(), should_stop=lambda: len(steps) >= stop)
    assert steps[-1] == stop
    resumed = run(toy, tmp_path / "broken", text, resume=True)
    assert resumed.manifest["stages"][0]["groups"] == whole.manifest["stages"][0]["groups"] != []
    (mine, masks), (theirs, others) = result(tmp_path / "broken"), result(folder)
    assert masks.digest() == others.digest()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


class Shrink(TrainerCallback):
    """Makes what is in smaller than what is out, once: magnitude has a reason then to exchange the two."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name, layer in kwargs["model"].named_modules():
            if state.global_step == 6 and "SelfAttention" in name and hasattr(layer, "mask"):
                with torch.no_grad():
                    layer.weight[layer.mask] *= 1e-6


@pytest.mark.parametrize("score", ["magnitude", "taylor", "fisher"])
def test_weights_may_come_back(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: str) -> None:
    spy = Spy(monkeypatch)
    reason = [Shrink()] if score == "magnitude" else []  # gradients change by themselves
    run(toy, tmp_path / "run", stages(REGROW, train=TRAIN.replace("5.0e-3", "5.0e-2"), score=score), *reason)
    back = sum(
        int((~earlier.masks[path] & mask).sum())
        for (_, earlier), (_, later) in zip(spy.seen, spy.seen[1:], strict=False)
        for path, mask in later.masks.items()
        if "SelfAttention" in path  # the others go by magnitude
    )
    assert back > 0
    weights, masks = result(tmp_path / "run")
    holds = {path for path, mode in masks.modes.items() if mode == "hold"}
    assert "lm_head.weight" not in holds and len(holds) > 4
    assert all(not weights[path][~masks.masks[path]].any() for path in holds)


@pytest.mark.parametrize("optimizer", ["adamw, weight_decay: 0.1", "sgd, momentum: 0.9", "adafactor"])
def test_what_is_out_keeps_its_values(toy: Toy, tmp_path: Path, optimizer: str) -> None:
    """Neither momentum nor weight decay moves them; the tied head's go on as the embedding asks."""
    seen: list[dict[str, tuple[torch.Tensor, torch.Tensor]]] = []

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            layers = {name: layer for name, layer in kwargs["model"].named_modules() if hasattr(layer, "mask")}
            seen.append({name: (layer.weight.detach().clone(), layer.mask) for name, layer in layers.items()})

    train = TRAIN.replace("5.0e-3", "5.0e-2").replace("epochs", f"optimizer: {optimizer}, epochs")
    run(toy, tmp_path / "run", stages(REGROW, train=train), Watch())
    still, moved = 0, 0
    for earlier, later in pairwise(seen):
        for name in earlier.keys() & later.keys():
            (before, mask), (after, now) = earlier[name], later[name]
            if mask is not now or name == "lm_head":  # other masks: a step of the pruning lies between
                continue
            assert torch.equal(before[~mask], after[~mask]), name
            still += int((~mask).sum())
            moved += int((before[mask] != after[mask]).sum())
    assert still > 100 and moved > 100


def ends_alike_when_stopped_between(toy: Toy, place: Path, text: str) -> None:
    """Run stages `first` and `prune` at once, and with a stop between them."""
    run(toy, place / "whole", text)
    done = place / "broken" / "01-first" / "stage.json"
    with pytest.raises(RunInterrupted):
        run(toy, place / "broken", text, should_stop=done.exists)
    assert not (place / "broken" / "02-prune" / "work").exists()
    run(toy, place / "broken", text, resume=True)
    (mine, masks), (theirs, others) = (result(place / name, "02-prune") for name in ("broken", "whole"))
    assert masks.digest() == others.digest()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("score", ["movement", "soft_movement"])
def test_scores_that_are_learned_after_a_pruning_do_not_know_whether_the_run_was_stopped(
    toy: Toy, tmp_path: Path, score: str
) -> None:
    text = "\n  - name: first\n    prune: {groups: [{role: self_attention, sparsity: 0.6}]}" + learned(score)
    ends_alike_when_stopped_between(toy, tmp_path, text)


@pytest.mark.parametrize("judged", ["score: lamp", "unit: row"])
def test_what_went_before_is_forgotten_where_weights_may_come_back(toy: Toy, tmp_path: Path, judged: str) -> None:
    """Before the first step that writes, taking a hold off gives back what it removed."""
    text = f"""
  - name: first
    prune: {{groups: [{{role: self_attention, sparsity: 0.5, score: random}}]}}
  - name: prune
    prune:
      schedule: {{kind: linear, every: 1, end: 0.8, regrow: true}}
      groups: [{{role: self_attention, sparsity: 0.8, {judged}}}]
      train: {TRAIN.replace("epochs", "warmup_steps: 1, epochs")}
"""
    ends_alike_when_stopped_between(toy, tmp_path, text)


def test_soft_movement_counts_what_is_left(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier stage removed is no vote of the scores: at first nothing more goes."""
    spy = Spy(monkeypatch)
    first = "\n  - name: first\n    prune: {groups: [{role: self_attention, sparsity: 0.6}]}"
    run(toy, tmp_path / "run", first + learned("soft_movement").replace("20.0", "0.0").replace("0.1,", "1.0e-6,"))
    _, before = result(tmp_path / "run", "01-first")
    (_, after), *_ = spy.seen
    assert all(torch.equal(after.masks[path], mask) for path, mask in before.masks.items())


@pytest.mark.parametrize("tie", ["view", "untie"])
@pytest.mark.parametrize("score", ["movement", "soft_movement"])
def test_learned_scores_end_exact_and_choose_otherwise(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: str, tie: str
) -> None:
    spy = Spy(monkeypatch)
    text = learned(score, tie).replace("lm_head, sparsity: 0.6,", f"lm_head, sparsity: 0.6, score: {score},")
    entry = run(toy, tmp_path / "run", text).manifest["stages"][0]
    for group in entry["groups"]:
        assert group["num_removed"] == round(group["sparsity"] * group["num_elements"])
    weights, masks = result(tmp_path / "run")
    for path, mask in masks.masks.items():
        assert masks.modes[path] == ("view" if path == "lm_head.weight" and tie == "view" else "hold")
        if masks.modes[path] == "hold":
            assert not weights[path][~mask].any(), path
    run(toy, tmp_path / "other", stages(REGROW, tie=tie))
    _, others = result(tmp_path / "other")
    attention = next(path for path in masks.masks if "SelfAttention" in path)
    assert not torch.equal(masks.masks[attention], others.masks[attention])
    assert not any(path.endswith("scores") for path in weights) and len(spy.seen) > 2


def test_what_went_before_counts_and_stays(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    first = "\n  - name: first\n    prune: {groups: [{role: self_attention, sparsity: 0.6}]}\n"
    run(toy, tmp_path / "run", first + stages(REGROW))
    _, before = result(tmp_path / "run", "01-first")
    total = sum(mask.numel() for mask in before.masks.values())
    gone = before.num_removed / total
    for share, masks in spy.seen:
        removed = sum(masks.removed(path) for path in before.masks)
        assert removed == round((gone + share * (0.9 - gone)) * total)
        assert all(not bool((masks.masks[path] & ~mask).any()) for path, mask in before.masks.items())


def test_rows_are_counted_whole_where_single_weights_went_before(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    text = f"""
  - name: first
    prune: {{groups: [{{role: feed_forward, stack: encoder, match: "*.wi.weight", sparsity: 0.5, scope: tensor}}]}}
  - name: prune
    prune:
      schedule: {{kind: linear, end: 0.8, every: 2}}
      groups: [{{role: feed_forward, stack: encoder, match: "*.wi.weight", unit: row, sparsity: 0.5}}]
      train: {TRAIN}
"""
    run(toy, tmp_path / "run", text)
    _, before = result(tmp_path / "run", "01-first")
    rows = sum(mask.shape[0] for mask in before.masks.values())
    gone = sum(int((~mask.any(1)).sum()) for mask in before.masks.values())
    for share, masks in spy.seen:
        removed = sum(int((~masks.masks[path].any(1)).sum()) for path in before.masks)
        assert removed == round(gone + share * (0.5 * rows - gone))


def test_whole_units_go_step_by_step(toy: Toy, tmp_path: Path) -> None:
    text = f"""
  - name: prune
    prune:
      schedule: {CUBIC}
      calibration: {{rows: 6, batch_size: 3}}
      groups: [{{unit: ffn_neuron, sparsity: 0.5, score: taylor}}]
      train: {TRAIN}
  - name: cut
    cut: {{rows: 3}}
"""
    entry = run(toy, tmp_path / "run", text).manifest["stages"][-1]
    assert entry["cut"]["proof"]["relative_difference"] < 1e-5


def test_whole_units_that_are_gone_count_on_the_way(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    text = f"""
  - name: first
    prune: {{groups: [{{unit: ffn_neuron, sparsity: 0.4, score: l2_norm}}]}}
  - name: prune
    prune:
      schedule: {{kind: linear, end: 0.8, every: 2}}
      groups: [{{unit: ffn_neuron, sparsity: 0.8, score: l2_norm}}]
      train: {TRAIN}
"""
    run(toy, tmp_path / "run", text)
    _, before = result(tmp_path / "run", "01-first")
    path = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
    assert len(spy.seen) > 2
    for share, masks in spy.seen:
        gone = int((~masks.masks[path].any(0)).sum())
        assert gone == round((0.4 + share * 0.4) * before.masks[path].shape[1])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (stages("{kind: one_shot}"), "one_shot prunes before any training"),
        (stages(CUBIC, train="null"), "train: is missing: cubic prunes while it trains"),
        (stages("{kind: cubic, start: 0.8, end: 0.5}"), "start: 0.8 is not before end, 0.5"),
        (stages("{kind: one_shot, every: 3}", train="null"), "every: cannot act: one_shot prunes at once"),
        (stages(REGROW, tie="both"), "cannot come back"),
        (stages(score="movement"), "what went may come back. Give the stage a train block and"),
        (stages("{kind: one_shot}", score="soft_movement", train="null"), "soft_movement is learned while"),
        (learned("magnitude"), "movement: cannot act: no group's score is movement or soft_movement"),
        (stages().replace("sparsity: 0.5,", "pattern: '2:4',"), "cannot go step by step"),
        (
            f"\n  - name: prune\n    prune: {{preset: asymmetric, schedule: {CUBIC}, train: {TRAIN}}}\n",
            "layers stay even",
        ),
        (stages(train=TRAIN.replace("epochs", "rewind: given, epochs")), "cannot act inside a gradual pruning"),
        (stages(train=TRAIN.replace("epochs", "teacher: later, distillation: {logits: 0}, epochs")), "asks nothing"),
        (stages(train=TRAIN.replace("epochs", "teacher: prune, epochs")), "is not done before this one"),
    ],
)
def test_what_cannot_go_step_by_step_is_refused(toy: Toy, text: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        toy.recipe(text, initialize="pretrained")


REWIND = f"""
  - name: dense
    train: {TRAIN}
  - name: more
    train: {TRAIN}
  - name: prune
    prune: {{groups: [{{role: self_attention, sparsity: 0.5}}, {{role: lm_head, sparsity: 0.5, tie: TIE}}]}}
  - name: ticket
    train: {{rewind: STAGE, epochs: 1, learning_rate: 1.0e-30, batch_size: 4, precision: fp32, dropout: 0.0}}
"""


@pytest.mark.parametrize("tie", ["view", "untie", "both"])
@pytest.mark.parametrize("stage", ["dense", "given"])
@pytest.mark.parametrize("initialize", ["random", "pretrained"])
def test_a_ticket_starts_from_the_weights_of_the_stage(
    toy: Toy, tmp_path: Path, tie: str, stage: str, initialize: str
) -> None:
    from secateur.artifacts.loading import load_model, random_model

    text = REWIND.replace("TIE", tie).replace("STAGE", stage)
    toy.run(tmp_path / "run", stages=text, initialize=initialize, keep="all")
    if stage == "dense":
        earlier = load_model(str(tmp_path / "run" / "01-dense" / "model"))
    else:
        earlier = random_model(str(toy.start), seed=7) if initialize == "random" else load_model(str(toy.start))
    source = dict(earlier.named_parameters(remove_duplicate=False))
    _, masks = result(tmp_path / "run", "04-ticket")
    found = dict(load_model(str(tmp_path / "run" / "04-ticket" / "model")).named_parameters())
    scale = 24**-0.5 if "lm_head.weight" in found else 1.0
    for path, parameter in found.items():
        expected = source[path] * masks.masks[path] if path in masks else source[path]
        expected = expected * (scale if path == "lm_head.weight" else 1.0)
        torch.testing.assert_close(parameter, expected, rtol=1e-6, atol=1e-12)


def test_the_stage_that_is_gone_back_to_stays_until_then(toy: Toy, tmp_path: Path) -> None:
    text = REWIND.replace("TIE", "view").replace("STAGE", "dense")
    toy.run(tmp_path / "run", stages=text)
    toy.run(tmp_path / "all", stages=text, keep="all")
    (mine, _), (theirs, _) = result(tmp_path / "run", "04-ticket"), result(tmp_path / "all", "04-ticket")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert not (tmp_path / "run" / "01-dense" / "model").exists()


def test_given_weights_do_not_fit_after_a_cut(toy: Toy) -> None:
    text = REWIND.replace("TIE", "view").replace("STAGE", "given")
    head, ticket = text.split("  - name: ticket")
    units = "  - name: units\n    prune: {groups: [{unit: ffn_neuron, sparsity: 0.5, score: l2_norm}]}\n"
    with pytest.raises(RecipeError, match="the given weights no longer fit"):
        toy.recipe(f"{head}{units}  - name: cut\n    cut: {{}}\n  - name: ticket{ticket}")


@pytest.mark.parametrize(
    ("stage", "told"), [("later", 'no stage is called "later"'), ("ticket", "is not done before this one")]
)
def test_a_wrong_time_is_refused(toy: Toy, stage: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        toy.recipe(REWIND.replace("TIE", "view").replace("STAGE", stage))


def test_a_schedule_whose_steps_are_too_far_apart_is_told_before_the_stages(toy: Toy, tmp_path: Path) -> None:
    """And by the plan, in the same words."""
    text = f"  - name: dense\n    train: {TRAIN}{stages('{kind: cubic}')}"
    told = r"stages\.prune\.prune\.schedule: every 50 steps, all would go at once.*16 steps in all.*Lower every"
    with pytest.raises(RecipeError, match=told):
        run(toy, tmp_path / "run", text)
    assert not (tmp_path / "run" / "01-dense").exists()
    with pytest.raises(RecipeError, match=told):
        plan(toy.recipe(text, initialize="pretrained"))


@pytest.mark.parametrize("schedule", [CUBIC, REGROW])
def test_a_training_that_a_callback_ends_early_is_not_taken_for_pruned(toy: Toy, tmp_path: Path, schedule: str) -> None:
    class End(TrainerCallback):
        last = 9

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step >= self.last

    with pytest.raises(SecateurError, match=r"after step 9, and the pruning is over after 13.* until step 14"):
        run(toy, tmp_path / "run", stages(schedule), End())
    End.last = 14
    entry = run(toy, tmp_path / "run", stages(schedule), End(), resume=True).manifest["stages"][0]
    assert entry["train"]["steps"] == 14
    assert all(group["num_removed"] == round(group["sparsity"] * group["num_elements"]) for group in entry["groups"])
