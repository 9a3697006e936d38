"""A search for milliseconds: measured to be fast enough, predicted to cost least, and the recipe makes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from secateur import short_runs
from secateur.errors import CheckpointError, RunInterrupted, SecateurError
from secateur.latency import search_latency
from secateur.measure import plan
from secateur.pipeline import run as run_recipe
from secateur.search.shapes import Shape
from secateur.shape_timer import ShapeTimer
from toy import Killed, Toy

pytestmark = pytest.mark.usefixtures("no_card")


@pytest.fixture
def wide_toy(toy: Toy, tmp_path: Path) -> Toy:
    """The toy with two layers a stack, two heads and sixteen neurons, with random weights."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    config = AutoConfig.from_pretrained(toy.start)
    config.num_layers = config.num_decoder_layers = config.num_heads = 2
    config.d_ff = 16
    torch.manual_seed(0)
    start = tmp_path / "start"
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(start)
    AutoTokenizer.from_pretrained(toy.start).save_pretrained(start)
    return Toy(start, toy.data, toy.rows)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Let shapes take a time that is computed: a layer 1 ms and its parts as much again; give what was asked for."""
    asked: list[list[str]] = []

    def taken(shape: Shape) -> float:
        layers = shape.encoder_layers + 2 * shape.decoder_layers
        return 1.0 + layers * (1.0 + shape.heads / 2 + shape.neurons / 16)

    def time(self: ShapeTimer, shapes: list[Shape]) -> dict[str, float]:
        asked.append([shape.name for shape in shapes])
        drift = 1.0 + 0.5 * (len(asked) - 1)  # the machine gets slower, and the dense model with it
        return {shape.name: drift * taken(shape) for shape in shapes}

    monkeypatch.setattr(ShapeTimer, "_time", time)
    return asked


def run(toy: Toy, out: Path, **options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"latency_ms": 12.0, "engine": "hf-fp32", "device": "cpu", "score": "l2_norm", **options}
    return search_latency(str(toy.start), toy.recipe(), out=out, **given)


def test_the_recipe_makes_the_shape(wide_toy: Toy, tmp_path: Path, clock: list[list[str]]) -> None:
    found = run(wide_toy, tmp_path / "out")
    assert found["dense"] == "2-2-2-16" and found["dense_ms"] == 19.0
    assert found["ms"] <= 12.0 and found["clock"]["largest_relative_error"] < 1e-6
    cheapest = min(found["candidates"], key=lambda each: each["rise"])
    assert found["shape"] == cheapest["shape"] and found["rise"] == cheapest["rise"]
    assert all(each["ms"] <= 12.0 + 1e-6 for each in found["candidates"])
    file = tmp_path / "out" / "recipe.yaml"
    assert file.read_text().startswith("# Made by secateur search for 12 ms a text: hf-fp32, 1 threads")
    for axis, reason in found["reasons"].items():
        assert f"# {reason}" in file.read_text() and axis in found["sparsities"]
    done = run_recipe(str(file), tmp_path / "run", device="cpu", overrides=["stages.retrain.train.epochs=1"])
    config = AutoConfig.from_pretrained(tmp_path / "run" / "model")
    shape = Shape(config.num_layers, config.num_decoder_layers, config.num_heads, config.d_ff)
    assert shape.name == found["shape"] and [stage["name"] for stage in done.manifest["stages"]][-2:] == [
        "retrain",
        "final",
    ]


def test_an_engine_of_its_own_is_exported_for(wide_toy: Toy, tmp_path: Path, clock: list[list[str]]) -> None:
    pytest.importorskip("ctranslate2", reason="needs secateur[ctranslate2]")
    run(wide_toy, tmp_path / "out", engine="ct2-int8")
    assert [stage.name for stage in plan(str(tmp_path / "out" / "recipe.yaml")).stages][-2:] == ["ship", "final"]
    assert not any("-1-" in name[3:] for names in clock for name in names)  # one head is more than the engine can hold


def test_what_is_measured_is_not_measured_again(
    wide_toy: Toy, tmp_path: Path, clock: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from secateur import shape_costs

    original, calls = shape_costs.mean_loss, []

    def loss(*args: Any) -> float:
        calls.append(1)
        if len(calls) == 4:
            raise Killed
        return original(*args)

    monkeypatch.setattr(shape_costs, "mean_loss", loss)
    with pytest.raises(Killed):
        run(wide_toy, tmp_path / "out")
    found = run(wide_toy, tmp_path / "out")
    assert len(calls) == 1 + len(json.loads((tmp_path / "out" / "losses.json").read_text()))
    timed = [name for names in clock for name in names[1:]]
    assert len(set(timed)) == len(timed)  # each once, and the dense one beside them
    assert run(wide_toy, tmp_path / "out") == found
    losses = len(calls)
    assert run(wide_toy, tmp_path / "out", latency_ms=11.0)["ms"] <= 11.0 and len(calls) == losses
    with pytest.raises(CheckpointError, match="another rows"):
        run(wide_toy, tmp_path / "out", rows=3)


def test_trials_choose_among_numbers_of_layers(
    wide_toy: Toy, tmp_path: Path, clock: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna", reason="needs secateur[search]")
    made: list[Any] = []
    original = short_runs.run

    def counting(recipe: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(recipe)
        return original(recipe, *args, **kwargs)

    monkeypatch.setattr(short_runs, "run", counting)
    found = run(wide_toy, tmp_path / "out", trials=2, trial_epochs=1.0)
    assert found["trials"]["num_trials"] == len(made) == 2 and found["trials"]["metric"] == "per"
    assert found["trials"]["value"] == min(found["trials"]["values"].values())
    assert found["trials"]["values"][found["shape"]] == found["trials"]["value"]
    layers = [name.rsplit("-", 2)[0] for name in found["trials"]["values"]]
    assert len(set(layers)) == len(layers)
    assert run(wide_toy, tmp_path / "out", trials=2, trial_epochs=1.0) == found and len(made) == 2
    fewer = run(wide_toy, tmp_path / "out", trials=1, trial_epochs=1.0)["trials"]
    assert fewer["num_trials"] == 1 and len(made) == 2
    with pytest.raises(CheckpointError, match="a search with another latency_ms"):
        run(wide_toy, tmp_path / "out", latency_ms=11.0)


def test_the_dense_time_is_told_before_losses_are_measured(
    wide_toy: Toy, tmp_path: Path, clock: list[list[str]]
) -> None:
    with pytest.raises(SecateurError, match="the dense model takes 19 ms"):
        run(wide_toy, tmp_path / "out", latency_ms=20.0)
    assert not (tmp_path / "out" / "losses.json").exists()


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_search_stops_when_it_is_asked_to(wide_toy: Toy, tmp_path: Path, clock: list[list[str]], after: int) -> None:
    asked: list[int] = []
    with pytest.raises(RunInterrupted, match="The same command goes on"):
        run(wide_toy, tmp_path / "out", should_stop=lambda: asked.append(1) or len(asked) > after)
    assert run(wide_toy, tmp_path / "out")["ms"] <= 12.0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"latency_ms": 2.0}, "even the fastest shape"),
        ({"latency_ms": 20.0}, "the dense model takes 19 ms"),
        ({"latency_ms": 0.0}, "must be above 0"),
        ({"engine": "abacus"}, "no 'abacus'"),
    ],
)
def test_what_cannot_be_is_refused(
    wide_toy: Toy, tmp_path: Path, clock: list[list[str]], options: dict[str, Any], told: str
) -> None:
    with pytest.raises(SecateurError, match=told):
        run(wide_toy, tmp_path / "out", **options)


def test_a_shape_that_is_slower_than_predicted_gives_way(
    wide_toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[list[str]]
) -> None:
    original = ShapeTimer._time

    def slower(self: ShapeTimer, shapes: list[Shape]) -> dict[str, float]:
        found = original(self, shapes)
        late = len(clock) > 1  # what is chosen, not what the clock is fitted to
        return {name: taken * (1.3 if late and name != "2-2-2-16" else 1.0) for name, taken in found.items()}

    monkeypatch.setattr(ShapeTimer, "_time", slower)
    found = run(wide_toy, tmp_path / "out")
    assert found["ms"] <= 12.0 and len(clock) > 2


def test_a_shape_that_was_too_slow_is_not_chosen_again(
    wide_toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[list[str]]
) -> None:
    """One that is predicted far below the limit and measured a little above it gives way to the next smaller one."""
    original = ShapeTimer._time
    first = run(wide_toy, tmp_path / "first")

    def slower(self: ShapeTimer, shapes: list[Shape]) -> dict[str, float]:
        found = original(self, shapes)
        limit = found["2-2-2-16"] * 12.0 / 19.0
        return {name: 1.01 * limit if name == first["shape"] else taken for name, taken in found.items()}

    monkeypatch.setattr(ShapeTimer, "_time", slower)
    found = run(wide_toy, tmp_path / "out")
    assert found["shape"] != first["shape"] and found["ms"] <= 12.0


def test_a_time_that_other_work_made_long_does_not_stay(
    wide_toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[list[str]]
) -> None:
    original, busy = ShapeTimer._time, [True]

    def late(self: ShapeTimer, shapes: list[Shape]) -> dict[str, float]:
        found, slow = original(self, shapes), busy[0] and len(clock) > 1
        return {name: taken * (3.0 if slow and name != "2-2-2-16" else 1.0) for name, taken in found.items()}

    monkeypatch.setattr(ShapeTimer, "_time", late)
    with pytest.raises(SecateurError, match=r"took longer: .* The same command times them again"):
        run(wide_toy, tmp_path / "out")
    busy[0] = False
    assert run(wide_toy, tmp_path / "out")["ms"] <= 12.0
