"""The record of a run is read back, and a folder without a valid one is not ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secateur.artifacts.manifest import (
    MANIFEST,
    STAGE,
    artefact_hash,
    environment,
    is_run,
    read_manifest,
    resolve_model,
    stage_folder_name,
    write_manifest,
)
from secateur.errors import CheckpointError
from secateur.files import write_json


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    write_manifest(tmp_path, {"status": "running", "stages": []})
    content = read_manifest(tmp_path)
    assert (content["format"], content["version"], content["status"]) == ("secateur-run", 1, "running")
    assert is_run(tmp_path)
    write_manifest(tmp_path, content | {"status": "complete"})  # what was read can be written
    assert read_manifest(tmp_path)["status"] == "complete"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": "other"}', '{"format": "secateur-run", "version": 2}'])
def test_another_manifest_is_not_ours(tmp_path: Path, text: str) -> None:
    assert not is_run(tmp_path)
    (tmp_path / MANIFEST).write_text(text)
    assert not is_run(tmp_path)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_the_environment_is_said_and_no_folder_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/local/bin/secateur", "run", "a b.yaml"])
    facts = environment("cpu")
    assert facts["command"] == "secateur run 'a b.yaml'"
    assert facts["device"] == "cpu" and facts["threads"] >= 1 and facts["torch"]
    assert json.loads(json.dumps(facts)) == facts
    assert "/usr/local" not in json.dumps(facts)


def test_a_model_is_found_behind_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    write_manifest(tmp_path / "run", {})
    stage = tmp_path / "run" / stage_folder_name(3, "dense")
    (stage / "model").mkdir(parents=True)
    assert stage.name == "03-dense"
    (stage / STAGE).write_text("{}")
    assert resolve_model(str(model)) == str(model)
    assert resolve_model(str(tmp_path / "run")) == str(model)
    with pytest.raises(CheckpointError, match="holds no model"):
        resolve_model(str(stage))
    (stage / "model" / "config.json").write_text("{}")
    assert resolve_model(str(stage)) == str(stage / "model")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("google-t5/t5-small") == "google-t5/t5-small"
    (tmp_path / "file").touch()
    for wrong, message in {
        "./no": "no such folder",
        "/no/such": "no such folder",
        "run/no": "no such folder",
        str(tmp_path / "file"): "is a file",
        str(tmp_path): "holds no config.json",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            resolve_model(wrong)


def test_changed_weights_of_a_run_are_refused(tmp_path: Path) -> None:
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    found = artefact_hash(str(weights.parent))
    assert found and artefact_hash("google-t5/t5-small") is None
    write_manifest(tmp_path, {"status": "complete", "stages": [{"hash": found}]})
    assert artefact_hash(str(weights.parent)) == found
    weights.write_bytes(b"weighTs")
    with pytest.raises(CheckpointError, match="damaged or changed"):
        artefact_hash(str(weights.parent))
    write_json(tmp_path / STAGE, {"hash": "0" * 64})
    with pytest.raises(CheckpointError, match="damaged or changed"):
        artefact_hash(str(weights.parent))


def test_weights_of_an_older_kind_have_a_hash_and_none_is_none(tmp_path: Path) -> None:
    assert artefact_hash(str(tmp_path)) is None
    (tmp_path / "pytorch_model.bin").write_bytes(b"one")
    one = artefact_hash(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"two")
    assert one and artefact_hash(str(tmp_path)) not in (None, one)
