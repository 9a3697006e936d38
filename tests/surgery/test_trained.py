"""The proof of a cut and the parity of exports on trained weights: the g2p model that comes along, and real words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from secateur.anatomy.check import anatomy_of
from secateur.anatomy.units import places
from secateur.artifacts.checkpoint import save_plain
from secateur.artifacts.loading import load_model, load_tokenizer
from secateur.exports.engines import export_model, open_engine
from secateur.exports.parity import check_parity, parity
from secateur.masks.hold import attach
from secateur.masks.mask import MaskSet
from secateur.masks.structure import prune_units
from secateur.recipe.names import Target, Unit
from secateur.surgery.cut import CutModel, cut
from secateur.surgery.slices import remainder
from secateur.surgery.verify import Proof, check_proof, verify
from secateur.tasks.pairs import load_pairs

DENSE = Path(__file__).parents[2] / "recipes" / "g2p" / "dense"
MOST = 35  # different tokens at least: all outputs are made of 39 phonemes and the end token
AMOUNTS: dict[Unit, float] = {"ffn_neuron": 0.2, "head": 0.1}  # so little that the model still writes real words


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model(str(DENSE))


@pytest.fixture(scope="module")
def rows() -> tuple[list[list[int]], list[list[int]]]:
    tokenizer = load_tokenizer(str(DENSE))
    chosen = load_pairs("cmudict", "test", source="word", target="phonemes").rows()[:800:8]
    sources, targets = zip(*chosen, strict=True)
    return tokenizer(list(sources)).input_ids, tokenizer(list(targets)).input_ids


@pytest.fixture(scope="module")
def smaller(model: Any, rows: Any) -> tuple[CutModel, Proof]:
    anatomy = anatomy_of(model)
    masks = MaskSet.empty(anatomy.fingerprint())
    for unit, amount in AMOUNTS.items():
        found = prune_units(model, anatomy, places(anatomy, unit), already=masks, sparsity=amount, score="l2_norm")
        masks = MaskSet({**masks.masks, **found}, dict.fromkeys({**masks.masks, **found}, "hold"), masks.owner)
    made = cut(model, masks, remainder(anatomy, masks))
    with attach(model, masks), attach(made.model, made.masks):
        return made, verify(model, made.model, made.rest, *rows)


def test_a_cut_of_trained_weights_is_proven(smaller: tuple[CutModel, Proof]) -> None:
    _, proof = smaller
    check_proof(proof)
    assert proof.distinct_tokens >= MOST
    assert proof.distinct_choices >= MOST
    assert proof.score_difference < 1e-4


@pytest.mark.parametrize("target", ["ctranslate2", "onnx"])
@pytest.mark.parametrize("int8", [False, True])
def test_exports_of_a_cut_of_trained_weights_answer_alike(
    smaller: tuple[CutModel, Proof], rows: Any, target: Target, int8: bool, tmp_path: Path
) -> None:
    save_plain(smaller[0].model, load_tokenizer(str(DENSE)), tmp_path / "plain", masks=MaskSet.empty())
    export_model(tmp_path / "plain", tmp_path / "export", target=target, int8=int8)
    found = parity(smaller[0].model, open_engine(tmp_path / "export"), *rows, max_new_tokens=32)
    check_parity(found, int8=int8)
    assert found.num_distinct_tokens >= MOST
    assert found.same_tokens >= (0.8 if int8 else 1.0)
