"""A sweep measures every cell once, goes on where it was stopped, and touches nobody else's folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from secateur import sweeping as sweeps
from secateur.errors import CheckpointError, SecateurError
from secateur.evaluation.evaluate import EvalResult
from secateur.exports.engines import export_model
from secateur.recipe.names import Target
from secateur.sweeping import cell_name, sweep
from toy import Killed, Toy


def run(toy: Toy, out: Path, **options: object) -> dict[str, object]:
    given = {"max_new_tokens": [2, 5], "num_beams": [1, 2], "device": "cpu", **options}
    return sweep(str(toy.start), toy.recipe(), out=out, **given)  # type: ignore[arg-type]


def test_every_cell_is_measured(toy: Toy, tmp_path: Path) -> None:
    seen: list[str] = []
    found = run(toy, tmp_path / "sweep", on_cell=lambda done, total, name: seen.append(f"{done}/{total} {name}"))
    assert seen == [f"{index}/4 {cell_name(b, t)}" for index, (b, t) in enumerate([(1, 2), (1, 5), (2, 2), (2, 5)])]
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text()) == found
    for cell in found["cells"]:  # type: ignore[attr-defined]
        assert cell["ms_per_text"] > 0 and cell["latency_ms"] > 0
        assert cell["metrics"]["per"]["low"] <= cell["metrics"]["per"]["value"] <= cell["metrics"]["per"]["high"]
        name = cell_name(cell["num_beams"], cell["max_new_tokens"])
        lines = (tmp_path / "sweep" / name / "predictions.jsonl").read_text().splitlines()
        assert all(json.loads(line)["num_tokens"] <= cell["max_new_tokens"] for line in lines)
    text = (tmp_path / "sweep" / "sweep.md").read_text()
    assert text.count("| 2 |") >= 2 and "per is best with" in text
    assert (tmp_path / "sweep" / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_stopped_sweep_goes_on_with_the_next_cell(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = sweeps.evaluate_model, []

    def evaluate(*args: object, **kwargs: object) -> EvalResult:
        calls.append((kwargs["num_beams"], kwargs["max_new_tokens"]))
        if len(calls) == 3:
            raise Killed
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(sweeps, "evaluate_model", evaluate)
    with pytest.raises(Killed):
        run(toy, tmp_path / "sweep")
    run(toy, tmp_path / "sweep")
    assert calls == [(1, 2), (1, 5), (2, 2), (2, 2), (2, 5)]
    run(toy, tmp_path / "sweep", max_new_tokens=[5, 3], num_beams=[1])  # a wider question keeps what is there
    assert calls[5:] == [(1, 3)]


def test_a_sweep_without_a_cell_may_be_asked_otherwise(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object, **kwargs: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(sweeps, "evaluate_model", killed)
        with pytest.raises(Killed):
            run(toy, tmp_path / "sweep")
    found = run(toy, tmp_path / "sweep", overrides=(), split="test", max_new_tokens=[2], num_beams=[1])
    assert found["split"] == "test"


def test_cells_of_two_machines_are_not_mixed(toy: Toy, tmp_path: Path) -> None:
    run(toy, tmp_path / "sweep", max_new_tokens=[2], num_beams=[1])
    file = tmp_path / "sweep" / "sweep.json"
    content = json.loads(file.read_text())
    content["environment"]["threads"] = 64
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="another threads"):
        run(toy, tmp_path / "sweep", max_new_tokens=[3], num_beams=[1])


def test_a_model_is_its_weights_wherever_they_lie(toy: Toy, tmp_path: Path) -> None:
    run(toy, tmp_path / "sweep", max_new_tokens=[2], num_beams=[1])
    shutil.copytree(toy.start, tmp_path / "moved")
    there = {"max_new_tokens": [2, 3], "num_beams": [1], "device": "cpu", "out": tmp_path / "sweep"}
    assert len(sweep(str(tmp_path / "moved"), toy.recipe(), **there)["cells"]) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ["onnx", "ctranslate2"])
def test_an_export_is_swept_in_its_engine(toy: Toy, tmp_path: Path, target: Target) -> None:
    pytest.importorskip("onnxruntime" if target == "onnx" else target)
    export_model(toy.start, tmp_path / "out", target=target, int8=False)
    cells = [
        sweep(model, toy.recipe(), out=tmp_path / name, max_new_tokens=[3], num_beams=[1, 2], device="cpu")["cells"]
        for name, model in (("one", str(toy.start)), ("other", str(tmp_path / "out")))
    ]
    assert [cell["metrics"]["per"] for cell in cells[0]] == [cell["metrics"]["per"] for cell in cells[1]]


def test_another_model_data_or_folder_is_refused(toy: Toy, tmp_path: Path) -> None:
    run(toy, tmp_path / "sweep", max_new_tokens=[2], num_beams=[1])
    with pytest.raises(CheckpointError, match=r"another data_hash and another split\. data_hash is of the rows"):
        run(toy, tmp_path / "sweep", max_new_tokens=[2], num_beams=[1], split="test")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match="left alone"):
        run(toy, tmp_path / "mine")
    (tmp_path / "mine" / "sweep.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a sweep of Secateur"):
        run(toy, tmp_path / "mine")


@pytest.mark.parametrize("lengths", [[], [0], [4, 4]])
def test_lengths_must_be_positive_and_single(toy: Toy, tmp_path: Path, lengths: list[int]) -> None:
    with pytest.raises(SecateurError, match="max_new_tokens"):
        run(toy, tmp_path / "sweep", max_new_tokens=lengths)
    assert not (tmp_path / "sweep").exists()
