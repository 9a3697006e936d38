"""A checkpoint that another tool pruned, as weights and masks of ours: every key used or told, every fault at once.

The tied head decides most of this file. `torch.nn.utils.prune` on a head that shares the embedding's table keeps the
table whole and masks it in the head's forward pass alone, so its mask is a `view` here and never reaches the embedding.
`prune.remove()` on such a head writes the zeros into the table itself, and the embedding has them too from then on.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from secateur.anatomy.roles import Anatomy
from secateur.errors import CheckpointError
from secateur.interop.checks import CHANCE, are_masks, mask_faults, unmasked_zeros, weight_faults
from secateur.interop.names import Sorted, sort_tensors
from secateur.interop.tensor_files import read_tensors
from secateur.masks.mask import MaskSet, Mode
from secateur.masks.tie import HEAD

Form = Literal["torch.nn.utils.prune", "masks by parameter", "masks by module", "a mask file of Secateur", "zeros"]
_EMBEDDINGS = "embedding"


@dataclass(frozen=True)
class PrunedState:
    """A pruned model as another tool left it.

    Attributes:
        form: how the file says what is removed.
        weights: parameter (first name of its tensor) -> values, what a mask hides included; None where the file holds
            masks alone.
        masks: hold, but for a head that shares its table: view.
        head: how the head stands to the table: tied, view, both or untied.
        notes: what a reader should know; whole sentences.
        buffers: what the file holds of the model beside its parameters.
    """

    form: Form
    weights: Mapping[str, Tensor] | None
    masks: MaskSet
    head: str
    notes: tuple[str, ...]
    buffers: Mapping[str, Tensor] = field(default_factory=dict)


def read_pruned(file: Path | str, anatomy: Anatomy, *, masks_from_zeros: bool = False) -> PrunedState:
    """Read a pruned checkpoint, or masks alone.

    Args:
        file: see `tensor_files.read_tensors`.
        anatomy: of the model that it belongs to, as it was before it was pruned.
        masks_from_zeros: take zeros in matrices that have no mask for removed weights, as `prune.remove()` leaves them.

    Returns:
        Weights and masks, checked against the anatomy.

    Raises:
        CheckpointError: the file cannot be read, holds nothing pruned, or does not fit the model; all faults at once.
    """
    file = Path(file).expanduser()
    content = read_tensors(file)
    if content.ours:
        return _ours(file, anatomy)
    found = sort_tensors(content.tensors, anatomy)
    form = _form(found, by_module=content.by_module)
    faults = [*found.faults, *mask_faults(found, anatomy), *(weight_faults(found, anatomy) if found.weights else ())]
    if faults:
        raise _faulty(file, faults)
    own_head = not anatomy.shares_head or _head_differs(found.weights, anatomy)
    weights = _unique(found.weights, anatomy, own_head=own_head)
    masks, faults = _place_tables(found.masks, own_head=own_head, anatomy=anatomy, form=form)
    if faults:
        raise _faulty(file, faults)
    holes = unmasked_zeros(weights, masks)
    if masks_from_zeros:
        masks, form = _from_zeros(file, weights, masks, holes, form)
    notes = [*([_left_out(content.unused)] if content.unused else []), *found.needless]
    if own_head and anatomy.shares_head:
        notes.append(
            f"{HEAD} and {anatomy.table.path} differ in the file: the head was a table of its own, and is one here."
        )
    notes += _told_holes(holes, table=anatomy.table.path, tied=not own_head, taken=masks_from_zeros)
    if all(bool(mask.all()) for mask in masks.values()):
        raise CheckpointError(_nothing(file, found, notes))
    kept, head = _as_set(masks, anatomy, own_head=own_head)
    return PrunedState(form, weights or None, kept, head, tuple(notes), found.buffers)


def _form(found: Sorted, *, by_module: bool) -> Form:
    """Tell how the file says what is removed; where it holds masks alone, what looked like weights are masks."""
    alone = by_module or (not found.masks and are_masks(found.weights))
    if alone:
        found.masks, found.weights = {**found.weights, **found.masks}, {}
        return "masks by module" if by_module else "masks by parameter"
    return "torch.nn.utils.prune" if found.weights else "masks by parameter"


def _as_set(masks: Mapping[str, Tensor], anatomy: Anatomy, *, own_head: bool) -> tuple[MaskSet, str]:
    """Lay every mask on what it is for: a head that shares its table is seen through its mask, all else holds zeros."""
    ordered = {weight.path: masks[weight.path] for weight in anatomy.weights if weight.path in masks}
    modes: dict[str, Mode] = {path: "view" if path == HEAD and not own_head else "hold" for path in ordered}
    head = _policy(masks, anatomy, own_head=own_head)
    return MaskSet(ordered, modes, anatomy.fingerprint()), head


def _policy(masks: Container[str], anatomy: Anatomy, *, own_head: bool) -> str:
    """Say how the head stands to the table."""
    if own_head:
        return "untied"
    return "view" if HEAD in masks else "both" if anatomy.table.path in masks else "tied"


def _ours(file: Path, anatomy: Anatomy) -> PrunedState:
    """Take a mask file of our own as it is."""
    masks = MaskSet.load(file, owner=anatomy.fingerprint())
    modes = dict(masks.modes)
    if not anatomy.shares_head and HEAD in modes:
        modes[HEAD] = "hold"
    head = _policy(masks, anatomy, own_head=not anatomy.shares_head)
    if head == "view" and modes[HEAD] == "hold":
        head = "untied"
    return PrunedState("a mask file of Secateur", None, MaskSet(masks.masks, modes, masks.owner), head, ())


def _left_out(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"Left out, as they are no tensors of the model: {', '.join(names[:8])}{more}."


def _head_differs(weights: Mapping[str, Tensor], anatomy: Anatomy) -> bool:
    """Tell whether a head that the configuration ties holds other values than the table."""
    names = (anatomy.table.path, *anatomy.tied(anatomy.table.path))
    table = next((weights[name] for name in names if name in weights and name != HEAD), None)
    return HEAD in weights and table is not None and not torch.equal(weights[HEAD], table)


def _unique(weights: Mapping[str, Tensor], anatomy: Anatomy, *, own_head: bool) -> dict[str, Tensor]:
    """Give every tensor once, under its first name."""
    if not weights:
        return {}
    unique = {}
    for weight in anatomy.unique():
        names = [name for name in (weight.path, *anatomy.tied(weight.path)) if name in weights]
        if own_head and weight.path != HEAD:
            names = [name for name in names if name != HEAD]
        unique[weight.path] = weights[names[0]]
    if own_head and HEAD in weights:
        unique[HEAD] = weights[HEAD]
    return unique


def _place_tables(
    masks: Mapping[str, Tensor], *, own_head: bool, anatomy: Anatomy, form: Form
) -> tuple[dict[str, Tensor], list[str]]:
    """Find out what masks on the embedding mean: one table serves both stacks here, and maybe the head."""
    name = anatomy.table.path
    tables = [weight.path for weight in anatomy.weights if weight.role == _EMBEDDINGS and weight.path in masks]
    others = [weight.path for weight in anatomy.weights if weight.role == _EMBEDDINGS and weight.path != name]
    masks = {path: mask != 0 for path, mask in masks.items()}
    placed = {path: mask for path, mask in masks.items() if path not in tables}
    if not tables:
        return placed, []
    live = form == "torch.nn.utils.prune"  # hooks mask a module's own forward pass, not the tensor
    needed = others if live else [name]
    if any(path not in masks for path in needed) or any(not torch.equal(masks[tables[0]], masks[p]) for p in tables):
        there = ", ".join(tables)
        return placed, [
            f"{there}: only part of what reads the embedding was masked, and a model here has one table. Give one mask "
            f"for {name} in a file of masks, or leave the embedding out."
        ]
    if live and not own_head:
        return placed, [
            f"{name}: its mask was seen by the embedding alone, while the head went on with the whole table; a table "
            f"that is shared is pruned for both here. Give one mask for {name} in a file of masks to prune both."
        ]
    table = masks[tables[0]]
    placed[name] = table
    if HEAD in placed and not own_head:
        placed[HEAD] = placed[HEAD] & table  # a view shows nothing that the table has lost
    return placed, []


def _from_zeros(
    file: Path, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], holes: Mapping[str, int], form: Form
) -> tuple[dict[str, Tensor], Form]:
    """Take zeros for masks."""
    if not weights:
        raise CheckpointError(
            f"{file}: holds masks alone, so there are no zeros to take for masks. Leave the option out."
        )
    if not holes:
        raise CheckpointError(
            f"{file}: no matrix without a mask holds more zeros than chance leaves ({CHANCE:.1%}). Leave the option "
            "out."
        )
    return {**masks, **{path: weights[path] != 0 for path in holes}}, form if masks else "zeros"


def _told_holes(holes: Mapping[str, int], *, table: str, tied: bool, taken: bool) -> list[str]:
    """Say where zeros were found."""
    notes = []
    if table in holes and tied:
        notes.append(
            f"{table} holds {holes[table]:,} zeros, as prune.remove() on a tied head leaves: the embedding has lost "
            "them too, and the values that were there are gone."
        )
    rest = [path for path in holes if path != table or not tied]
    if rest and not taken:
        count = sum(holes[path] for path in rest)
        notes.append(f"{len(rest)} matrices hold {count:,} zeros without a mask ({rest[0]} first).")
    if holes and not taken:
        notes.append("Nothing keeps these zeros in a training. Take them for masks with --masks-from-zeros.")
    return notes


def _nothing(file: Path, found: Sorted, notes: list[str]) -> str:
    """Say that there is nothing to import."""
    why = "its masks remove nothing" if found.masks else "it holds plain weights without any mask"
    advice = "Give a checkpoint that was saved while the pruning was attached, or a file of masks."
    return "\n".join([f"{file}: {why}. {'' if notes else advice}".strip(), *notes])


def _faulty(file: Path, faults: list[str]) -> CheckpointError:
    return CheckpointError("\n".join([f"{file}: does not fit the model:", *(f"  {fault}" for fault in faults)]))


__all__ = ["CHANCE", "PrunedState", "read_pruned"]
