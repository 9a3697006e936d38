"""Sensitivity: every cell is measured once, on a model that is otherwise dense and comes out as it went in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur import probe, sensing
from secateur.errors import CheckpointError, SecateurError
from secateur.files import read_json, write_json
from secateur.losses import Lost
from secateur.probe import Probe
from secateur.report.sensitivity import reading
from secateur.sensing import curves_of, sensitivity
from toy import Killed, Toy

GROUPS = [
    "encoder self_attention",
    "decoder self_attention",
    "decoder cross_attention",
    "encoder feed_forward",
    "decoder feed_forward",
    "lm_head",
]


def run(toy: Toy, out: Path, **options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"sparsities": [0.5, 0.9], "device": "cpu", **options}
    return sensitivity(str(toy.start), toy.recipe(), out=out, **given)


@pytest.mark.parametrize("score", ["magnitude", "taylor", "obs"])
def test_every_group_is_measured_alone(toy: Toy, tmp_path: Path, score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = probe.compare

    def compare(*args: Any, same_encoder: bool) -> Lost:
        seen.append((*args, original(*args, same_encoder=same_encoder)))
        assert seen[-1][-1] == original(*args, same_encoder=False)  # what its encoder gave before, it gives now
        return seen[-1][-1]

    monkeypatch.setattr(probe, "compare", compare)
    found = run(toy, tmp_path / "out", score=score)
    assert list(dict.fromkeys(cell["name"] for cell in found["cells"])) == GROUPS
    for cell in found["cells"]:
        assert cell["num_removed"] == round(cell["sparsity"] * cell["num_elements"])
        assert cell["rise"] == pytest.approx(cell["loss"] - found["dense_loss"])
    assert len({round(cell["loss"], 6) for cell in found["cells"]}) > 6
    # The model is dense again: its outputs are what they were.
    state, live, rows, dense, _ = seen[-1]
    assert original(state, live, rows, dense, same_encoder=True) == (found["dense_loss"], pytest.approx(0, abs=1e-6))
    assert all(cell["divergence"] > 0 for cell in found["cells"])
    text = (tmp_path / "out" / "sensitivity.md").read_text()
    assert reading(found) in text and "decoder cross_attention" in text
    assert (tmp_path / "out" / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    assert [curve.name for curve in curves_of(found)] == GROUPS


@pytest.mark.parametrize("tie", ["view", "both", "untie"])
def test_layers_and_quality(toy: Toy, tmp_path: Path, tie: str) -> None:
    found = run(toy, tmp_path / "out", per_layer=True, quality=True, tie=tie, sparsities=[0.5])
    names = [cell["name"] for cell in found["cells"]]
    assert names == [name.replace("coder ", "coder.0 ") for name in GROUPS]
    assert all(cell["metrics"]["per"]["value"] >= 0 for cell in found["cells"])
    assert "per (dense:" in (tmp_path / "out" / "sensitivity.md").read_text()


def test_a_model_that_is_made_anew_on_a_device_can_be_pruned_there(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = run(toy, tmp_path / "here")
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *args, **kwargs: self._apply(torch.clone))
    assert run(toy, tmp_path / "there") == wanted


def test_a_shared_table_that_a_score_of_activations_cannot_judge_is_judged_by_taylor(toy: Toy, tmp_path: Path) -> None:
    found = run(toy, tmp_path / "out", score="obs", tie="both", sparsities=[0.5])
    alone = run(toy, tmp_path / "taylor", score="taylor", tie="both", sparsities=[0.5])
    heads, others = zip(*((cells["cells"][-1], cells["cells"][0]) for cells in (found, alone)), strict=True)
    assert heads[0] == heads[1] and heads[0]["name"] == "lm_head" and others[0]["loss"] != others[1]["loss"]


def test_cells_of_an_earlier_version_are_measured_anew(toy: Toy, tmp_path: Path) -> None:
    found = run(toy, tmp_path / "out", sparsities=[0.5])
    file = tmp_path / "out" / "lm_head-0.5.json"
    write_json(file, {name: value for name, value in read_json(file).items() if name != "divergence"})
    assert [cell["name"] for cell in run(toy, tmp_path / "out", sparsities=[0.9])["cells"]].count("lm_head") == 1
    assert [cell for cell in run(toy, tmp_path / "out", sparsities=[0.5])["cells"] if cell["sparsity"] == 0.5] == found[
        "cells"
    ]


def test_the_score_asks_the_rows_that_the_recipe_names(toy: Toy, tmp_path: Path) -> None:
    groups = "[{role: feed_forward, sparsity: 0.5, score: fisher}]"
    stages = f"\n  - name: prune\n    prune: {{groups: {groups}, calibration: {{rows: 5, batch_size: 2}}}}\n"
    given: Any = {"sparsities": [0.5], "device": "cpu", "overrides": ["stages.prune.prune.calibration.rows=3"]}
    content = sensitivity(str(toy.start), toy.recipe(stages), out=tmp_path / "out", score="fisher", **given)
    assert (content["calibration"]["rows"], content["calibration"]["batch_size"]) == (3, 2)


def test_calibration_in_another_precision_is_another_measurement(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensing, "resolve_precision", lambda precision, device: "bf16")
    assert run(toy, tmp_path / "out", score="taylor", sparsities=[0.5])["calibration"]["precision"] == "bf16"
    monkeypatch.setattr(sensing, "resolve_precision", lambda precision, device: "fp32")
    with pytest.raises(CheckpointError, match="calibration"):
        run(toy, tmp_path / "out", score="taylor", sparsities=[0.5])


def test_a_score_of_ones_own_that_changed_is_another(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "my_curves.py"
    file.write_text("def mine(weight):\n    return weight.abs()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for _ in range(2):
        run(toy, tmp_path / "out", score="my_curves:mine", sparsities=[0.5])
    file.write_text("def mine(weight):\n    return -weight.abs()\n")
    with pytest.raises(CheckpointError, match="another score_code"):
        run(toy, tmp_path / "out", score="my_curves:mine", sparsities=[0.5])


def test_a_stopped_measurement_goes_on(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = Probe.measure, []

    def measure(self: Any, subject: Any, sparsity: float) -> dict[str, Any]:
        calls.append((subject and subject.name, sparsity))
        if len(calls) == 4:
            raise Killed
        return original(self, subject, sparsity)

    monkeypatch.setattr(Probe, "measure", measure)
    with pytest.raises(Killed):
        run(toy, tmp_path / "out")
    broken = run(toy, tmp_path / "out")
    assert len(calls) == 1 + 12 + 1 and len(set(calls)) == 13
    whole = run(toy, tmp_path / "whole")
    assert [cell["loss"] for cell in broken["cells"]] == [cell["loss"] for cell in whole["cells"]]
    done = len(calls)
    more = run(toy, tmp_path / "out", sparsities=[0.5, 0.7])
    assert len(calls) == done + 6 and len(more["cells"]) == 18  # what is there stays


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sparsities": [0.5, 1.0]}, "above 0 and below 1"),
        ({"sparsities": []}, "are nothing"),
        ({"score": "magnitud"}, 'no .magnitud.*"magnitude"'),
        ({"score": "l2_norm"}, "Of single weights there are"),
    ],
)
def test_wrong_questions_are_refused(toy: Toy, tmp_path: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(SecateurError, match=told):
        run(toy, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_other_folders_are_left_alone(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="holds no sensitivity"):
        run(toy, tmp_path / "mine")
    run(toy, tmp_path / "out", sparsities=[0.5])
    with pytest.raises(CheckpointError, match="another score"):
        run(toy, tmp_path / "out", score="lamp")


def test_the_sentence_names_the_first_and_the_last() -> None:
    cells = [
        {"name": name, "sparsity": sparsity, "rise": rise}
        for name, rises in {"a": (0.0, 0.2), "b": (0.3, 0.9), "c": (0.0, 0.01)}.items()
        for sparsity, rise in zip((0.5, 0.9), rises, strict=True)
    ]
    told = reading({"dense_loss": 2.0, "cells": cells})
    assert told.startswith("b limits first: it alone raises the loss by 5 % at a sparsity of 0.17")
    assert told.endswith("c limits last: by less at 0.90.")
    assert reading({"dense_loss": 99.0, "cells": cells}) == "No group alone raises the loss by 5 %; b costs most."


def test_the_verb_prints_what_it_found(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from secateur.console import print_sensitivity

    found = run(toy, tmp_path / "out", sparsities=[0.5])
    print_sensitivity(json.loads((tmp_path / "out" / "sensitivity.json").read_text()), "out")
    printed = capsys.readouterr().out
    assert all(name in printed for name in GROUPS) and f"{found['dense_loss']:.4f}" in printed
    assert torch.is_grad_enabled()


def test_cells_know_what_they_were_measured_with(toy: Toy, tmp_path: Path) -> None:
    given = {"sparsities": [0.00001, 0.5], "device": "cpu"}  # one removes nothing, and has its name in the file
    sensitivity(str(toy.start), toy.recipe(), out=tmp_path / "out", **given)  # type: ignore[arg-type]
    base = toy.recipe()
    shorter = base.task.model_copy(update={"max_target_tokens": 5})
    for change, told in (({"seed": 8}, "seed"), ({"task": shorter}, "task")):
        with pytest.raises(CheckpointError, match=f"another {told}"):
            sensitivity(str(toy.start), base.model_copy(update=change), out=tmp_path / "out", **given)  # type: ignore[arg-type]
