from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers

from secateur.anatomy.check import anatomy_of, meta_model
from secateur.anatomy.families import FAMILIES
from secateur.anatomy.family import Family, Rule, expected
from secateur.errors import AnatomyError
from secateur.recipe import names

EVERY = set(names.words(names.Role))
_T5 = EVERY - {"classifier", "position_embedding"}
_ENCODER = EVERY - {"cross_attention", "lm_head", "position_bias"}
_BART = EVERY - {"classifier", "position_bias"}
ROLES = dict.fromkeys(("t5", "mt5", "umt5"), _T5) | dict.fromkeys(("bert", "roberta", "distilbert"), _ENCODER)
ROLES |= dict.fromkeys(("bart", "mbart", "marian", "pegasus"), _BART)


def live(config: transformers.PretrainedConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return getattr(transformers, FAMILIES[config.model_type].model_class)(config).eval()


def test_every_family_has_a_tiny_configuration(all_configs: list[transformers.PretrainedConfig]) -> None:
    assert [family.model_type for family in FAMILIES.values()] == list(FAMILIES)
    assert {config.model_type for config in all_configs} == set(FAMILIES)
    assert len(FAMILIES) >= 3


def test_every_parameter_is_claimed_live_and_on_meta(config: transformers.PretrainedConfig) -> None:
    model = live(config)
    anatomy = anatomy_of(model)
    assert [weight.path for weight in anatomy.weights] == [
        name for name, _ in model.named_parameters(remove_duplicate=False)
    ]
    assert all(weight.shape == tuple(model.get_parameter(weight.path).shape) for weight in anatomy.weights)
    assert anatomy.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert {weight.role for weight in anatomy.weights} == ROLES[config.model_type]
    assert anatomy_of(meta_model(config, {})) == anatomy


def test_every_role_is_some_familys() -> None:
    assert set.union(*ROLES.values()) == EVERY


def test_layers_and_stacks_are_those_in_the_name(config: transformers.PretrainedConfig) -> None:
    for weight in anatomy_of(meta_model(config, {})).weights:
        found = re.search(r"(encoder|decoder|transformer)\.(block|layers?)\.([0-9]+)\.", weight.path)
        assert weight.layer == (int(found[3]) if found else None)
        if found:
            assert weight.stack == found[1].replace("transformer", "encoder")


def test_what_is_added_goes_with_a_matrix_or_norm_of_its_place(config: transformers.PretrainedConfig) -> None:
    weights = anatomy_of(meta_model(config, {})).weights
    placed = {(weight.role, weight.part, weight.stack, weight.layer): weight for weight in weights}
    addends = [weight for weight in weights if weight.is_addend]
    assert bool(addends) is ("bias" in {weight.path.rpartition(".")[2] for weight in weights})
    for addend in addends:
        partner = placed[(addend.role, addend.part.removesuffix("_bias"), addend.stack, addend.layer)]
        assert addend.dims == partner.dims[:1]


def test_head_scale_is_what_the_forward_pass_does(t5_like: tuple[transformers.PretrainedConfig, float]) -> None:
    config, head_scale = t5_like
    model = live(config)
    seen: dict[str, Any] = {}
    model.get_submodule("decoder.final_layer_norm").register_forward_hook(
        lambda _module, _inputs, output: seen.__setitem__("before", output)
    )
    model.get_submodule("lm_head").register_forward_pre_hook(
        lambda _module, inputs: seen.__setitem__("after", inputs[0])
    )
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 1]]), decoder_input_ids=torch.tensor([[0, 7]]))
    assert anatomy_of(model).head_scale == head_scale
    torch.testing.assert_close(seen["after"], seen["before"] * head_scale, rtol=0, atol=0)


def test_umt5_has_a_position_bias_per_layer_and_t5_one_per_stack(
    t5_like: tuple[transformers.PretrainedConfig, float],
) -> None:
    config: Any = t5_like[0]
    biases = anatomy_of(meta_model(config, {})).select(role="position_bias")
    both_depths = config.num_layers + config.num_decoder_layers
    assert len(biases) == (both_depths if config.model_type == "umt5" else 2)


def test_a_name_claimed_twice_is_a_fault_of_the_family() -> None:
    row = Rule("head", "lm_head", "head", ("wide",))
    family = Family("toy", "Toy", {"wide": ("d",)}, {}, (row, row))
    with pytest.raises(AnatomyError, match="head: claimed by two rows"):
        expected(family, type("Config", (), {"d": 2}))


def test_families_are_read_without_torch() -> None:
    code = "import sys, secateur.anatomy.families, secateur.anatomy.roles; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
