"""Models with LayerNorms and biases: what of them is masked, cut, saved and loaded, and by whom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from nets import AMOUNTS, BARTS, make_layer_normed, masks_of
from secateur.anatomy.check import anatomy_of, meta_model, read_config
from secateur.anatomy.families import FAMILIES
from secateur.anatomy.family import WIDTHS
from secateur.anatomy.gaps import GAPS, gaps_of
from secateur.anatomy.units import places
from secateur.artifacts.checkpoint import load_live, save_live, save_plain
from secateur.artifacts.loading import load_model
from secateur.errors import AnatomyError, CheckpointError, MaskError
from secateur.masks.hold import attach
from secateur.masks.mask import MaskSet
from secateur.masks.structure import alive_units, unit_masks
from secateur.surgery.cut import cut
from secateur.surgery.slices import remainder
from secateur.surgery.verify import check_proof, verify

OTHERS = {"dims": None, "layers": {"decoder": [0], "encoder": [7]}}  # no stack and no layer of a small BERT
PLAIN = {"head": False, "ffn_neuron": True, "layer": True, "hidden_dim": False, "vocab_row": True}


class NoTokenizer:
    def save_pretrained(self, folder: Path) -> None:
        """Writes nothing."""


def logits(model: Any, sources: Any, targets: Any) -> torch.Tensor:
    """All logits of eight texts."""
    rows = torch.tensor([row[:2] for row in sources[:8]])
    given = {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
    if FAMILIES[model.config.model_type].generates:
        given["decoder_input_ids"] = torch.tensor([row[:4] for row in targets[:8]])
    with torch.no_grad():
        return model(**given).logits


def plain(model: Any, folder: Path) -> Any:
    """Load a folder as a user of transformers does."""
    return getattr(transformers, FAMILIES[model.config.model_type].model_class).from_pretrained(folder).eval()


def save(model: Any, place: Path, masks: MaskSet) -> Path:
    save_plain(model, NoTokenizer(), place, masks=masks)
    return place


@pytest.mark.parametrize("is_plain", [True, False])
def test_plain_transformers_loads_what_its_configuration_can_say(layer_normed, is_plain, tmp_path, sources, targets):
    units = [unit for unit, plain_alone in PLAIN.items() if plain_alone is is_plain]
    for unit in units:
        masks = masks_of(layer_normed, [unit])
        small = cut(layer_normed, masks, remainder(anatomy_of(layer_normed), masks)).model
        assert hasattr(small.config, WIDTHS) is not is_plain
    masks = masks_of(layer_normed, units)
    found = cut(layer_normed, masks, remainder(anatomy_of(layer_normed), masks))
    folder = save(found.model, tmp_path / "cut", found.masks)
    short = [[token % 200 for token in row] for row in sources], [[token % 200 for token in row] for row in targets]
    wanted = logits(found.model, *short)
    assert torch.equal(logits(load_model(str(folder)), *short), wanted)
    assert (WIDTHS not in json.loads((folder / "config.json").read_text())) is is_plain
    if is_plain:
        assert torch.equal(logits(plain(layer_normed, folder), *short), wanted)
    else:
        with pytest.raises((RuntimeError, ValueError)):
            plain(layer_normed, folder)


def test_a_head_for_every_share_of_the_hidden_dimensions_is_plain_again(tmp_path, sources, targets):
    model = make_layer_normed("bert")
    anatomy = anatomy_of(model)
    masks = masks_of(model, ["head"])  # two of four
    keep = torch.arange(24) < 12
    for place in places(anatomy, "hidden_dim"):
        found = unit_masks(place, keep)
        masks = masks & MaskSet(found, dict.fromkeys(found, "hold"), masks.owner)
    small = cut(model, masks, remainder(anatomy, masks)).model
    assert not hasattr(small.config, WIDTHS)
    assert (small.config.hidden_size, small.config.num_attention_heads) == (12, 2)
    assert torch.equal(
        logits(plain(model, save(small, tmp_path / "cut", MaskSet.empty())), sources, targets),
        logits(small, sources, targets),
    )


@pytest.mark.parametrize("unit", ["hidden_dim", "layer"])
def test_a_masked_model_leaves_out_what_zeros_cannot(layer_normed, unit, tmp_path, sources, targets):
    dense, before = logits(layer_normed, sources, targets), dict(layer_normed.state_dict())
    family = FAMILIES[layer_normed.config.model_type]
    masks = masks_of(layer_normed, [unit])
    has_gaps = unit == "hidden_dim" or family.norm_last
    attached = attach(layer_normed, masks)
    assert bool(gaps_of(layer_normed)) is has_gaps
    assert list(layer_normed.state_dict()) == list(before)
    masked = logits(layer_normed, sources, targets)
    folder = save(layer_normed, tmp_path / "stage" / "model", masks)
    facts = save_live(layer_normed, tmp_path / "stage", masks=masks)
    attached.detach()
    assert torch.equal(logits(layer_normed, sources, targets), dense) and not gaps_of(layer_normed)
    assert torch.equal(logits(load_model(str(folder)), sources, targets), masked)
    live, found = load_live(tmp_path / "stage", facts)
    with attach(live, found):
        assert torch.equal(logits(live, sources, targets), masked)
    assert (GAPS in json.loads((folder / "config.json").read_text())) is has_gaps
    if has_gaps:
        with pytest.raises((RuntimeError, ValueError)):
            plain(layer_normed, folder)
    else:
        torch.testing.assert_close(logits(plain(layer_normed, folder), sources, targets), masked)


def test_a_masked_model_trains_as_the_cut_one(sources, targets):
    model = make_layer_normed("bert")
    masks = masks_of(model, ["hidden_dim", "layer"])
    found = cut(model, masks, remainder(anatomy_of(model), masks))
    rows, labels = torch.tensor([row[:2] for row in sources[:8]]), torch.arange(8) % 5
    with attach(model, masks):
        model(input_ids=rows, labels=labels).loss.backward()
    found.model(input_ids=rows, labels=labels).loss.backward()
    whole = model.classifier.weight.grad[:, list(found.rest.dims)]
    torch.testing.assert_close(found.model.classifier.weight.grad, whole)
    first = found.rest.layers["encoder"][0]
    norm = model.bert.encoder.layer[first].output.LayerNorm.weight.grad[list(found.rest.dims)]
    torch.testing.assert_close(found.model.bert.encoder.layer[0].output.LayerNorm.weight.grad, norm)


def test_a_decoders_first_layer_may_go_while_it_writes(sources, targets):
    model = make_layer_normed("bart")
    anatomy = anatomy_of(model)
    first = {
        weight.path: torch.zeros(weight.shape, dtype=torch.bool)
        for weight in anatomy.unique()
        if weight.stack == "decoder" and weight.layer == 0
    }
    masks = MaskSet(first, dict.fromkeys(first, "hold"), anatomy.fingerprint())
    found = cut(model, masks, remainder(anatomy, masks))
    assert found.model.config.decoder_layers == 3
    with attach(model, masks):
        check_proof(verify(model, found.model, found.rest, sources[:16], targets[:16], max_new_tokens=8))


def test_biases_go_with_their_units_and_those_of_outputs_stay(layer_normed):
    masks, anatomy = masks_of(layer_normed, ["head", "ffn_neuron"]), anatomy_of(layer_normed)
    for weight in anatomy.unique():
        inside = weight.part in ("q", "k", "v", "o", "wi", "wo", "q_bias", "k_bias", "v_bias", "wi_bias")
        assert (weight.path in masks) is inside, weight.path
    for weight in anatomy.unique():
        if weight.part in ("v_bias", "wi_bias"):
            matrix = masks.masks[weight.path.replace(".bias", ".weight")]
            assert torch.equal(masks.masks[weight.path], matrix.any(1))


def test_a_head_whose_values_have_a_bias_still_works():
    model = make_layer_normed("bert")
    anatomy = anatomy_of(model)
    (place, *_) = places(anatomy, "head")
    path = next(piece.weight.path for piece in place.slices if piece.weight.part == "v")
    gone = {path: torch.ones(24, 24, dtype=torch.bool)}
    gone[path][:6] = False
    assert alive_units(place, gone).all()
    gone[path.replace("weight", "bias")] = torch.arange(24) >= 6
    assert alive_units(place, gone).tolist() == [False, True, True, True]


def test_it_is_cut_twice(layer_normed, sources, targets):
    masks = masks_of(layer_normed, ["head"], width="ragged")
    once = cut(layer_normed, masks, remainder(anatomy_of(layer_normed), masks, width="ragged")).model
    again = masks_of(once, ["ffn_neuron", "hidden_dim"])
    twice = cut(once, again, remainder(anatomy_of(once), again, width="ragged"))
    with attach(once, again):
        check_proof(verify(once, twice.model, twice.rest, sources[:24], targets[:24], max_new_tokens=4))
    assert anatomy_of(twice.model).num_parameters < anatomy_of(once).num_parameters


@pytest.mark.parametrize("damage", ["LayerNorm.bias", "value.bias", "position_embeddings.weight", "classifier.bias"])
def test_proofs_of_classes_go_red(damage, sources, targets):
    model = make_layer_normed("bert")
    masks = masks_of(model, AMOUNTS)
    found = cut(model, masks, remainder(anatomy_of(model), masks))
    name = next(name for name, _ in found.model.named_parameters() if name.endswith(damage))
    with attach(model, masks):
        check_proof(verify(model, found.model, found.rest, sources[:24], targets[:24]))
        with torch.no_grad():
            found.model.get_parameter(name).view(-1)[0] += 0.01
        proof = verify(model, found.model, found.rest, sources[:24], targets[:24])
    assert not proof.holds
    with pytest.raises(MaskError, match="is not the masked one"):
        check_proof(proof)


def test_a_proof_reads_the_second_texts_type_where_it_is_told(sources, targets):
    model = make_layer_normed("bert")
    masks = masks_of(model, AMOUNTS)  # rows of the table too, whose tokens and types the proof leaves out
    found = cut(model, masks, remainder(anatomy_of(model), masks))
    rows, types = sources[:24], [[place % 2 for place in range(len(row))] for row in sources[:24]]
    with attach(model, masks):
        check_proof(verify(model, found.model, found.rest, rows, targets[:24], token_types=types))
        with torch.no_grad():
            found.model.get_parameter("bert.embeddings.token_type_embeddings.weight")[1, 0] += 0.01
        assert verify(model, found.model, found.rest, rows, targets[:24]).holds
        assert not verify(model, found.model, found.rest, rows, targets[:24], token_types=types).holds


def test_positions_that_are_counted_from_the_padding_token(sources):
    model = make_layer_normed("roberta")
    anatomy = anatomy_of(model)
    mask = torch.ones(anatomy.table.shape, dtype=torch.bool)
    mask[0] = False
    model.config.bos_token_id = None
    masks = MaskSet({anatomy.table.path: mask}, {anatomy.table.path: "hold"}, anatomy.fingerprint())
    with pytest.raises(MaskError, match="pad_token_id: the padding token would get number 0 instead of 1"):
        cut(model, masks, remainder(anatomy, masks))


def test_damaged_gaps_are_told(tmp_path):
    model = make_layer_normed("bert")
    masks = masks_of(model, ["hidden_dim"])
    with attach(model, masks):
        folder = save(model, tmp_path / "model", masks)
    raw = json.loads((folder / "config.json").read_text())
    for told in ({"dims": raw[GAPS]["dims"][1:], "layers": {}}, {"dims": 3, "layers": {}}, [], OTHERS):
        (folder / "config.json").write_text(json.dumps(raw | {GAPS: told}))
        with pytest.raises((AnatomyError, CheckpointError), match=GAPS):
            load_model(str(folder))


@pytest.mark.parametrize("kind", BARTS)
def test_a_head_of_its_own_loads_in_plain_transformers(kind, tmp_path, sources, targets):
    model = make_layer_normed(kind)
    keep = torch.rand(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(4)) > 0.5
    masks = MaskSet({"lm_head.weight": keep}, {"lm_head.weight": "view"}, anatomy_of(model).fingerprint())
    with attach(model, masks):
        wanted = logits(model, sources, targets)
        folder = save(model, tmp_path / "model", masks)
    for loaded in (plain(model, folder), load_model(str(folder))):
        assert torch.equal(logits(loaded, sources, targets), wanted)
        assert anatomy_of(loaded)["lm_head.weight"].owns
        assert loaded.get_encoder().embed_tokens.weight is loaded.get_decoder().embed_tokens.weight
    assert anatomy_of(meta_model(*read_config(str(folder))))["lm_head.weight"].owns
