from __future__ import annotations

import pytest
import torch

from nets import FAMILIES, make
from secateur.anatomy.check import anatomy_of
from secateur.anatomy.units import places
from secateur.errors import MaskError
from secateur.masks.scores.fpgm import fpgm
from secateur.masks.unit_scores import OF_OUTPUTS, UNIT_SCORES, Evidence, outputs_of, score_units
from secateur.recipe import names

NEEDS_NOTHING = ("magnitude", "random", "l2_norm", "fpgm")


def test_the_names_are_those_of_the_recipe() -> None:
    assert {*UNIT_SCORES} == {"magnitude", "random", *names.words(names.UnitScore)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("score", NEEDS_NOTHING)
@pytest.mark.parametrize("unit", ["head", "ffn_neuron"])
def test_scores_follow_the_units_wherever_they_stand(family: str, score: str, unit: names.Unit) -> None:
    """Exchanging two units of a place, weights and all, exchanges their scores."""
    model = make(family)
    place = places(anatomy_of(model), unit)[0]
    before = score_units(model, place, score, evidence=Evidence(), seed=1)
    assert before.shape == (place.num_units,)
    if score == "random":
        return
    order = torch.randperm(place.num_units, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for piece in place.slices:
            weight = model.get_parameter(piece.weight.path)
            assert piece.dim is not None
            elements = (order[:, None] * piece.size + torch.arange(piece.size)).flatten()
            weight.copy_(weight.index_select(piece.dim, elements))
    after = score_units(model, place, score, evidence=Evidence(), seed=1)
    assert torch.allclose(after, before[order], rtol=1e-6)


def test_a_unit_that_another_equals_is_the_first_that_fpgm_gives_up() -> None:
    generator = torch.Generator().manual_seed(0)
    far = torch.randn(6, 8, generator=generator)
    middle = far.mean(0, keepdim=True)
    assert fpgm(torch.cat([far, middle])).argmin() == 6
    many = torch.randn(600, 3, generator=generator)
    assert torch.allclose(fpgm(many), torch.cdist(many.double(), many.double()).sum(1))


def test_units_that_are_gone_stand_in_for_none() -> None:
    living = 1.0 + torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(fpgm(torch.cat([living, torch.zeros(8, 16)]))[:8], fpgm(living))


@pytest.mark.parametrize(("score", "statistic"), OF_OUTPUTS.items())
@pytest.mark.parametrize("unit", ["head", "ffn_neuron"])
def test_scores_of_outputs_average_the_features_of_a_unit(score: str, statistic: str, unit: names.Unit) -> None:
    model = make("t5-v1.0")
    place = places(anatomy_of(model), unit)[0]
    ((weight, asked),) = outputs_of(place, score).items()
    assert asked == {statistic}
    assert weight.part in ("o", "wo")
    features = torch.rand(weight.shape[1], generator=torch.Generator().manual_seed(0))
    evidence = Evidence(outputs={weight.path: {statistic: features}})
    found = score_units(model, place, score, evidence=evidence, seed=0)
    assert torch.allclose(found, features.double().view(place.num_units, -1).mean(1))
    with pytest.raises(MaskError, match=f"needs {statistic} of calibration rows"):
        score_units(model, place, score, evidence=Evidence(), seed=0)


@pytest.mark.parametrize("unit", ["head", "ffn_neuron"])
def test_apoz_is_refused_where_nothing_is_ever_zero(unit: names.Unit) -> None:
    model = make("t5-v1.0")
    place = places(anatomy_of(model), unit)[0]
    ((weight, (statistic,)),) = outputs_of(place, "apoz").items()
    features = torch.ones(weight.shape[1])
    with pytest.raises(MaskError, match=r"o\.weight: score apoz counts zeros.*tells one .* from another"):
        score_units(model, place, "apoz", evidence=Evidence(outputs={weight.path: {statistic: features}}), seed=0)
    features[: weight.shape[1] // place.num_units] = 0.0  # a unit that is gone tells nothing of the others
    with pytest.raises(MaskError, match="counts zeros"):
        score_units(model, place, "apoz", evidence=Evidence(outputs={weight.path: {statistic: features}}), seed=0)
    features[-1] = 0.5
    score_units(model, place, "apoz", evidence=Evidence(outputs={weight.path: {statistic: features}}), seed=0)


@pytest.mark.parametrize("score", ["fpgm", *OF_OUTPUTS])
@pytest.mark.parametrize("unit", ["layer", "hidden_dim"])
def test_what_has_no_width_is_refused(score: str, unit: names.Unit) -> None:
    model = make("t5-v1.0")
    with pytest.raises(MaskError, match="judges heads and neurons"):
        score_units(model, places(anatomy_of(model), unit)[0], score, evidence=Evidence(), seed=0)
