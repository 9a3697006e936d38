"""What shapes cost: the dense model's loss with each axis cut alone, without retraining."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from secateur.errors import RunInterrupted
from secateur.fields import encode_rows
from secateur.files import read_json, write_json
from secateur.losses import mean_loss
from secateur.masks.mask import MaskSet
from secateur.masks.unit_scores import Evidence
from secateur.probe import open_dense, restored
from secateur.processes import pick_device
from secateur.recipe.schema import Group, Recipe
from secateur.search.shapes import Shape, sparsities
from secateur.shaping import gather_evidence, prune_structured
from secateur.short_runs import calibration_of
from secateur.state import Live, Run
from secateur.tasks.encode import EncodedPairs
from secateur.tasks.pairs import Pairs

KEYS: dict[str, dict[str, Any]] = {
    "encoder_layers": {"unit": "layer", "stack": "encoder", "score": "spacing"},
    "decoder_layers": {"unit": "layer", "stack": "decoder", "score": "spacing"},
    "heads": {"unit": "head"},
    "neurons": {"unit": "ffn_neuron"},
}
WORDS = {
    "encoder_layers": "encoder layers",
    "decoder_layers": "decoder layers",
    "heads": "heads a layer",
    "neurons": "neurons a layer",
}


def unit_group(axis: str, sparsity: float, score: str) -> Group:
    """Write the group of a recipe that cuts an axis.

    Args:
        axis: of `search.shapes.AXES`.
        sparsity: share of its units that go.
        score: of heads and neurons; layers go by even spacing.

    Returns:
        The group.
    """
    return Group.model_validate({"score": score, **KEYS[axis], "sparsity": sparsity})


def shape_losses(
    folder: Path,
    path: str,
    recipe: Recipe,
    dense: Shape,
    cells: Sequence[tuple[str, int]],
    score: str,
    pairs: Pairs,
    device: str,
    tell: Callable[[int, int, str], None],
    *,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, float]:
    """Measure the loss of the dense model, and with each axis cut alone; what is known stands on disk.

    Args:
        folder: of the search; losses.json in it is gone on with.
        path: the dense model's.
        recipe: says task and seed; its training rows tell what units are worth.
        dense: the whole shape.
        cells: axis and count of each.
        score: of heads and neurons.
        pairs: on which the loss is measured.
        device: auto, cpu, cuda or mps.
        tell: is told (cells done, cells in all, the next cell's name).
        should_stop: asked before every cell.

    Returns:
        "dense" and "AXIS-COUNT" -> mean cross-entropy per target token, in nats.
    """
    file = folder / "losses.json"
    known: dict[str, float] = read_json(file) if file.exists() else {}
    if {"dense", *(f"{axis}-{count}" for axis, count in cells)} <= set(known):
        return known
    state, live = open_dense(recipe, path, folder, device=pick_device(device))
    encoded = encode_rows(recipe, pairs, live.tokenizer, live.model)
    groups = {
        (axis, count): unit_group(axis, sparsities(dense.with_(axis, count), dense)[axis], score)
        for axis, count in cells
    }
    evidence = gather_evidence(state, live, list(groups.values()), calibration_of(recipe))
    for done, cell in enumerate([None, *groups]):
        name = f"{cell[0]}-{cell[1]}" if cell else "dense"
        if name not in known:
            if should_stop and should_stop():
                raise RunInterrupted(f"Stopped after {done} of {len(cells) + 1} losses. The same command goes on.")
            tell(done + 1, len(cells) + 3, f"{WORDS[cell[0]]}: {cell[1]}" if cell else "dense")
            known[name] = _loss(state, live, groups[cell] if cell else None, evidence, encoded)
            write_json(file, known)
    return known


def _loss(state: Run, live: Live, group: Group | None, evidence: Evidence, rows: EncodedPairs) -> float:
    """Measure the loss of the dense model without the units that a group loses."""
    if group is None:
        return mean_loss(state, live, rows)
    masks, modes = prune_structured(state, live, group, evidence, MaskSet.empty())
    found = MaskSet(masks, modes, live.masks.owner)
    with restored(live, found):
        live.lay(found)
        return mean_loss(state, live, rows)


__all__ = ["WORDS", "shape_losses", "unit_group"]
