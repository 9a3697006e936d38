"""How much each whole unit (a head, a neuron, a layer, a hidden dimension) matters: larger = keep."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from secateur.anatomy.roles import Weight
from secateur.anatomy.units import Place, Slice
from secateur.errors import MaskError
from secateur.masks.scores.activation_mean import activation_mean
from secateur.masks.scores.apoz import apoz
from secateur.masks.scores.fpgm import fpgm
from secateur.masks.statistics import Statistics

UNIT_SCORES = (
    "magnitude", "random", "l2_norm", "taylor", "fpgm", "activation_mean", "apoz", "spacing", "frequency",
)  # fmt: skip
OF_OUTPUTS = {"activation_mean": "input_mean", "apoz": "input_active"}  # and what they need to know of the outputs


@dataclass(frozen=True)
class Evidence:
    """What scores know beside the weights.

    Attributes:
        taylor: place -> (num_units,), see `masks.calibration.taylor_scores`.
        outputs: name of the matrix that reads the units' outputs -> see `masks.statistics.gather_statistics`.
        counts: (vocab_size,), how often each row of the table was needed.
        floor: rows that stay whatever their counts.
    """

    taylor: Mapping[Place, Tensor] = field(default_factory=dict)
    outputs: Mapping[str, Statistics] = field(default_factory=dict)
    counts: Tensor | None = None
    floor: frozenset[int] = frozenset()


def per_unit(tensor: Tensor, piece: Slice, num_units: int) -> Tensor:
    """Lay out a parameter's elements by unit.

    Args:
        tensor: the parameter's shape.
        piece: which dimension is made of units, and of how many elements each.
        num_units: how many there are.

    Returns:
        (num_units, elements of one unit).

    >>> from secateur.anatomy.roles import Weight
    >>> weight = Weight("w", "self_attention", "encoder", 0, (2, 4), "w", "o")
    >>> per_unit(torch.arange(8.0).view(2, 4), Slice(weight, 1, 2), 2).tolist()
    [[0.0, 4.0, 1.0, 5.0], [2.0, 6.0, 3.0, 7.0]]
    """
    assert piece.dim is not None
    return tensor.movedim(piece.dim, 0).reshape(num_units, -1)


def reduce_units(place: Place, values: Mapping[str, Tensor], pieces: Sequence[int] | None = None) -> Tensor:
    """Add up, unit by unit, one number per element of the parameters.

    Args:
        place: the units.
        values: parameter name -> a tensor of its shape.
        pieces: indexes of the slices that count; none: all.

    Returns:
        (num_units,), float64.
    """
    sums = torch.zeros(place.num_units, dtype=torch.float64)
    for index, piece in enumerate(place.slices):
        if pieces is not None and index not in pieces:
            continue
        tensor = values[piece.weight.path].detach().cpu()
        if piece.dim is None:
            sums[place.members[index]] += tensor.double().sum()
        else:
            sums += per_unit(tensor, piece, place.num_units).double().sum(1)
    return sums


def score_units(model: nn.Module, place: Place, score: str, *, evidence: Evidence, seed: int) -> Tensor:
    """Score the units of one place.

    Args:
        model: the model.
        place: the units.
        score: one of UNIT_SCORES but "spacing" and "frequency".
        evidence: what "taylor" and the scores of OF_OUTPUTS need.
        seed: for "random".

    Returns:
        (num_units,), float64, larger = keep.

    Raises:
        MaskError: there is no such score, it cannot judge these units, or what it needs was not gathered.
    """
    if score == "random":
        digest = hashlib.sha256(f"{seed}\0{place.unit}\0{place.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        return torch.rand(place.num_units, generator=generator, dtype=torch.float64)
    if score == "taylor":
        taken = next((scores for other, scores in evidence.taylor.items() if other.key == place.key), None)
        if taken is None:
            raise MaskError(f"{place.unit}: score taylor needs gradients on calibration rows, and none were taken.")
        return taken.double()
    weights = {piece.weight.path: model.get_parameter(piece.weight.path).detach() for piece in place.slices}
    if score in OF_OUTPUTS:
        return _by_outputs(place, score, evidence)
    if score == "fpgm":
        _check_width(place, score)
        parts = [per_unit(weights[piece.weight.path], piece, place.num_units).cpu() for piece in place.slices]
        return fpgm(torch.cat(parts, 1))
    if score == "l2_norm":
        return reduce_units(place, {path: weight.float().square() for path, weight in weights.items()}).sqrt()
    if score == "magnitude":
        ones = {path: torch.ones_like(weight) for path, weight in weights.items()}
        sums = reduce_units(place, {path: weight.abs() for path, weight in weights.items()})
        return sums / reduce_units(place, ones)
    raise MaskError(f"score: {score!r} cannot judge whole units. There are: {', '.join(UNIT_SCORES)}.")


def outputs_of(place: Place, score: str) -> dict[Weight, frozenset[str]]:
    """List what a score needs to know of the matrices that read a place's outputs.

    Args:
        place: the units.
        score: one of UNIT_SCORES.

    Returns:
        Weight -> statistics, for `masks.statistics.gather_statistics`; empty for scores that need none.

    Raises:
        MaskError: the score cannot judge these units.
    """
    if score not in OF_OUTPUTS:
        return {}
    _check_width(place, score)
    return {place.slices[index].weight: frozenset({OF_OUTPUTS[score]}) for index in place.outputs()}


def _by_outputs(place: Place, score: str, evidence: Evidence) -> Tensor:
    features, read = [], outputs_of(place, score)
    for weight, (name,) in read.items():
        known = evidence.outputs.get(weight.path, {})
        if name not in known:
            raise MaskError(f"{place.unit}: score {score} needs {name} of calibration rows, and none was gathered.")
        features.append(known[name].view(place.num_units, -1))
    together = torch.cat(features, 1)
    if score == "activation_mean":
        return activation_mean(input_mean=together)
    found = apoz(input_active=together)
    living = found[found > 0]  # what is gone gives nothing but zeros
    if len(living) > 1 and bool((living == 1).all()):
        paths = ", ".join(weight.path for weight in read)
        raise MaskError(
            f"{paths}: score apoz counts zeros, and none was read here in calibration: nothing tells one {place.unit} "
            "from another. Use activation_mean or taylor; zeros are given by ReLU."
        )
    return found


def _check_width(place: Place, score: str) -> None:
    if place.unit not in ("head", "ffn_neuron"):
        raise MaskError(f"score: {score} judges heads and neurons, and this is {place.unit}. Use taylor or l2_norm.")
