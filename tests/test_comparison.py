"""Runs, models and files side by side: stored outputs are read, rows must be the same, models write anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import secateur
from secateur import comparison
from secateur.errors import CheckpointError, DataError, SecateurError
from toy import Toy

TRAINED = """
  - name: dense
    train: {epochs: 2, learning_rate: 1.0e-2, batch_size: 2, precision: fp32, dropout: 0.0}
  - name: final
    evaluate: {split: test}
"""


@pytest.fixture(scope="module")
def run(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "run"
    return toy.run(folder, initialize="pretrained", keep="all", stages=TRAINED).folder


@pytest.fixture
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("a model wrote")

    monkeypatch.setattr(comparison, "write_outputs", never)


@pytest.mark.usefixtures("_no_model")
def test_stages_of_a_run_by_what_they_stored(run: Path) -> None:
    found = secateur.compare([run / "00-given", run / "01-dense"])
    manifest = json.loads((run / "manifest.json").read_text())
    assert (found.split, found.rows) == ("validation", 3)
    told = [vars(entry.figures["per"]) for entry in found.entries]
    assert told == [manifest["dense"]["metrics"]["per"], manifest["stages"][0]["metrics"]["per"]]
    assert [entry.stage for entry in found.entries] == ["given", "dense"]
    assert [entry.hash for entry in found.entries] == [manifest["dense"]["hash"], manifest["stages"][0]["hash"]]
    assert found.entries[0].differences is None
    assert found.entries[1].differences is not None
    gained = found.entries[1].differences["per"]
    assert gained.value == told[1]["value"] - told[0]["value"]
    assert found.as_json() == json.loads(json.dumps(found.as_json()))


@pytest.mark.usefixtures("_no_model")
def test_a_run_is_its_last_stage_on_the_split(run: Path) -> None:
    assert [entry.stage for entry in secateur.compare([run, run]).entries] == ["final", "final"]
    assert [entry.stage for entry in secateur.compare([run, run], split="validation").entries] == ["dense", "dense"]
    with pytest.raises(CheckpointError, match=r"no stage was measured on the split 'train'\. .*: validation, test"):
        secateur.compare([run, run], split="train")
    with pytest.raises(CheckpointError, match=r"01-dense: no stage was measured on the split 'test'"):
        secateur.compare([run, run / "01-dense"])


@pytest.mark.usefixtures("_no_model")
def test_a_file_of_outputs_is_as_good_as_its_stage(run: Path, tmp_path: Path) -> None:
    file = shutil.copy(run / "02-final" / "predictions.jsonl", tmp_path / "p.jsonl")
    one, other = secateur.compare([run, file]), secateur.compare([file, file], metrics=["per"])
    assert one.entries[1].figures == one.entries[0].figures
    assert (other.split, other.entries[0].hash, other.entries[0].evaluation) == (None, None, {})
    assert other.entries[0].figures["per"].value == one.entries[0].figures["per"].value
    with pytest.raises(SecateurError, match=r"prediction files do not say which\. Give --metric"):
        secateur.compare([file, file])


def test_a_model_that_writes_anew_writes_what_its_run_stored(toy: Toy, run: Path) -> None:
    told: list[tuple[int, int]] = []
    found = secateur.compare([run, run / "model"], device="cpu", on_batch=lambda *done: told.append(done))
    assert found.split == "test"
    assert found.entries[1].figures == found.entries[0].figures
    assert found.entries[1].hash == found.entries[0].hash
    assert found.notes == []
    assert told == [(2, 2)]
    foreign = secateur.compare([toy.start, run / "model"], toy.recipe(TRAINED), device="cpu")
    assert [entry.stage for entry in foreign.entries] == [None, None]
    assert foreign.split == "validation"


def test_other_lengths_are_noted(run: Path) -> None:
    found = secateur.compare([run, run / "model"], overrides=["evaluation.max_new_tokens=2"], device="cpu")
    assert found.notes == [f"max_new_tokens differs: 3 in {run}, 2 in {run / 'model'}."]


@pytest.mark.usefixtures("_no_model")
def test_other_rows_are_refused_before_a_model_writes(toy: Toy, run: Path, tmp_path: Path) -> None:
    lines = (run / "02-final" / "predictions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "turned.jsonl").write_text("".join(reversed(lines)))
    with pytest.raises(DataError, match=r"row 1 has the source .* in .*run, and .* in .*turned\.jsonl"):
        secateur.compare([run, tmp_path / "turned.jsonl", run / "model"])
    (tmp_path / "short.jsonl").write_text(lines[0])
    with pytest.raises(DataError, match=r"run has 2 rows, and .*short\.jsonl has 1"):
        secateur.compare([run, tmp_path / "short.jsonl"])


@pytest.mark.usefixtures("_no_model")
def test_prefixes_are_no_difference_between_rows(run: Path, tmp_path: Path) -> None:
    prefixed = tmp_path / "prefixed"
    shutil.copytree(run, prefixed)
    recipe = prefixed / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("prefix: ''", "prefix: 'spell: '"))
    file = prefixed / "02-final" / "predictions.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row | {"source": f"spell: {row['source']}"}) + "\n" for row in rows))
    metrics = ["novelty", "per"]
    plain = secateur.compare([run, run], metrics=metrics)
    for models in ([run, prefixed], [prefixed, file]):
        found = secateur.compare(models, metrics=metrics)
        assert [entry.figures for entry in found.entries] == [entry.figures for entry in plain.entries]


@pytest.mark.usefixtures("_no_model")
def test_slips_are_told_plainly(toy: Toy, run: Path, tmp_path: Path) -> None:
    for models, options, message in (
        ([run], {}, "needs two or more"),
        ([run, tmp_path / "none"], {}, "no such folder|belongs to no run"),
        ([run, tmp_path / "none.jsonl"], {}, "none.jsonl: cannot be read"),
        ([run, toy.start], {}, "belongs to no run.*--recipe FILE"),
        ([run, run], {"metrics": ["rogue"]}, 'Did you mean "rouge"'),
        ([run, run], {"overrides": ["seed=1"]}, "--set: cannot act"),
    ):
        with pytest.raises(SecateurError, match=message):
            secateur.compare(models, **options)
