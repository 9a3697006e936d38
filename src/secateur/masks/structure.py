"""Remove whole units (heads, neurons, layers, rows of the table, hidden dimensions): score, choose, and give masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from secateur.anatomy.roles import Anatomy
from secateur.anatomy.units import Place, own_biases, places
from secateur.errors import MaskError
from secateur.masks.allocate import allocate
from secateur.masks.by_heads import neurons_by_heads
from secateur.masks.mask import MaskSet
from secateur.masks.unit_scores import Evidence, per_unit, score_units
from secateur.recipe.names import GroupWidth


def alive_units(place: Place, masks: Mapping[str, Tensor]) -> Tensor:
    """Say which units still do anything.

    A unit is dead when masks remove the whole of a slice through which its work would leave it (a head's columns of
    the output matrix; for a layer or a hidden dimension: all of them), or, for a head, all of its values and their
    biases. A row of the table is dead when it is gone from every table there is. Where a norm would go on working on
    what passes through a unit (`Place.whole`), it is dead only when nothing of it is left.

    Args:
        place: the units.
        masks: parameter name -> bool, True = keep; missing names keep all.

    Returns:
        (num_units,), bool.
    """
    kept = {
        path: masks.get(path) for path in {piece.weight.path for piece in place.slices} if masks.get(path) is not None
    }
    dead_slices = []
    for index, piece in enumerate(place.slices):
        mask = kept.get(piece.weight.path)
        if mask is None:
            dead = torch.zeros(1 if piece.dim is None else place.num_units, dtype=torch.bool)
        elif piece.dim is None:
            dead = ~mask.cpu().any().view(1)
        else:
            dead = ~per_unit(mask.cpu(), piece, place.num_units).any(1)
        dead_slices.append((index, piece.weight.part, dead))
    outputs = set(place.outputs())
    if place.unit in ("head", "ffn_neuron"):
        cut_off = [dead for index, _, dead in dead_slices if index in outputs]
        values = [dead for _, part, dead in dead_slices if part in ("v", "v_bias")]
        return ~torch.stack([*cut_off, *([torch.stack(values).all(0)] if values else [])]).any(0)
    if place.unit == "layer":
        alive = torch.zeros(place.num_units, dtype=torch.bool)
        for index, _, dead in dead_slices:
            if place.whole or index in outputs:
                alive[place.members[index]] |= not bool(dead)
        return alive
    needed = [dead for index, _, dead in dead_slices if place.whole or place.unit == "vocab_row" or index in outputs]
    return ~torch.stack(needed).all(0)


def unit_masks(place: Place, keep: Tensor) -> dict[str, Tensor]:
    """Write the masks that remove units.

    Args:
        place: the units.
        keep: (num_units,), bool.

    Returns:
        Parameter name -> bool, the parameter's shape, True = keep; names of which nothing goes are left out.
    """
    masks: dict[str, Tensor] = {}
    keep = keep.cpu()
    for index, piece in enumerate(place.slices):
        shape = piece.weight.shape
        if piece.dim is None:
            if not keep[place.members[index]]:
                masks[piece.weight.path] = torch.zeros(shape, dtype=torch.bool)
            continue
        if bool(keep.all()):
            continue
        along = keep.repeat_interleave(piece.size)
        view = [1] * len(shape)
        view[piece.dim] = shape[piece.dim]
        mask = along.view(view).expand(shape)
        path = piece.weight.path
        masks[path] = (masks[path] & mask) if path in masks else mask.contiguous()
    return masks


def prune_units(
    model: nn.Module,
    anatomy: Anatomy,
    found: Sequence[Place],
    *,
    already: MaskSet,
    sparsity: float | None = None,
    score: str = "l2_norm",
    width: GroupWidth = "uniform",
    max_sparsity: float | None = None,
    min_keep: int = 0,
    evidence: Evidence | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Decide which units of a group stay.

    Width `uniform` keeps the same number in every place. Where all layers of a stack share one position bias (T5), a
    head's column serves every layer, so the stack's self-attentions keep the same heads: those with the highest sum
    of scores, each layer's divided by its mean. Width `ragged` has one threshold for all places together. Width
    `by_heads` is for neurons: of all of them the same number stays as under the others, and each layer's part of it is
    proportional to the heads of self-attention that it has kept.

    Args:
        model: the model; its weights are read, not changed.
        anatomy: its map.
        found: from `anatomy.units.places`.
        already: masks of earlier stages; units that they removed stay removed and count.
        sparsity: share of the units removed, 0 <= sparsity < 1; every place keeps at least one. With score
            "frequency" none removes exactly the rows that were never needed.
        score: one of `masks.unit_scores.UNIT_SCORES`; "spacing" is for layers, "frequency" for vocab_row, "fpgm",
            "activation_mean" and "apoz" for heads and neurons.
        width: uniform, ragged or by_heads.
        max_sparsity: the most that any one place may lose; cannot act beside "spacing" and "frequency".
        min_keep: units that every place keeps; at least 1. Where "frequency" finds fewer rows needed, those of the
            lowest index stay with them.
        evidence: what "taylor", "frequency" and the scores of activations need.
        seed: for "random".

    Returns:
        Name to mask -> bool, the weight's shape, True = keep, what is dead already included.

    Raises:
        MaskError: the score cannot judge these units, or the numbers leave none.
    """
    evidence = evidence or Evidence()
    alive = {place: alive_units(place, already.masks) for place in found}
    least = max(1, min_keep)
    if max_sparsity is not None and score in ("spacing", "frequency"):
        raise MaskError(f"max_sparsity cannot act beside score {score}, whose units stand in one place. Leave it out.")
    if score == "frequency":
        keep = {place: _by_frequency(place, evidence, sparsity, alive[place], least=least) for place in found}
    elif sparsity is None:
        raise MaskError("A group of units needs a sparsity: the share of them that is removed.")
    elif score == "spacing":
        keep = {place: _spaced(place, sparsity, alive[place], least=least) for place in found}
    else:
        scores = {place: score_units(model, place, score, evidence=evidence, seed=seed) for place in found}
        if width == "by_heads":
            heads = _heads_kept(anatomy, found, already)
            keep = _allocate_by_heads(found, scores, alive, sparsity, heads=heads, least=least)
            return _masks_of(found, keep, already)
        pools = [[place] for place in found] if width == "ragged" else _pools(anatomy, found)
        keep = _allocate(pools, scores, alive, sparsity, width=width, max_sparsity=max_sparsity, min_keep=least)
    return _masks_of(found, keep, already)


def _masks_of(found: Sequence[Place], keep: Mapping[Place, Tensor], already: MaskSet) -> dict[str, Tensor]:
    """Write the masks of all places, what earlier stages removed included."""
    masks: dict[str, Tensor] = {}
    for place in found:
        for path, mask in unit_masks(place, keep[place]).items():
            masks[path] = masks[path] & mask if path in masks else mask
    return {path: mask & already.masks[path].cpu() if path in already else mask for path, mask in masks.items()}


def _heads_kept(anatomy: Anatomy, found: Sequence[Place], already: MaskSet) -> list[int]:
    """Count the living heads of self-attention in the layer of each place of neurons."""
    living = {
        (place.stack, place.layer): int(alive_units(place, already.masks).sum())
        for place in places(anatomy, "head", role="self_attention")
    }
    if any(place.unit != "ffn_neuron" for place in found):
        raise MaskError(f"width: by_heads is for neurons, and these are units of kind {found[0].unit}. Use ragged.")
    return [living[place.stack, place.layer] for place in found]


def _allocate_by_heads(
    found: Sequence[Place],
    scores: Mapping[Place, Tensor],
    alive: Mapping[Place, Tensor],
    sparsity: float,
    *,
    heads: Sequence[int],
    least: int,
) -> dict[Place, Tensor]:
    sizes = [place.num_units for place in found]
    number = sum(sizes) - round(sparsity * sum(sizes))
    kept = neurons_by_heads(sizes, heads, number, least=least)
    return {
        place: allocate({"": scores[place]}, 1.0 - count / place.num_units, already={"": alive[place]})[""]
        for place, count in zip(found, kept, strict=True)
    }


def _pools(anatomy: Anatomy, found: Sequence[Place]) -> list[list[Place]]:
    """Put those places together that must keep the same units."""
    if own_biases(anatomy):
        return [[place] for place in found]
    pools: dict[object, list[Place]] = {}
    for index, place in enumerate(found):
        shares = place.unit == "head" and place.role == "self_attention"
        pools.setdefault((place.stack, place.num_units) if shares else index, []).append(place)
    return list(pools.values())


def _allocate(
    pools: Sequence[Sequence[Place]],
    scores: Mapping[Place, Tensor],
    alive: Mapping[Place, Tensor],
    sparsity: float,
    *,
    width: GroupWidth,
    max_sparsity: float | None,
    min_keep: int,
) -> dict[Place, Tensor]:
    names = {", ".join(dict.fromkeys(place.name for place in pool)): pool for pool in pools}
    pooled, living = {}, {}
    for name, pool in names.items():
        relative = [scores[place] / scores[place].mean().clamp_min(1e-300) for place in pool]
        pooled[name] = torch.stack(relative).sum(0) if len(pool) > 1 else scores[pool[0]]
        living[name] = torch.stack([alive[place] for place in pool]).any(0)
    kept = allocate(
        pooled,
        sparsity,
        scope="global" if width == "ragged" else "tensor",
        already=living,
        max_sparsity=max_sparsity,
        min_keep=min_keep,
    )
    return {place: kept[name] for name, pool in names.items() for place in pool}


def spaced(num_units: int, num_kept: int) -> list[int]:
    """Pick units at even distances, the first always among them, the last too when more than one stays.

    Args:
        num_units: how many there are.
        num_kept: how many stay, 1 to num_units.

    Returns:
        Their indexes, ascending.

    Source: Shleifer and Rush 2020, arXiv:2010.13002 (shrink and fine-tune), sec. 3.

    >>> spaced(6, 2), spaced(6, 3), spaced(12, 3), spaced(4, 1)
    ([0, 5], [0, 2, 5], [0, 6, 11], [0])
    """
    if num_kept == 1:
        return [0]
    return [round(index * (num_units - 1) / (num_kept - 1)) for index in range(num_kept)]


def _spaced(place: Place, sparsity: float, alive: Tensor, *, least: int) -> Tensor:
    if place.unit != "layer":
        raise MaskError(f"score: spacing chooses layers only, and this group removes units of kind {place.unit}.")
    living = alive.nonzero().flatten().tolist()
    number = min(len(living), place.num_units - round(sparsity * place.num_units))
    if number < least:
        raise MaskError(
            f"{place.name}: sparsity {sparsity:g} leaves {number} of {place.num_units} layers; at least {least} must "
            "stay. Lower it."
        )
    keep = torch.zeros(place.num_units, dtype=torch.bool)
    keep[[living[index] for index in spaced(len(living), number)]] = True
    return keep


def _by_frequency(place: Place, evidence: Evidence, sparsity: float | None, alive: Tensor, *, least: int) -> Tensor:
    if place.unit != "vocab_row" or evidence.counts is None:
        raise MaskError("score: frequency counts rows of the table in the task's texts: only for unit vocab_row.")
    counts = evidence.counts.double().clone()
    floor = torch.zeros(place.num_units, dtype=torch.bool)
    floor[sorted(evidence.floor)] = True
    needed = ((counts > 0) | floor) & alive
    most = place.num_units - round((sparsity or 0.0) * place.num_units)
    if min(most, int(alive.sum())) < least:
        raise MaskError(
            f"vocab_row: min_keep is {least}, and {min(most, int(alive.sum()))} rows would stay. Lower sparsity or "
            "min_keep."
        )
    number = max(least, int(needed.sum())) if sparsity is None else most
    if sparsity is not None and number < int(floor.sum()):
        raise MaskError(
            f"vocab_row: sparsity {sparsity:g} leaves {number} rows, but {int(floor.sum())} always stay (special "
            "tokens, bytes, single characters). Lower sparsity, or leave it out: then exactly the rows go that the "
            "texts never need."
        )
    counts[floor] = float("inf")
    counts[~alive] = -1.0
    order = torch.argsort(counts, stable=True, descending=True)
    keep = torch.zeros(place.num_units, dtype=torch.bool)
    keep[order[:number]] = True
    return keep & alive
