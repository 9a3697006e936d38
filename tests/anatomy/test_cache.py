"""The cache of our own changes nothing that is written: neither greedily nor by beams, however deep the decoder is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, GPT2Config, PretrainedConfig, T5Config

from secateur.anatomy.cache import SourceCache, own_cache


def _lively(config: PretrainedConfig) -> Any:
    """Make a random model whose beams change places, with as many layers in either stack (transformers asks that)."""
    config = copy.deepcopy(config)
    deeper = "num_decoder_layers" if hasattr(config, "num_decoder_layers") else "decoder_layers"
    setattr(config, deeper, 2)
    setattr(config, "num_layers" if hasattr(config, "num_layers") else "encoder_layers", 2)
    torch.manual_seed(3)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.6)
    return model


@pytest.mark.parametrize("num_beams", [1, 4])
def test_writes_what_transformers_own_cache_writes(writer_config: PretrainedConfig, num_beams: int) -> None:
    model = _lively(writer_config)
    sources = torch.randint(3, 40, (5, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(sources)
    mask[2:4, 4:] = 0
    settings = GenerationConfig(
        max_new_tokens=12, num_beams=num_beams, do_sample=False, return_dict_in_generate=True, output_scores=True,
        eos_token_id=1, pad_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip

    def write(**cache: object) -> tuple[Tensor, Tensor]:
        found = model.generate(input_ids=sources, attention_mask=mask, generation_config=settings, **cache)
        return found.sequences, torch.stack(found.scores)  # of every step, (B x beams, V) each

    theirs, their_scores = write()
    ours, our_scores = write(**own_cache(model.config))
    assert torch.equal(ours, theirs)
    assert torch.equal(our_scores, their_scores)
    assert not torch.equal(our_scores[:, 0], our_scores[:, -1])  # sources are told apart


def test_beams_do_change_places_in_what_was_written() -> None:
    cache = own_cache(T5Config())["past_key_values"]
    assert isinstance(cache.cross_attention_cache, SourceCache)
    rows = torch.arange(4.0).reshape(4, 1, 1, 1)
    for part in (cache.self_attention_cache, cache.cross_attention_cache):
        part.update(rows, rows, 0)
    cache.reorder_cache(torch.tensor([1, 0, 3, 3]))
    later = torch.full((4, 1, 1, 1), 9.0)
    written, _ = cache.self_attention_cache.update(later, later, 0)
    read, _ = cache.cross_attention_cache.update(later, later, 0)
    assert written[:, 0, 0, 0].tolist() == [1, 0, 3, 3]
    assert read[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_none_for_a_model_of_an_unknown_family() -> None:
    assert own_cache(GPT2Config()) == {}


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_decoder_may_be_deeper_than_the_encoder(writer_config: PretrainedConfig, num_beams: int) -> None:
    model = AutoModelForSeq2SeqLM.from_config(writer_config).eval()
    settings = GenerationConfig(max_new_tokens=4, num_beams=num_beams, eos_token_id=1, pad_token_id=0,
                                decoder_start_token_id=0)  # fmt: skip
    found = model.generate(input_ids=torch.tensor([[5, 6, 1]]), generation_config=settings, **own_cache(model.config))
    assert found.shape[0] == 1
