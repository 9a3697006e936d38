from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers import (
    BartConfig,
    BertConfig,
    LongT5Config,
    PretrainedConfig,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    WhisperConfig,
)

from secateur.anatomy.check import anatomy_of, family_of, meta_model, read_config
from secateur.artifacts.loading import load_model
from secateur.errors import AnatomyError

ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def test_t5_small_has_the_numbers_of_the_report() -> None:
    anatomy = anatomy_of(meta_model(T5Config(), {}))
    sums = Counter[str]()
    for weight in anatomy.unique():
        sums[weight.role] += weight.numel
    assert anatomy.num_parameters == 60_506_624
    assert sums == {
        "embedding": 16_449_536,
        "self_attention": 12_582_912,
        "cross_attention": 6_291_456,
        "feed_forward": 25_165_824,
        "norm": 16_384,
        "position_bias": 512,
    }
    assert anatomy["lm_head.weight"].numel == 16_449_536
    assert anatomy["lm_head.weight"].storage == "shared.weight"
    assert anatomy.tied("lm_head.weight") == ("shared.weight", *ALIASES)


def test_all_faults_come_at_once(t5_config: T5Config) -> None:
    model = T5ForConditionalGeneration(t5_config)
    model.register_parameter("extra", nn.Parameter(torch.zeros(3)))
    del model.decoder.final_layer_norm.weight
    model.get_submodule("encoder.block.1.layer.1.DenseReluDense").wo = nn.Linear(20, 16, bias=False)
    with pytest.raises(AnatomyError) as caught:
        anatomy_of(model)
    assert sorted(fault.split(":")[0] for fault in caught.value.faults) == [
        "decoder.final_layer_norm.weight",
        "encoder.block.1.layer.1.DenseReluDense.wo.weight",
        "extra",
    ]
    text = str(caught.value)
    assert text.startswith("T5ForConditionalGeneration is not the t5 model that its configuration describes")
    assert "decoder.final_layer_norm.weight: missing. The configuration calls for [16] (d_model), norm." in text
    assert "wo.weight: has shape [16, 20], the configuration says [16, 24] (d_model x d_ff)." in text
    assert "extra: unknown, shape [3]. No rule of the family claims it." in text


@pytest.mark.parametrize("where", ["encoder.block.0.layer.0.SelfAttention.q", "lm_head"])
def test_a_bias_that_the_family_does_not_have_is_unknown(t5_config: T5Config, where: str) -> None:
    model = T5ForConditionalGeneration(t5_config)
    model.get_submodule(where).bias = nn.Parameter(torch.zeros(4))
    with pytest.raises(AnatomyError) as caught:
        anatomy_of(model)
    assert caught.value.faults == (f"{where}.bias: unknown, shape [4]. No rule of the family claims it.",)


def test_a_configuration_with_more_layers_than_the_model_is_a_fault(t5_config: T5Config) -> None:
    model = T5ForConditionalGeneration(t5_config)
    model.config.num_decoder_layers = 2
    with pytest.raises(AnatomyError, match=r"decoder\.block\.1\.layer\.0\.SelfAttention\.q\.weight: missing"):
        anatomy_of(model)


def test_another_class_of_the_family_is_named(t5_config: T5Config) -> None:
    with pytest.raises(AnatomyError, match=r"T5EncoderModel .* rules are for T5ForConditionalGeneration") as caught:
        anatomy_of(T5EncoderModel(t5_config))
    assert any(fault.startswith("lm_head.weight: missing") for fault in caught.value.faults)


def test_buffers_are_not_looked_at(t5_config: T5Config) -> None:
    model = T5ForConditionalGeneration(t5_config)
    model.lm_head.register_buffer("mask", torch.ones(3), persistent=False)
    assert len(anatomy_of(model).weights) == len(list(model.named_parameters(remove_duplicate=False)))


@pytest.mark.parametrize("config", [LongT5Config(), WhisperConfig()], ids=["longt5", "whisper"])
def test_an_unknown_family_is_refused_by_name(config: PretrainedConfig) -> None:
    with pytest.raises(AnatomyError, match=rf"'{config.model_type}' is known.*Families here: t5, mt5, umt5,"):
        family_of(config)


LOOK_ALIKES = {
    "whisper": transformers.WhisperConfig,
    "longt5": transformers.LongT5Config,
    "switch_transformers": transformers.SwitchTransformersConfig,
    "pegasus_x": transformers.PegasusXConfig,
    "bigbird_pegasus": transformers.BigBirdPegasusConfig,
    "m2m_100": transformers.M2M100Config,
    "led": transformers.LEDConfig,
    "blenderbot": transformers.BlenderbotConfig,
    "xlm-roberta": transformers.XLMRobertaConfig,
    "electra": transformers.ElectraConfig,
}


@pytest.mark.parametrize("model_type", LOOK_ALIKES)
def test_a_family_that_looks_like_one_of_ours_is_refused_by_name(model_type: str) -> None:
    with pytest.raises(AnatomyError, match=rf"no family '{model_type}' is known\..*docs/add-a-family\.md"):
        family_of(LOOK_ALIKES[model_type]())


MISFITS = {
    "a decoder alone": (BartConfig(is_decoder=True), "is_decoder: True .* a decoder alone"),
    "a table for each stack": (BartConfig(tie_word_embeddings=False), "tie_word_embeddings: False .* a table each"),
    "no language": (transformers.MBartConfig(), "decoder_start_token_id: None .* token of its language"),
    "two vocabularies": (
        transformers.MarianConfig(share_encoder_decoder_embeddings=False),
        "share_encoder_decoder_embeddings: False .* a vocabulary each",
    ),
    "two sizes": (transformers.MarianConfig(vocab_size=9, decoder_vocab_size=8), r"decoder_vocab_size: 8 is not .*9"),
    "another head": (BartConfig(architectures=["BartForCausalLM"]), "architectures: BartForCausalLM is another kind"),
    "a bert that writes": (BertConfig(is_decoder=True), "is_decoder: True .* only encoders"),
    "cross attention": (BertConfig(add_cross_attention=True), "add_cross_attention: True .* only encoders"),
    "relative positions": (
        BertConfig(position_embedding_type="relative_key"),
        "position_embedding_type: 'relative_key' .* other positions than absolute",
    ),
    "tokens classified": (BertConfig(architectures=["BertForTokenClassification"]), "another kind of model"),
}


@pytest.mark.parametrize("what", MISFITS)
def test_what_a_familys_rules_do_not_understand_is_refused_with_a_reason(what: str, tmp_path: Path) -> None:
    config, reason = MISFITS[what]
    with pytest.raises(AnatomyError, match=reason):
        family_of(config)
    config.save_pretrained(tmp_path)
    with pytest.raises(AnatomyError, match=reason):
        read_config(str(tmp_path))
    with pytest.raises(AnatomyError, match=reason):
        load_model(str(tmp_path))


def test_every_misfit_is_told_at_once() -> None:
    with pytest.raises(AnatomyError) as caught:
        family_of(BertConfig(is_decoder=True, add_cross_attention=True, architectures=["BertLMHeadModel"]))
    assert len(caught.value.faults) == 3


def test_a_module_without_configuration_is_refused_by_its_class() -> None:
    with pytest.raises(AnatomyError, match="Linear: names no model_type"):
        anatomy_of(nn.Linear(2, 2))


def test_equal_values_are_not_a_tie(t5_config: T5Config) -> None:
    model = T5ForConditionalGeneration(t5_config)
    tied = anatomy_of(model)
    model.lm_head.weight = nn.Parameter(model.shared.weight.detach().clone())
    cloned = anatomy_of(model)
    assert tied.tied("shared.weight") == (*ALIASES, "lm_head.weight")
    assert cloned.tied("shared.weight") == ALIASES
    assert cloned["lm_head.weight"].owns
    assert cloned.num_parameters - tied.num_parameters == model.shared.weight.numel()


def test_the_configuration_has_no_say_in_ties(t5_config: T5Config) -> None:
    model = T5ForConditionalGeneration(t5_config)
    before = anatomy_of(model)
    model.config.tie_word_embeddings = False
    assert anatomy_of(model).weights == before.weights


def test_any_shared_tensor_is_a_tie(t5_config: T5Config) -> None:
    model = T5ForConditionalGeneration(t5_config)
    query, key = (model.get_submodule(f"encoder.block.0.layer.0.SelfAttention.{name}") for name in "qk")
    key.weight = query.weight
    anatomy = anatomy_of(model)
    path = "encoder.block.0.layer.0.SelfAttention.q.weight"
    assert anatomy.tied(path) == (path.replace(".q.", ".k."),)


@pytest.mark.parametrize(
    ("raw", "tied"), [({}, True), ({"tie_word_embeddings": True}, True), ({"tie_word_embeddings": False}, False)]
)
def test_meta_model_follows_the_file_on_ties(writer_config: PretrainedConfig, raw: dict[str, bool], tied: bool) -> None:
    model = meta_model(writer_config, raw)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert anatomy_of(model)["lm_head.weight"].owns is not tied


def test_meta_model_follows_the_file_on_scale_and_leaves_the_config_alone(t5_config: T5Config) -> None:
    before = t5_config.to_dict()
    assert anatomy_of(meta_model(t5_config, {})).head_scale == 16**-0.5
    assert anatomy_of(meta_model(t5_config, {"scale_decoder_outputs": False})).head_scale == 1.0
    assert t5_config.to_dict() == before
