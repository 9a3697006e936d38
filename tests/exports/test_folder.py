"""An export is whole or not there, says what it is, and is refused when it is not what it says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from secateur.artifacts.loading import load_tokenizer
from secateur.artifacts.manifest import artefact_hash
from secateur.errors import AnatomyError, CheckpointError, SecateurError
from secateur.exports import folder as folders
from secateur.exports.engines import EXPORTERS, cannot_hold, export_model, open_engine
from secateur.exports.folder import FACTS, ExportError, is_export, read_facts, usable_threads
from secateur.files import read_json, write_json

TARGETS = ["ctranslate2", "onnx"]


@pytest.mark.parametrize("target", TARGETS)
def test_what_an_export_says_of_itself(target: str, exported: Callable[..., Path], folder: Callable[..., Path]) -> None:
    place = exported("t5", target, True)
    facts = read_facts(place)
    assert is_export(place) and not is_export(folder("t5"))
    assert facts.target == target and facts.int8
    assert facts.source_hash == artefact_hash(str(folder("t5"))) != facts.hash
    assert facts.hash != read_facts(exported("t5", target)).hash
    assert (facts.eos_token_ids, facts.pad_token_id, facts.decoder_start_token_id) == ([1], 0, 0)
    assert facts.num_bytes == sum((place / name).stat().st_size for name in facts.weights) > 10_000
    assert set(facts.files) | {FACTS} == {item.name for item in place.iterdir()}
    assert all(facts.packages[name] == version(name) for name in facts.packages) and facts.packages
    assert facts.config == read_json(folder("t5") / "config.json") and facts.vocab_size == 509
    raw = read_json(place / FACTS)
    assert (raw["format"], raw["version"]) == ("secateur-export", 1) and asdict(facts).items() <= raw.items()


@pytest.mark.parametrize("target", TARGETS)
def test_the_tokenizer_comes_along(target: str, exported: Callable[..., Path]) -> None:
    assert load_tokenizer(str(exported("t5", target))).convert_tokens_to_ids(["</s>", "w499"]) == [1, 499]


@pytest.mark.parametrize("target", TARGETS)
def test_a_tokenizer_whose_class_only_the_configuration_told_is_named(
    target: Any, folder: Callable[..., Path], tmp_path: Path
) -> None:
    given = tmp_path / "given"
    shutil.copytree(folder("t5"), given)
    settings = read_json(given / "tokenizer_config.json")
    name = settings.pop("tokenizer_class")
    write_json(given / "tokenizer_config.json", settings)
    config = read_json(given / "config.json")
    write_json(given / "config.json", {**config, "tokenizer_class": name})
    export_model(given, tmp_path / "out", target=target, int8=False)
    known = load_tokenizer(str(given))
    found = load_tokenizer(str(tmp_path / "out"))
    assert type(found) is type(known) and found.get_vocab() == known.get_vocab() and found.eos_token_id == 1


@pytest.mark.parametrize("target", TARGETS)
def test_equal_exports_are_equal_bytes(
    target: Any, exported: Callable[..., Path], folder: Callable[..., Path], tmp_path: Path
) -> None:
    facts = export_model(folder("t5"), tmp_path / "out", target=target, int8=False)
    assert facts == read_facts(tmp_path / "out") == read_facts(exported("t5", target))


@pytest.mark.parametrize("target", TARGETS)
def test_damage_is_named(target: str, exported: Callable[..., Path], tmp_path: Path) -> None:
    place = tmp_path / "export"
    shutil.copytree(exported("t5", target), place)
    facts = read_facts(place)
    with (place / facts.weights[0]).open("r+b") as stream:
        stream.seek(5000)
        stream.write(b"\x55\x54")
    (place / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        open_engine(place)
    assert f"{facts.weights[0]} is damaged" in str(caught.value) and "tokenizer.json is missing" in str(caught.value)


def test_half_written_and_foreign_folders(
    exported: Callable[..., Path], folder: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        open_engine(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no export"):
        open_engine(folder("t5"))
    place = tmp_path / "export"
    shutil.copytree(exported("t5", "onnx"), place)
    content = read_json(place / FACTS)
    for change, message in (
        ({"version": 2}, "has version 2"),
        ({"format": "other"}, "is not what Secateur writes"),
        ({"target": "tpu"}, "There are: ctranslate2, onnx"),
        ({"hash": "0" * 64}, "contradicts itself"),
    ):
        write_json(place / FACTS, content | change)
        with pytest.raises(SecateurError, match=message):
            open_engine(place)
    write_json(place / FACTS, {key: value for key, value in content.items() if key not in ("files", "int8")})
    with pytest.raises(CheckpointError, match="lacks files, int8"):
        open_engine(place)
    (place / FACTS).write_text("{", encoding="utf-8")
    assert not is_export(place)
    with pytest.raises(CheckpointError, match="JSON"):
        open_engine(place)


@pytest.mark.parametrize("target", TARGETS)
def test_a_missing_package_is_told_with_its_extra(
    target: Any,
    exported: Callable[..., Path],
    folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(folders.importlib, "import_module", missing)
    for act in (
        lambda: open_engine(exported("t5", target)),
        lambda: export_model(folder("t5"), tmp_path / "out", target=target, int8=False),
    ):
        with pytest.raises(ExportError, match=rf"pip install 'secateur\[{target}\]'"):
            act()


def test_only_exports_and_empty_folders_are_replaced(
    exported: Callable[..., Path], folder: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export_model(folder("t5"), out, target="onnx", int8=True)
    first = read_facts(out)
    export_model(folder("t5"), out, target="ctranslate2", int8=True)
    assert read_facts(out).target == "ctranslate2" != first.target and not (out / "encoder.onnx").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years", encoding="utf-8")
    with pytest.raises(CheckpointError, match="no export of ours"):
        export_model(folder("t5"), tmp_path / "mine", target="onnx", int8=True)
    assert [item.name for item in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(CheckpointError, match="is an export already"):
        export_model(exported("t5", "onnx"), tmp_path / "again", target="onnx", int8=True)


def test_sources_that_cannot_be_exported(folder: Callable[..., Path], tmp_path: Path) -> None:
    def export(place: Path) -> None:
        export_model(place, tmp_path / "out", target="onnx", int8=False)

    with pytest.raises(CheckpointError, match="no such folder"):
        export(tmp_path / "nowhere")
    place = tmp_path / "model"
    shutil.copytree(folder("t5"), place)
    (place / "model.safetensors").rename(tmp_path / "aside")
    with pytest.raises(CheckpointError, match="holds no weights"):
        export(place)
    (place / "model.safetensors").write_bytes((tmp_path / "aside").read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors|cannot be loaded|damaged"):
        export(place)
    shutil.copy(tmp_path / "aside", place / "model.safetensors")
    for file in place.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        export(place)
    config = read_json(place / "config.json")
    write_json(place / "config.json", config | {"model_type": "bart"})
    with pytest.raises(AnatomyError, match="bart"):
        export(place)
    assert not (tmp_path / "out").exists() and json.loads((place / "config.json").read_text())["model_type"] == "bart"


def test_names() -> None:
    from types import SimpleNamespace

    assert list(EXPORTERS) == TARGETS
    for target in EXPORTERS:
        assert "'gpt2'" in cannot_hold(SimpleNamespace(model_type="gpt2"), target)[0]  # type: ignore[arg-type]
    assert usable_threads(3) == 3 and usable_threads(None) >= 1
