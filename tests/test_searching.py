"""A search meets its budget, writes a recipe that runs and says why, and goes on where it was stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from secateur import sensing, short_runs
from secateur.dues import spend_visibly
from secateur.errors import CheckpointError, RunInterrupted, SecateurError
from secateur.files import read_json, write_json
from secateur.measure import plan
from secateur.recipe.load import load_recipe
from secateur.reporter import Reporter
from secateur.search.curves import Curve, spend
from secateur.searching import search
from secateur.short_runs import retraining_of
from toy import Killed, Toy, Unbroken

pytestmark = pytest.mark.usefixtures("no_card")


def run(toy: Toy, out: Path, budget: tuple[str, float], **options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"sparsities": [0.5, 0.9], "device": "cpu", **options}
    return search(str(toy.start), toy.recipe(), out=out, budget=budget, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["counted", "stored"])
@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_the_recipe_meets_the_budget(toy: Toy, tmp_path: Path, kind: str, scope: str) -> None:
    found = run(toy, tmp_path / "out", (kind, 0.5), scope=scope)
    file = tmp_path / "out" / "recipe.yaml"
    planned = plan(str(file)).stages[0]
    reached = planned.counted_ratio if kind == "counted" else planned.stored_ratio_packed
    assert 0.498 < reached <= 0.5
    assert found["num_removed"] == sum(group.num_removed for group in planned.groups)
    assert ("lm_head" in found["sparsities"]) == (kind == "counted")  # under a view its zeros store nothing
    text = file.read_text()
    assert text.startswith(f"# Made by secateur search for a {kind} ratio of 0.5")
    for name, reason in found["reasons"].items():
        assert f"# {reason}" in text and name in reason
    stages = load_recipe(file).stages
    assert stages[1].train.teacher == "given"  # type: ignore[union-attr]
    assert [stage.name for stage in stages] == ["prune", "retrain", "final"]  # measured at the end as its base is


def test_a_pruned_model_is_refused(toy: Toy, unbroken: Unbroken, tmp_path: Path) -> None:
    for model in (unbroken.folder, unbroken.folder / "model"):
        for ask in (
            lambda model=model: search(str(model), toy.recipe(), out=tmp_path / "out", budget=("counted", 0.5)),
            lambda model=model: sensing.sensitivity(str(model), toy.recipe(), out=tmp_path / "out", sparsities=[0.5]),
        ):
            with pytest.raises(CheckpointError, match=r"is pruned already.*--recipe .*recipe\.yaml"):
                ask()
    assert not (tmp_path / "out").exists()


def test_the_recipe_is_short_and_asks_the_rows_that_were_asked_for_the_curves(toy: Toy, tmp_path: Path) -> None:
    calibration = {"rows": 8, "batch_size": 4, "precision": "fp32", "aim": "layer"}
    pruned = {"groups": [{"role": "feed_forward", "sparsity": 0.5}], "calibration": calibration}
    recipe = toy.recipe(f"  - {json.dumps({'name': 'prune', 'prune': pruned})}\n")
    given: dict[str, Any] = {"sparsities": [0.5, 0.9], "device": "cpu", "score": "taylor"}
    search(str(toy.start), recipe, out=tmp_path / "out", budget=("counted", 0.5), **given)
    file = tmp_path / "out" / "recipe.yaml"
    prune = load_recipe(file).stages[0].prune
    assert prune is not None and prune.calibration.model_dump() == calibration
    assert read_json(tmp_path / "out" / "curves" / "sensitivity.json")["calibration"] == calibration
    assert "null" not in file.read_text()


@pytest.mark.parametrize("tie", ["untie", "both"])
def test_a_table_of_its_own_is_stored_too(toy: Toy, tmp_path: Path, tie: str) -> None:
    run(toy, tmp_path / "out", ("stored", 0.6), tie=tie)
    planned = plan(str(tmp_path / "out" / "recipe.yaml")).stages[0]
    assert planned.stored_ratio_packed == pytest.approx(0.6, abs=0.005)


def test_what_a_small_group_does_not_lose_others_make_up_for() -> None:
    cheap, dear = Curve("cheap", 1000, ((0.5, 0.1), (0.9, 5.0))), Curve("dear", 1000, ((0.9, 0.3),))
    assert spend([cheap, dear], 503) == {"cheap": 0.5, "dear": 0.003}
    found = spend_visibly([cheap, dear], 503)
    assert found == {"cheap": 0.503, "dear": 0.0}
    full = Curve("cheap", 1000, ((0.5, 0.1),))  # can lose no more
    assert spend_visibly([full, dear], 503) == {"cheap": 0.5, "dear": 0.0}


def test_bytes_are_those_of_a_packed_file(toy: Toy, tmp_path: Path) -> None:
    small, large = (run(toy, tmp_path / str(size), ("bytes", size))["num_removed"] for size in (20_000, 30_000))
    assert small - large == pytest.approx(10_000 / 4, abs=1)


def test_trials_keep_the_budget_and_go_on(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna", reason="needs secateur[search]")
    original, calls = short_runs.run, []

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[1].name)
        if len(calls) == 2:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(short_runs, "run", counting)
    with pytest.raises(Killed):
        run(toy, tmp_path / "out", ("counted", 0.5), trials=3, trial_epochs=0.5)
    found = run(toy, tmp_path / "out", ("counted", 0.5), trials=3, trial_epochs=0.5)
    assert calls[:3] == ["000", "001", "001"] and len({*calls}) == 3 and len(calls) == 4
    assert found["trials"]["num_trials"] == 3 and found["trials"]["metric"] == "per"
    removed = plan(str(tmp_path / "out" / "recipe.yaml")).stages[0]
    assert removed.counted_ratio == pytest.approx(0.5, abs=0.003)
    assert not list((tmp_path / "out" / "trials").glob("*/**/model.safetensors"))
    assert "runs of 0.5 epochs refined them" in (tmp_path / "out" / "recipe.yaml").read_text()
    assert run(toy, tmp_path / "out", ("counted", 0.5), trials=3, trial_epochs=0.5) == found and len(calls) == 4


def test_either_measure_is_spent_along_the_same_curves(toy: Toy, tmp_path: Path) -> None:
    file = tmp_path / "out" / "recipe.yaml"
    found = run(toy, tmp_path / "out", ("counted", 0.5))
    cells = read_json(tmp_path / "out" / "curves" / "sensitivity.json")["cells"]
    assert found["by"] == "divergence" and 0 < found["predicted_rise"] <= sum(cell["divergence"] for cell in cells)
    text = file.read_text()
    assert "nats a token from the dense model's" in text and "alone it moves the outputs by about" in text
    risen = run(toy, tmp_path / "out", ("counted", 0.5), by="loss")
    assert risen["num_removed"] == pytest.approx(found["num_removed"], abs=2)
    text = file.read_text()
    assert "Before retraining the loss rises by" in text and "alone it raises the loss by about" in text


def test_a_search_of_an_earlier_version_spent_loss(toy: Toy, tmp_path: Path) -> None:
    file = tmp_path / "out" / "search.json"
    run(toy, tmp_path / "out", ("counted", 0.5), by="loss")
    write_json(file, {name: value for name, value in read_json(file).items() if name != "by"})
    (tmp_path / "out" / "trials.log").touch()
    there = file.read_bytes()
    with pytest.raises(CheckpointError, match="another by"):
        run(toy, tmp_path / "out", ("counted", 0.5), trials=1)
    assert file.read_bytes() == there


BY_ROLE = """\
  - name: first
    prune:
      groups: [{role: feed_forward, stack: encoder, sparsity: 0.3}, {role: self_attention, sparsity: 0.6}]
  - name: second
    prune:
      groups: [{role: feed_forward, sparsity: 0.7}, {role: lm_head, sparsity: 0.4, tie: view}]
"""


@pytest.mark.parametrize("trials", [0, 2])
@pytest.mark.parametrize("options", [{"scope": "row"}, {"per_layer": True}])
def test_roles_lose_what_they_lose_in_the_recipe(
    toy: Toy, tmp_path: Path, options: dict[str, Any], trials: int
) -> None:
    if trials:
        pytest.importorskip("optuna", reason="needs secateur[search]")
    options = {**options, "sparsities": [0.5, 0.9], "device": "cpu", "trials": trials, "trial_epochs": 0.1}
    found = search(str(toy.start), toy.recipe(BY_ROLE), out=tmp_path / "out", budget=None, **options)
    file = tmp_path / "out" / "recipe.yaml"
    lost, whole = dict[str, int](), dict[str, int]()
    for group in plan(str(file)).stages[0].groups:
        lost[group.role] = lost.get(group.role, 0) + group.num_removed
        whole[group.role] = whole.get(group.role, 0) + group.num_elements
    expected = {"feed_forward": 0.7, "self_attention": 0.6, "lm_head": 0.4}
    assert {role: count / whole[role] for role, count in lost.items()} == pytest.approx(expected, abs=0.01)
    assert sum(lost.values()) == found["num_removed"] and found["budget"][0] == "roles"
    assert file.read_text().startswith("# Made by secateur search for what each role loses in the recipe")
    assert search(str(toy.start), toy.recipe(BY_ROLE), out=tmp_path / "out", budget=None, **options) == found


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ("", "the recipe prunes nothing"),
        ("  - {name: p, prune: {groups: [{unit: head, sparsity: 0.5, score: l2_norm}]}}\n", "p: prunes head"),
        ("  - {name: p, prune: {groups: [{role: lm_head, sparsity: 0.5}]}}\n", "p: .*tie: is required"),
        ("  - {name: p, prune: {groups: [{role: feed_forward, sparsity: 0.97}]}}\n", "feed_forward: .* Measure higher"),
        (
            "  - {name: p, prune: {nni_config_list: [{op_types: [Linear], sparse_ratio: 0.5}], "
            "nni_pruner: {name: level}}}\n",
            "p: prunes by an nni_config_list",
        ),
    ],
)
def test_what_roles_cannot_share_is_told_before_anything_is_measured(
    toy: Toy, tmp_path: Path, stages: str, told: str
) -> None:
    recipe = toy.recipe(stages + "  - {name: final, evaluate: {}}\n")
    with pytest.raises(SecateurError, match=told):
        search(str(toy.start), recipe, out=tmp_path / "out", budget=None, sparsities=[0.5, 0.9], device="cpu")
    assert not (tmp_path / "out").exists()


def test_trials_on_other_rows_are_not_mixed(toy: Toy, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs secateur[search]")
    data = tmp_path / "data"
    shutil.copytree(toy.data, data)
    other = Toy(toy.start, data, toy.rows)
    given: dict[str, Any] = {"trials": 1, "trial_epochs": 0.1}
    run(other, tmp_path / "out", ("counted", 0.5), **given)
    run(other, tmp_path / "out", ("counted", 0.5), **given)
    rows = (data / "train.jsonl").read_text().splitlines(keepends=True)
    (data / "train.jsonl").write_text("".join(rows[:-1]))
    with pytest.raises(SecateurError, match="holds the trials of another search"):
        run(other, tmp_path / "out", ("counted", 0.5), **given)


def test_a_trial_that_was_stopped_goes_on_where_it_was(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna", reason="needs secateur[search]")
    given: dict[str, Any] = {"trials": 2, "trial_epochs": 2.0}  # 8 steps each
    whole = run(toy, tmp_path / "whole", ("counted", 0.5), **given)
    steps: list[tuple[str, int]] = []

    class Heard(Reporter):
        def run_started(self, recipe: Any, folder: Path, plan: Any) -> None:
            self.name = folder.name

        def training(self, progress: Any) -> None:
            steps.append((self.name, progress.step))

    monkeypatch.setattr(short_runs, "Reporter", Heard)
    for limit in (3, 11):  # in either trial
        with pytest.raises(RunInterrupted, match="Stopped in trial"):
            run(toy, tmp_path / "out", ("counted", 0.5), **given, should_stop=lambda limit=limit: len(steps) >= limit)
    assert run(toy, tmp_path / "out", ("counted", 0.5), **given)["trials"]["value"] == whole["trials"]["value"]
    assert len({*steps}) == len(steps) == 16  # none twice
    left = [file for file in (tmp_path / "out" / "trials").rglob("*") if file.suffix in (".safetensors", ".pt")]
    assert not [file for file in left if file.parent.name == "model" or ".work" in file.parts]


def test_a_search_of_the_other_kind_is_refused(toy: Toy, tmp_path: Path) -> None:
    write_json(tmp_path / "out" / "search.json", {"format": "secateur-search", "version": 1, "latency_ms": 3.0})
    with pytest.raises(CheckpointError, match="holds a search for milliseconds"):
        run(toy, tmp_path / "out", ("counted", 0.5))


def test_more_sparsities_are_refused_once_there_are_trials(toy: Toy, tmp_path: Path) -> None:
    """Before they are measured: they would move the curves, and the trials' start with them."""
    pytest.importorskip("optuna", reason="needs secateur[search]")
    given: dict[str, Any] = {"trials": 1, "trial_epochs": 0.1}
    found = run(toy, tmp_path / "out", ("counted", 0.5), **given)
    with pytest.raises(CheckpointError, match="another measured_sparsities"):
        run(toy, tmp_path / "out", ("counted", 0.5), sparsities=[0.5, 0.7, 0.9], **given)
    assert run(toy, tmp_path / "out", ("counted", 0.5), **given) == found


def test_a_model_is_known_by_its_weights_and_not_by_how_it_is_written(toy: Toy, tmp_path: Path) -> None:
    run(toy, tmp_path / "out", ("counted", 0.5))
    again = search(f"{toy.start}/", toy.recipe(), out=tmp_path / "out", budget=("counted", 0.5), sparsities=[0.5, 0.9])
    assert again["num_removed"]


def test_a_search_is_not_mixed_with_another(toy: Toy, tmp_path: Path) -> None:
    run(toy, tmp_path / "out", ("counted", 0.5))
    with pytest.raises(CheckpointError, match="another tie"):
        run(toy, tmp_path / "out", ("counted", 0.5), tie="both")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="holds no search"):
        run(toy, tmp_path / "mine", ("counted", 0.5))


def test_another_budget_is_spent_along_the_same_curves(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna", reason="needs secateur[search]")
    first = run(toy, tmp_path / "out", ("counted", 0.5))
    measured: list[Any] = []
    monkeypatch.setattr(sensing.Probe, "measure", lambda *args: measured.append(args))
    second = run(toy, tmp_path / "out", ("counted", 0.6))
    assert not measured and second["num_removed"] < first["num_removed"]
    refined = run(toy, tmp_path / "out", ("counted", 0.6), trials=1, trial_epochs=0.1)
    for trials in (0, 1):  # what trials have refined is not written over
        with pytest.raises(CheckpointError, match="a search with another budget"):
            run(toy, tmp_path / "out", ("counted", 0.5), trials=trials, trial_epochs=0.1)
    with pytest.raises(CheckpointError, match=r"short runs have refined\. Say --trials again"):
        run(toy, tmp_path / "out", ("counted", 0.6))
    assert read_json(tmp_path / "out" / "search.json")["trials"] == refined["trials"]


def test_what_the_curves_cannot_reach_is_told_before_they_are_measured(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match="Measure higher sparsities, or ask for less"):
        run(toy, tmp_path / "out", ("counted", 0.3), sparsities=(0.5,))
    with pytest.raises(SecateurError, match=r"Measure higher.* Under tie view lm_head is left out.*--tie both"):
        run(toy, tmp_path / "out", ("stored", 0.4), sparsities=(0.5,))
    assert not (tmp_path / "out").exists()


def test_curves_stop_when_they_are_asked_to(toy: Toy, tmp_path: Path) -> None:
    asked: list[int] = []
    with pytest.raises(RunInterrupted, match=r"Stopped after 2 of \d+ cells\. The same command goes on"):
        run(toy, tmp_path / "out", ("counted", 0.5), should_stop=lambda: asked.append(1) or len(asked) > 2)
    assert len(list((tmp_path / "out" / "curves").glob("*-0.*.json"))) == 1  # and the dense model's
    run(toy, tmp_path / "out", ("counted", 0.5))


@pytest.mark.parametrize("option", ["epochs", "trial_epochs", "rows"])
@pytest.mark.parametrize("amount", [0, -1.0, float("nan")])
def test_amounts_that_are_none_are_refused(toy: Toy, tmp_path: Path, option: str, amount: float) -> None:
    with pytest.raises(SecateurError, match=f"{option}: must be above 0, and is {amount:g}"):
        run(toy, tmp_path / "out", ("counted", 0.5), **{option: amount})
    assert not (tmp_path / "out").exists()


def test_a_shorter_retraining_warms_up_for_less_long(toy: Toy) -> None:
    train = "{epochs: 4, learning_rate: 1.0e-3, batch_size: 2, warmup_steps: 100}"
    recipe = toy.recipe(f"\n  - name: dense\n    train: {train}\n", initialize="pretrained")
    assert [retraining_of(recipe, epochs).warmup_steps for epochs in (0.25, 4.0, 8.0)] == [6, 100, 100]


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        (("counted", 0.01), "cannot be reached"),
        (("stored", 1.2), "at most 1"),
        (("counted", 1.0), "within 1 as it is"),
        (("bytes", 10_000_000), "within 1e"),
    ],
)
def test_a_budget_out_of_reach_is_refused(toy: Toy, tmp_path: Path, budget: tuple[str, float], told: str) -> None:
    with pytest.raises(SecateurError, match=told) as caught:
        run(toy, tmp_path / "out", budget)
    assert "--tie" not in str(caught.value)
    assert not (tmp_path / "out").exists()
