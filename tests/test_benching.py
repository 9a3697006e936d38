"""A bench names each artefact by its hash, says why an engine was left out, and goes on where it was stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from secateur import bench_entries, benching
from secateur.artifacts.checkpoint import save_plain
from secateur.artifacts.loading import load_model, load_tokenizer
from secateur.benching import bench
from secateur.errors import CheckpointError, SecateurError
from secateur.exports.engines import export_model
from secateur.exports.folder import ExportError
from secateur.masks.mask import MaskSet
from toy import Killed, Toy

QUICK: dict[str, Any] = {"batches": [1, 2], "threads": [1], "repeats": 1, "num_texts": 2, "memory": False}
RANDOM: dict[str, Any] = {**QUICK, "engines": ["hf-fp32", "ct2-int8"], "source_tokens": 5, "new_tokens": 3}


def test_rows_bytes_quality_and_hash_are_of_one_artefact(toy: Toy, tmp_path: Path) -> None:
    out = tmp_path / "bench"
    engines = ["hf-fp32", "ct2-int8"]
    found = bench([str(toy.start)], toy.recipe(), out=out, engines=engines, quality=True, **QUICK)
    assert json.loads((out / "bench.json").read_text()) == found
    assert {(row["engine"], row["batch"]) for row in found["rows"]} == {(name, b) for name in engines for b in (1, 2)}
    for row in found["rows"]:
        assert min(row["latency_ms"], row["first_token_ms"], row["tokens_per_second"], row["num_bytes"]) > 0
        assert row["latency_ms"] <= row["latency_p90_ms"] and "per" in row["metrics"]
        assert row["tokens_per_text"] == found["new_tokens"] == 3  # the recipe's limit
    assert len({row["hash"] for row in found["rows"]}) == 2
    for size in (1, 2):  # the baseline is the fastest dense engine, so no dense row beats it
        assert max(row["times_faster"] for row in found["rows"] if row["batch"] == size) == 1.0
    assert (out / "bench.png").read_bytes().startswith(b"\x89PNG") and "ct2-int8" in (out / "bench.md").read_text()
    again = bench([str(out / "exports" / "1-ct2-int8")], source_tokens=5, new_tokens=3, **QUICK)
    assert {row["engine"] for row in again["rows"]} == {"ct2-int8"}
    assert again["rows"][0]["hash"] in {row["hash"] for row in found["rows"]}


def test_a_skipped_engine_has_its_reason(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ExportError(["cannot hold it."])

    monkeypatch.setattr(bench_entries, "export_model", refuse)
    found = bench([str(toy.start)], **{**RANDOM, "engines": ["hf-bf16", "onnx-int8"]})
    (skipped,) = found["skipped"]
    assert (skipped["engine"], skipped["reason"]) == ("onnx-int8", "cannot hold it.")
    assert {row["engine"] for row in found["rows"]} == {"hf-bf16"}
    with pytest.raises(SecateurError, match=r"none of the engines.*cannot hold it"):
        bench([str(toy.start)], engines=["onnx-int8"], **QUICK)


@pytest.mark.parametrize("slow", [True, False])
def test_bf16_is_left_out_by_default_where_it_is_slow(toy: Toy, monkeypatch: pytest.MonkeyPatch, slow: bool) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ExportError(["cannot hold it."])

    monkeypatch.setattr(bench_entries, "export_model", refuse)
    monkeypatch.setattr(bench_entries, "computes_bf16", lambda device: not slow)
    found = bench([str(toy.start)], **{**RANDOM, "engines": None, "batches": [1]})
    assert {row["engine"] for row in found["rows"]} == ({"hf-fp32"} if slow else {"hf-fp32", "hf-bf16"})
    reasons = {entry["engine"]: entry["reason"] for entry in found["skipped"]}
    assert ("no instructions for bf16" in reasons.get("hf-bf16", "")) == slow


def _watch(monkeypatch: pytest.MonkeyPatch, kill: str, calls: list[str]) -> None:
    """Note what is done, and end the bench as `kill` begins."""

    def watch(name: str, described: Any) -> None:
        module = bench_entries if name == "export_model" else benching
        original = getattr(module, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            calls.append(described(*args, **kwargs))
            if calls[-1] == kill:
                raise Killed
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, watched)

    watch("export_model", lambda folder, out, **_: f"export {out.name}")
    watch("time_turns", lambda *_, size, **__: f"batch {size}")
    watch("evaluate_model", lambda engine, *_, **__: f"quality {type(engine).__name__}")
    monkeypatch.setattr(benching, "peak_memory_mib", lambda entry, *_, size, **__: calls.append(f"memory {size}"))


@pytest.mark.parametrize("kill", ["export 1-onnx-int8", "batch 2", "quality OnnxEngine"])
def test_a_stopped_bench_goes_on_where_it_stopped(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: str
) -> None:
    options = {**QUICK, "memory": True, "quality": True, "engines": ["ct2-int8", "onnx-int8"], "out": tmp_path / "b"}
    calls: list[str] = []
    with monkeypatch.context() as patch, pytest.raises(Killed):
        _watch(patch, kill, calls)
        bench([str(toy.start)], toy.recipe(), **options)
    assert calls.pop() == kill
    _watch(monkeypatch, "nothing", calls)
    found = bench([str(toy.start)], toy.recipe(), **options)
    exports = [f"export 1-{name}" for name in options["engines"]]
    memory = [f"memory {size}" for size in (1, 1, 2, 2)]
    assert calls == [*exports, "batch 1", "batch 2", *memory, "quality CTranslate2Engine", "quality OnnxEngine"]
    assert len(found["rows"]) == 4 and all(row["metrics"] for row in found["rows"])
    del calls[:]
    assert bench([str(toy.start)], toy.recipe(), **options)["rows"] == found["rows"]
    assert calls == []


def test_a_wider_question_keeps_what_is_there(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"out": tmp_path / "b", **RANDOM}
    first = bench([str(toy.start)], **{**asked, "batches": [2]})
    calls: list[str] = []
    _watch(monkeypatch, "nothing", calls)
    second = bench([str(toy.start)], **{**asked, "memory": True})
    assert calls == ["batch 1", *["memory 1"] * 2, *["memory 2"] * 2]
    assert [row["latency_ms"] for row in second["rows"][2:]] == [row["latency_ms"] for row in first["rows"]]


def test_a_damaged_export_is_made_again(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = bench([str(toy.start)], out=tmp_path / "b", **RANDOM)
    weights = tmp_path / "b" / "exports" / "1-ct2-int8" / "model.bin"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1])
    calls: list[str] = []
    _watch(monkeypatch, "nothing", calls)
    assert bench([str(toy.start)], out=tmp_path / "b", **RANDOM)["rows"] == found["rows"]
    assert calls == ["export 1-ct2-int8"] and weights.read_bytes() == kept


def test_other_settings_models_machines_and_folders_are_refused(toy: Toy, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(toy.start, model)
    asked: dict[str, Any] = {"out": tmp_path / "b", **RANDOM, "engines": ["hf-fp32"], "batches": [1]}
    bench([str(model)], **asked)
    with pytest.raises(CheckpointError, match="other new_tokens, exactly, repeats"):
        bench([str(model)], **{**asked, "new_tokens": 4, "exactly": False, "repeats": 2})
    file = tmp_path / "b" / "bench.json"
    content = file.read_text()
    file.write_text(content.replace('"cores": ', '"cores": 9'))
    with pytest.raises(CheckpointError, match="other cores"):
        bench([str(model)], **asked)
    file.write_text(content.replace('"version": 2', '"version": 1'))
    with pytest.raises(CheckpointError, match="has version 1"):
        bench([str(model)], **asked)
    file.write_text("{}")
    with pytest.raises(CheckpointError, match="not a bench of Secateur"):
        bench([str(model)], **asked)
    file.write_text(content)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(CheckpointError, match="other hashes"):
        bench([str(model)], **asked)
    assert file.read_text() == content
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match="left alone"):
        bench([str(model)], **{**asked, "out": tmp_path / "mine"})
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_bench_without_figures_may_be_asked_otherwise(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        _watch(patch, "batch 1", [])
        bench([str(toy.start)], out=tmp_path / "b", **RANDOM)
    found = bench([str(toy.start)], out=tmp_path / "b", **{**RANDOM, "new_tokens": 2})
    assert found["new_tokens"] == 2


def test_an_engine_that_was_missing_may_be_installed_later(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {**RANDOM, "out": tmp_path / "b", "batches": [1]}

    def missing(*args: object, **kwargs: object) -> None:
        raise ExportError(["ctranslate2 is not installed."])

    with monkeypatch.context() as patch:
        patch.setattr(bench_entries, "export_model", missing)
        patch.setattr(benching, "_packages", dict)
        assert {row["engine"] for row in bench([str(toy.start)], **asked)["rows"]} == {"hf-fp32"}
    found = bench([str(toy.start)], **asked)
    assert {row["engine"] for row in found["rows"]} == {"hf-fp32", "ct2-int8"} and not found["skipped"]
    monkeypatch.setattr(benching, "_packages", lambda: {"ctranslate2": "0.1"})
    with pytest.raises(CheckpointError, match="other ctranslate2"):
        bench([str(toy.start)], **asked)


def test_an_export_that_was_damaged_and_is_whole_again_is_measured(toy: Toy, tmp_path: Path) -> None:
    export = tmp_path / "export"
    export_model(toy.start, export, target="onnx", int8=False)
    (weights,) = (file for file in export.iterdir() if file.name.startswith("encoder") and file.suffix == ".onnx")
    whole = weights.read_bytes()
    asked: dict[str, Any] = {**RANDOM, "engines": ["hf-fp32"], "batches": [1], "out": tmp_path / "b"}
    weights.write_bytes(b"damaged")
    found = bench([str(toy.start), str(export)], **asked)
    assert [row["engine"] for row in found["rows"]] == ["hf-fp32"] and len(found["skipped"]) == 1
    weights.write_bytes(whole)
    found = bench([str(toy.start), str(export)], **asked)
    assert [row["engine"] for row in found["rows"]] == ["hf-fp32", "onnx-fp32"] and not found["skipped"]


def test_the_report_holds_earlier_questions_too(toy: Toy, tmp_path: Path) -> None:
    asked: dict[str, Any] = {**RANDOM, "engines": ["hf-fp32"], "out": tmp_path / "b"}
    first = bench([str(toy.start)], **{**asked, "batches": [2]})
    second = bench([str(toy.start)], **{**asked, "batches": [1]})
    assert [row["batch"] for row in second["rows"]] == [1, 2]
    assert second["rows"][1] == first["rows"][0]


def test_quality_is_greedy_like_what_is_timed(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = benching.evaluate_model

    def evaluate_model(*args: Any, num_beams: int, **kwargs: Any) -> Any:
        asked.append(num_beams)
        return original(*args, num_beams=num_beams, **kwargs)

    monkeypatch.setattr(benching, "evaluate_model", evaluate_model)
    overrides = ["evaluation.num_beams=3"]
    options: dict[str, Any] = {**QUICK, "engines": ["hf-fp32"], "batches": [1], "quality": True}
    bench([str(toy.start)], toy.recipe(), overrides=overrides, **options)
    assert asked == [1]


def test_a_model_with_anothers_tokenizer_is_left_out_by_name(toy: Toy, tmp_path: Path) -> None:
    small = tmp_path / "small"
    model = load_model(str(toy.start))
    model.resize_token_embeddings(4)
    save_plain(model, load_tokenizer(str(toy.start)), small, masks=MaskSet.empty())
    found = bench([str(toy.start), str(small)], toy.recipe(), engines=["hf-fp32"], **{**QUICK, "batches": [1]})
    assert {row["model"] for row in found["rows"]} == {str(toy.start)}
    assert [item["model"] for item in found["skipped"]] == [str(small)]


def test_memory_that_could_not_be_measured_is_tried_again(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise SecateurError("killed")

    asked: dict[str, Any] = {**RANDOM, "engines": ["hf-fp32"], "batches": [1], "memory": True, "out": tmp_path / "b"}
    told: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(benching, "peak_memory_mib", fails)
        (row,) = bench([str(toy.start)], on_turn=told.append, **asked)["rows"]
    assert row["peak_memory_mib"] is None and told[-1] == "killed"
    monkeypatch.setattr(benching, "peak_memory_mib", lambda *_, **__: 77.0)
    assert bench([str(toy.start)], **asked)["rows"][0]["peak_memory_mib"] == 77.0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"engines": ["tensorrt"]}, "no such engine: tensorrt"),
        ({"engines": ["hf-fp32", "hf-fp32"]}, "each once"),
        ({"batches": [0]}, "batches: must be"),
        ({"threads": [0]}, "threads: must be"),
        ({"new_tokens": 0}, "new_tokens: must be"),
        ({"dense": "other"}, "none of the models"),
        ({"quality": True}, "--recipe"),
        ({"split": "test"}, "split test is of a recipe's data"),
        ({"overrides": ["seed=1"]}, "--set seed=1: no recipe is known"),
        ({"recipe": "toy", "source_tokens": 5}, "source_tokens cannot act"),
    ],
)
def test_a_wrong_question_is_refused(toy: Toy, tmp_path: Path, options: dict[str, Any], told: str) -> None:
    if "recipe" in options:
        options = {**options, "recipe": toy.recipe()}
    with pytest.raises(SecateurError, match=told):
        bench([str(toy.start)], out=tmp_path / "b", **{**QUICK, **options})
    assert not (tmp_path / "b").exists()


def test_a_model_that_is_missing_or_has_no_tokenizer_is_refused_before_the_work(toy: Toy, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(toy.start, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    for model, told in ((bare, "holds no tokenizer"), (tmp_path / "none", "no such folder")):
        with pytest.raises(CheckpointError, match=told):
            bench([str(toy.start), str(model)], out=tmp_path / "b", **RANDOM)
    assert not (tmp_path / "b").exists()
