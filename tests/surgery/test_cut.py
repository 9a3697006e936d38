"""Cutting removes what masks name and changes nothing else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from nets import AMOUNTS, VOCABULARY, make, masks_of
from secateur.anatomy.check import anatomy_of
from secateur.anatomy.families import FAMILIES
from secateur.anatomy.shrink import Kept, shrink
from secateur.anatomy.units import own_biases, places
from secateur.artifacts.checkpoint import save_plain
from secateur.artifacts.loading import load_model
from secateur.errors import AnatomyError, MaskError
from secateur.masks.hold import attach
from secateur.masks.mask import MaskSet
from secateur.masks.structure import alive_units
from secateur.surgery.cut import CutModel, cut
from secateur.surgery.slices import remainder
from secateur.surgery.verify import Proof, check_proof, verify

COMBINATIONS = [(unit,) for unit in AMOUNTS]
COMBINATIONS += [("head", "layer"), ("layer", "hidden_dim"), ("hidden_dim", "vocab_row"), tuple(AMOUNTS)]

FAMILIES_THAT_WRITE_MUCH = ("t5", "mt5", "umt5")  # random nets of the others repeat themselves; their logits tell


class NoTokenizer:
    def save_pretrained(self, folder: Path) -> None:
        """Writes nothing."""


def prove(model: Any, masks: MaskSet, found: CutModel, sources: Any, targets: Any, **options: Any) -> Proof:
    with attach(model, masks), attach(found.model, found.masks):
        return verify(model, found.model, found.rest, sources, targets, max_new_tokens=4, **options)


@pytest.mark.parametrize("width", ["uniform", "ragged"])
def test_a_cut_model_computes_what_the_masked_one_does(any_model, width, sources, targets):
    model, wordy = any_model, any_model.config.model_type in FAMILIES_THAT_WRITE_MUCH
    few = len(sources) if wordy or not FAMILIES[model.config.model_type].generates else 16
    sources, targets = sources[:few], targets[:few]
    for combo in COMBINATIONS:  # each kind, the pairs that meet in a tensor, and all
        masks = masks_of(model, combo, width=width)
        found = cut(model, masks, remainder(anatomy_of(model), masks, width=width))
        proof = prove(model, masks, found, sources, targets)
        check_proof(proof)
        assert proof.distinct_tokens >= 50 or not wordy, combo
        assert proof.largest_logit > 0.5, combo
        assert proof.score_difference < 1e-4
        assert len(found.masks) == 0, "all that was masked is cut"
        assert {w.path for w in anatomy_of(found.model).unique()} <= {w.path for w in anatomy_of(model).unique()}
        assert sum(p.numel() for p in found.model.parameters()) < sum(p.numel() for p in model.parameters())


def test_the_model_that_is_cut_stays_as_it_was(any_model):
    model = any_model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = copy.deepcopy(model.config.to_dict())
    masks = masks_of(model, AMOUNTS)
    cut(model, masks, remainder(anatomy_of(model), masks))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.config.to_dict() == config


@pytest.mark.parametrize("width", ["uniform", "ragged"])
def test_the_plan_knows_the_size_of_what_is_cut(any_model, width):
    model = any_model
    masks = masks_of(model, AMOUNTS, width=width)
    anatomy = anatomy_of(model)
    found = cut(model, masks, remainder(anatomy, masks, width=width))
    kept = Kept(anatomy)
    for unit in ("head", "ffn_neuron", "vocab_row", "hidden_dim"):
        for place in places(anatomy, unit):
            kept.keep(place, int(alive_units(place, masks.masks).sum()))
    for place in places(anatomy, "layer"):
        kept.keep_layers(place.stack, tuple(alive_units(place, masks.masks).nonzero().flatten().tolist()))
    told, real = shrink(kept, ragged=width == "ragged"), anatomy_of(found.model)
    shapes = {weight.path: weight.shape for weight in real.weights}
    if width == "ragged" and not own_biases(anatomy):  # columns of a shared bias depend on which heads stay
        shapes = {path: shape for path, shape in shapes.items() if "relative" not in path}
    assert {weight.path: weight.shape for weight in told.weights if weight.path in shapes} == shapes
    assert told.head_scale == pytest.approx(real.head_scale)


def test_uniform_widths_load_in_plain_transformers(model, tmp_path, sources, targets):
    masks = masks_of(model, AMOUNTS)
    found = cut(model, masks, remainder(anatomy_of(model), masks))
    save_plain(found.model, NoTokenizer(), tmp_path / "cut", masks=found.masks)
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "cut").eval()
    assert len(plain.encoder.block) < len(plain.decoder.block)
    again = CutModel(plain, MaskSet.empty(), found.rest)
    proof = prove(model, masks, again, sources, targets)
    assert proof.holds and proof.distinct_tokens >= 50


def test_ragged_widths_load_with_our_loader_only(model, tmp_path, sources, targets):
    masks = masks_of(model, ["head", "ffn_neuron"], width="ragged")
    found = cut(model, masks, remainder(anatomy_of(model), masks, width="ragged"))
    assert found.rest.ragged
    save_plain(found.model, NoTokenizer(), tmp_path / "cut", masks=found.masks)
    with pytest.raises((RuntimeError, ValueError)):
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "cut")
    proof = prove(
        model, masks, CutModel(load_model(str(tmp_path / "cut")), MaskSet.empty(), found.rest), sources, targets
    )
    assert proof.holds and proof.distinct_tokens >= 50
    with pytest.raises(MaskError, match="ragged already"):
        cut(found.model, MaskSet.empty(), found.rest)


def test_a_ragged_model_trains(t5, sources, targets):
    masks = masks_of(t5, ["head", "ffn_neuron", "layer"], width="ragged")
    small = cut(t5, masks, remainder(anatomy_of(t5), masks, width="ragged")).model.train()
    loss = small(input_ids=torch.tensor([sources[0]]), labels=torch.tensor([targets[0]])).loss
    loss.backward()
    idle = [name for name, parameter in small.named_parameters() if parameter.grad is None]
    assert not idle


def test_masks_on_single_weights_go_along(model, sources, targets):
    masks = masks_of(model, AMOUNTS)
    drawn = torch.Generator().manual_seed(4)
    extra = {
        weight.path: torch.rand(weight.shape, generator=drawn) > 0.4
        for weight in anatomy_of(model).unique()
        if weight.role in ("self_attention", "feed_forward")
    }
    both = masks & MaskSet(extra, dict.fromkeys(extra, "hold"), masks.owner)
    found = cut(model, both, remainder(anatomy_of(model), both))
    assert prove(model, both, found, sources, targets).holds
    assert all(0.3 < found.masks.sparsity(path) < 0.5 for path in found.masks.masks)
    assert found.masks.owner == anatomy_of(found.model).fingerprint()


def test_a_view_of_the_table_goes_along(t5, sources, targets):
    masks = masks_of(t5, ["hidden_dim", "vocab_row", "head"])
    view = torch.rand(VOCABULARY, t5.config.d_model, generator=torch.Generator().manual_seed(4)) > 0.5
    both = MaskSet({**masks.masks, "lm_head.weight": view}, {**masks.modes, "lm_head.weight": "view"}, masks.owner)
    found = cut(t5, both, remainder(anatomy_of(t5), both))
    assert found.masks.modes == {"lm_head.weight": "view"}
    assert found.model.lm_head.weight is found.model.shared.weight
    assert prove(t5, both, found, sources, targets).holds


@pytest.mark.parametrize(
    "damage",
    ["lm_head.weight", "relative_attention_bias.weight", "decoder.final_layer_norm.weight", "EncDecAttention.v.weight"],
)
def test_proofs_go_red(model, damage, sources, targets):
    masks = masks_of(model, AMOUNTS)
    found = cut(model, masks, remainder(anatomy_of(model), masks))
    name = next((name for name, _ in found.model.named_parameters() if name.endswith(damage)), "shared.weight")
    with torch.no_grad():
        parameter = found.model.get_parameter(name)
        if "bias" in damage:
            parameter[2, 0] += 0.5  # one entry of one head's slice
        else:
            parameter *= 1.001  # a scale, a norm's factor
    proof = prove(model, masks, found, sources, targets)
    assert not proof.holds and proof.score_difference > 1e-5
    with pytest.raises(MaskError, match="is not the masked one"):
        check_proof(proof)


def test_a_model_that_gives_no_numbers_proves_nothing(t5, sources, targets):
    masks = masks_of(t5, ["head"])
    found = cut(t5, masks, remainder(anatomy_of(t5), masks))
    with torch.no_grad():
        found.model.decoder.final_layer_norm.weight[0] = float("nan")
    assert not prove(t5, masks, found, sources, targets).holds
    with torch.no_grad():
        t5.decoder.final_layer_norm.weight[0] = float("nan")
    assert not prove(t5, masks, found, sources, targets).holds


@pytest.mark.parametrize(
    "damage", [("heads", "decoder.cross_attention"), ("heads", "encoder.self_attention"), ("neurons", "encoder")]
)
def test_damaged_widths_are_told(t5, tmp_path, damage):
    masks = masks_of(t5, ["head", "ffn_neuron"], width="ragged")
    found = cut(t5, masks, remainder(anatomy_of(t5), masks, width="ragged"))
    save_plain(found.model, NoTokenizer(), tmp_path / "cut", masks=found.masks)
    raw = json.loads((tmp_path / "cut" / "config.json").read_text())
    raw["secateur_widths"][damage[0]][damage[1]].pop()
    (tmp_path / "cut" / "config.json").write_text(json.dumps(raw))
    with pytest.raises(AnatomyError, match="damaged"):
        load_model(str(tmp_path / "cut"))


def test_an_epsilon_that_is_not_mended_goes_red(sources, targets):
    model = make("t5-v1.0")
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.5
    model.config.layer_norm_epsilon = 0.5
    masks = masks_of(model, ["hidden_dim"])
    found = cut(model, masks, remainder(anatomy_of(model), masks))
    assert found.model.config.layer_norm_epsilon == pytest.approx(0.5 * 32 / 24)
    assert prove(model, masks, found, sources, targets).holds
    for module in found.model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.5
    assert not prove(model, masks, found, sources, targets).holds


def test_tokens_get_their_new_numbers(t5):
    t5.config.eos_token_id = 3
    t5.generation_config.eos_token_id = [3, 5]
    masks = masks_of(t5, ["vocab_row"])
    shared = masks.masks["shared.weight"].clone()
    shared[2] = False
    t5.generation_config.bad_words_ids = [[3], [3, 5], [4, 2]]  # the last one needs a token that goes
    both = MaskSet({"shared.weight": shared}, {"shared.weight": "hold"}, masks.owner)
    small = cut(t5, both, remainder(anatomy_of(t5), both)).model
    assert small.config.eos_token_id == 2 and small.generation_config.eos_token_id == [2, 4]
    assert small.generation_config.bad_words_ids == [[2], [2, 4]]
    assert small.config.vocab_size == small.shared.num_embeddings == int(shared.any(1).sum())
    shared[3] = False
    gone = MaskSet({"shared.weight": shared}, {"shared.weight": "hold"}, masks.owner)
    with pytest.raises(MaskError, match="eos_token_id: token 3 would go"):
        cut(t5, gone, remainder(anatomy_of(t5), gone))
