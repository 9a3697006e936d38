from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForSeq2SeqLM, LongT5Config, PretrainedConfig, T5Config, T5ForConditionalGeneration

from secateur.anatomy.check import anatomy_of, meta_model, read_config
from secateur.anatomy.stored import stored_tie
from secateur.errors import AnatomyError, CheckpointError


def save(config: T5Config, folder: Path, *, untied: bool, **keywords: Any) -> None:
    """Write a plain folder as transformers does; an untied head differs from the table."""
    model = T5ForConditionalGeneration(config)
    if untied:
        model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.save_pretrained(folder, **keywords)


def edit(folder: Path, **keys: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def test_a_saved_configuration_is_read_as_transformers_reads_it(config: PretrainedConfig, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    read, raw = read_config(str(tmp_path))
    assert raw == json.loads((tmp_path / "config.json").read_text())
    assert read.to_dict() | {"_name_or_path": ""} == type(config).from_pretrained(tmp_path).to_dict()
    assert anatomy_of(meta_model(read, raw)).head_scale == anatomy_of(meta_model(config, {})).head_scale


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("said", [False, True])
@pytest.mark.parametrize("max_shard_size", ["5GB", "4KB"])
def test_the_weight_file_settles_the_tie(
    t5_config: T5Config, tmp_path: Path, untied: bool, said: bool, max_shard_size: str
) -> None:
    save(t5_config, tmp_path, untied=untied, max_shard_size=max_shard_size)
    edit(tmp_path, tie_word_embeddings=said)
    assert (tmp_path / "model.safetensors.index.json").exists() is (max_shard_size == "4KB")
    planned = anatomy_of(meta_model(*read_config(str(tmp_path))))
    loaded = anatomy_of(AutoModelForSeq2SeqLM.from_pretrained(tmp_path))
    assert planned == loaded
    assert planned["lm_head.weight"].owns is untied


def test_two_equal_tables_in_a_file_are_tied_when_loaded(t5_config: T5Config, tmp_path: Path) -> None:
    save(t5_config, tmp_path, untied=False)
    state = T5ForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    state = {name: tensor.clone() for name, tensor in state.items() if "embed_tokens" not in name}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert stored_tie(tmp_path, ["shared.weight"]) is True
    assert anatomy_of(AutoModelForSeq2SeqLM.from_pretrained(tmp_path)).tied("lm_head.weight")
    state["lm_head.weight"][-1, -1] += 1  # the first rows agree
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert stored_tie(tmp_path, ["shared.weight"]) is False


def test_an_index_without_its_files_tells_nothing(t5_config: T5Config, tmp_path: Path) -> None:
    save(t5_config, tmp_path, untied=True, max_shard_size="4KB")
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert stored_tie(tmp_path, ["shared.weight"]) is None


def test_without_weights_the_file_has_the_word(tmp_path: Path, t5_config: T5Config) -> None:
    t5_config.save_pretrained(tmp_path)
    assert stored_tie(tmp_path, ["shared.weight"]) is None
    edit(tmp_path, tie_word_embeddings=False)
    assert anatomy_of(meta_model(*read_config(str(tmp_path))))["lm_head.weight"].owns


def test_an_unknown_family_is_refused_with_its_file(tmp_path: Path) -> None:
    LongT5Config().save_pretrained(tmp_path)
    with pytest.raises(
        AnatomyError, match=r"config\.json: no family 'longt5' is known\..*Families here: t5, mt5, umt5,"
    ):
        read_config(str(tmp_path))
    edit(tmp_path, model_type="t55")
    with pytest.raises(AnatomyError, match=r'Did you mean "t5"\?'):
        read_config(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds a list"),
        ('{"model_type": "t5", "d_model": "wide"}', "not a configuration of a t5 model: .*d_model"),
        ('{"model_type": "t5", "feed_forward_proj": "a-b-c"}', "not a configuration of a t5 model: .*a-b-c"),
    ],
)
def test_a_damaged_configuration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_config(str(tmp_path))


def test_a_damaged_weight_file_is_refused(tmp_path: Path) -> None:
    T5Config().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a weight file")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read as safetensors"):
        read_config(str(tmp_path))


def test_a_path_is_never_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_arguments: object) -> None:
        raise AssertionError("asked the hub")

    monkeypatch.setattr("transformers.utils.hub.cached_file", fetch)
    file = tmp_path / "file"
    file.touch()
    for name in (str(tmp_path / "none"), "./none", "runs/a/model", "none/", "~/no/such/folder"):
        with pytest.raises(CheckpointError, match="no such folder"):
            read_config(name)
    with pytest.raises(CheckpointError, match="is a file"):
        read_config(str(file))
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        read_config(str(tmp_path))


def test_a_hub_that_does_not_answer_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_arguments: object) -> None:
        raise OSError("We couldn't connect.\nCheck your internet connection.")

    monkeypatch.setattr("transformers.utils.hub.cached_file", fetch)
    with pytest.raises(
        CheckpointError, match=r"org/name: no such folder here, and the hub .* \(We couldn't connect\.\)"
    ):
        read_config("org/name")
