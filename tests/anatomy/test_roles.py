from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import MT5Config, PretrainedConfig, T5Config, T5ForConditionalGeneration

from secateur.anatomy.check import anatomy_of, meta_model
from secateur.anatomy.roles import Anatomy
from secateur.errors import AnatomyError
from secateur.recipe import names


@pytest.fixture
def anatomy(t5_config: T5Config) -> Anatomy:
    return anatomy_of(meta_model(t5_config, {}))  # 2 encoder layers, 1 decoder layer, tied head


def test_roles_share_out_the_unique_weights(config: PretrainedConfig) -> None:
    anatomy = anatomy_of(meta_model(config, {"tie_word_embeddings": False}))
    roles = {weight.role for weight in anatomy.weights}
    groups = [anatomy.select(role=role) for role in roles]
    paths = [weight.path for group in groups for weight in group]
    assert sorted(paths) == sorted(weight.path for weight in anatomy.unique() if not weight.is_addend)
    for role in set(names.words(names.Role)) - roles:
        with pytest.raises(AnatomyError, match="no weight fits"):
            anatomy.select(role=role)  # type: ignore[arg-type]


def test_select_keeps_the_models_order_and_narrows(anatomy: Anatomy) -> None:
    everything = anatomy.select(role="self_attention")
    order = [weight.path for weight in anatomy.weights]
    assert [order.index(weight.path) for weight in everything] == sorted(
        order.index(weight.path) for weight in everything
    )
    assert len(everything) == 3 * 4
    assert {weight.stack for weight in anatomy.select(role="self_attention", stack="decoder")} == {"decoder"}
    assert {weight.layer for weight in anatomy.select(role="self_attention", layers=[1])} == {1}
    assert {weight.part for weight in anatomy.select(role="self_attention", match="*.[qk].weight")} == {"q", "k"}
    (only,) = anatomy.select(role="feed_forward", stack="encoder", layers=(0,), match="*.wo.*")
    assert only.path == "encoder.block.0.layer.1.DenseReluDense.wo.weight"


def test_a_tied_head_is_selected_under_its_own_name_and_the_table_once(anatomy: Anatomy) -> None:
    assert [weight.path for weight in anatomy.select(role="lm_head")] == ["lm_head.weight"]
    assert [weight.path for weight in anatomy.select(role="embedding")] == ["shared.weight"]


def test_an_empty_selection_says_what_there_is(anatomy: Anatomy) -> None:
    with pytest.raises(AnatomyError) as caught:
        anatomy.select(role="cross_attention", stack="encoder")
    assert str(caught.value).splitlines() == [
        "role: cross_attention, stack: encoder: no weight fits.",
        "This t5 model has: embedding; "
        "self_attention (encoder layers 0-1, decoder layer 0); position_bias (encoder layer 0, decoder layer 0); "
        "norm (encoder layers 0-1, decoder layer 0); "
        "feed_forward (encoder layers 0-1, decoder layer 0); cross_attention (decoder layer 0); "
        "lm_head.",
    ]


def test_an_empty_glob_shows_names_near_it(anatomy: Anatomy) -> None:
    with pytest.raises(AnatomyError, match=r"Names near '\*\.SelfAttn\.q\.weight': .*SelfAttention\.q\.weight"):
        anatomy.select(role="self_attention", match="*.SelfAttn.q.weight")


def test_a_layer_that_is_not_there_is_refused_though_others_are(anatomy: Anatomy) -> None:
    with pytest.raises(AnatomyError, match=r"layers: \[1, 6, 7\]: there is no layer 6, 7 in it"):
        anatomy.select(role="self_attention", layers=[7, 1, 6])
    assert len(anatomy.select(role="self_attention", layers=[1])) == 4  # the decoder has no layer 1, the encoder has


def test_an_unknown_name_gets_the_nearest(anatomy: Anatomy) -> None:
    with pytest.raises(AnatomyError, match=r'lm_haed\.weight: no such .* Did you mean "lm_head\.weight"\?'):
        anatomy["lm_haed.weight"]
    assert "lm_head.weight" in anatomy
    assert "lm_haed.weight" not in anatomy


def test_fingerprint_keeps_through_untying_and_changes_with_shape_or_family(t5_config: T5Config) -> None:
    model = T5ForConditionalGeneration(t5_config)
    tied = anatomy_of(model).fingerprint()
    model.lm_head.weight = nn.Parameter(torch.zeros_like(model.lm_head.weight))
    assert anatomy_of(model).fingerprint() == tied == anatomy_of(meta_model(t5_config, {})).fingerprint()
    t5_config.d_ff += 1
    assert anatomy_of(meta_model(t5_config, {})).fingerprint() != tied


def test_fingerprints_of_families_differ_at_equal_shapes() -> None:
    same = {
        "num_layers": 1,
        "d_model": 16,
        "num_heads": 2,
        "d_kv": 4,
        "d_ff": 8,
        "vocab_size": 20,
        "feed_forward_proj": "relu",
    }
    prints = {anatomy_of(meta_model(kind(**same), {})).fingerprint() for kind in (T5Config, MT5Config)}
    assert len(prints) == 2
