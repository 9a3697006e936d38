"""What prune stages remove of a model whose weights stay on disk: which tensors, how many of each, and how."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from secateur.anatomy.families import FAMILIES
from secateur.anatomy.roles import Anatomy, Weight
from secateur.artifacts.counts import counted_ratio
from secateur.artifacts.loading import NEEDLESS
from secateur.artifacts.shards import Shards
from secateur.errors import CheckpointError
from secateur.files import OnBytes
from secateur.masks.mask import Mode
from secateur.masks.streamed import BLOCK, DTYPES, Removal, Stream, allocate_streams, check_dtype
from secateur.masks.tie import HEAD
from secateur.plan_groups import group_sparsity, head_policy, target_of
from secateur.recipe.schema import Group, Recipe


@dataclass
class Choice:
    """What goes.

    Attributes:
        anatomy: of the model as given.
        head: how the head stands to the table: tied, untied, or the policy view or both.
        removals: parameter name -> what goes of it.
        modes: the same names -> hold or view.
        groups: JSON-ready facts of each group.
    """

    anatomy: Anatomy
    head: str
    removals: dict[str, Removal] = field(default_factory=dict)
    modes: dict[str, Mode] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)

    @property
    def makes_head(self) -> bool:
        """Whether the head becomes a table of its own, or a product that is stored as one."""
        return self.head in ("view", "untied") and self.anatomy.shares_head

    def source(self, path: str) -> str:
        """Name the tensor of the given model that a parameter's values are in."""
        return path if path not in self.anatomy or self.anatomy[path].owns else self.anatomy.table.path

    @property
    def counted(self) -> float:
        """Share of the dense parameters that no mask removes; see `masks.tie.counted_removed`."""
        removed = {path: removal.num_removed for path, removal in self.removals.items()}
        if self.anatomy.shares_head and HEAD in removed:
            head = removed.pop(HEAD)
            # Head and table have the same magnitudes, so the one that lost less lost a part of what the other did.
            table = self.anatomy.table.path
            removed[table] = max(head, removed.get(table, 0))
        return counted_ratio(self.anatomy.num_parameters, removed)


def check_tensors(shards: Shards, anatomy: Anatomy, *, unsaved: Collection[str] = ()) -> tuple[str, ...]:
    """Compare what a folder stores with what its configuration calls for.

    Args:
        shards: the folder's weights.
        anatomy: of the configuration.
        unsaved: parameters that transformers computes and does not store.

    Returns:
        Tensors that no model of the family needs: the shared table again under other names, or what old versions
        learned.

    Raises:
        CheckpointError: a tensor is missing, has another shape or no place; or another name of the shared table holds
            other values.
    """
    owned = {weight.path: weight for weight in anatomy.unique()}
    buffers = FAMILIES[anatomy.family].row_buffers  # no parameters, and stored as they are
    faults = [f"{path} is missing" for path in owned if path not in shards.places and path not in unsaved]
    faults += [
        f"{path} has shape {list(shards.entry(path).shape)}, not {list(weight.shape)}"
        for path, weight in owned.items()
        if path in shards.places and shards.entry(path).shape != weight.shape
    ]
    needless = tuple(name for name in shards.places if name not in owned and name.endswith(NEEDLESS))
    placed = {*owned, *needless, *buffers}
    faults += [f"{name} has no place" for name in shards.places if name not in placed]
    faults += [
        f"{name} is not the shared table"
        for name in needless
        if name in anatomy and not _same(shards, anatomy.table.path, name)
    ]
    if faults:
        more = f", and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(
            f"{shards.folder}: the weights are not those of config.json: {', '.join(faults[:5])}{more}. Load the model "
            "and write it anew with save_pretrained."
        )
    return needless


def _same(shards: Shards, table: str, name: str) -> bool:
    """Tell whether another name of the table holds the table's bytes."""
    if table not in shards.places:
        return True  # told as missing
    one, other = shards.entry(table), shards.entry(name)
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    size = 4 * BLOCK
    pairs = zip(shards.layout(table).blocks(table, size), shards.layout(name).blocks(name, size), strict=True)
    return all(np.array_equal(first, second) for first, second in pairs)


def choose(recipe: Recipe, shards: Shards, anatomy: Anatomy, *, on_bytes: OnBytes) -> Choice:
    """Decide what a recipe's prune stages remove.

    Args:
        recipe: of prune stages by magnitude alone.
        shards: the folder's weights.
        anatomy: of the model.
        on_bytes: is told how far it is.

    Returns:
        The choice.

    Raises:
        AnatomyError: a group selects nothing, or its tie policy cannot act.
        MaskError: a weight is not finite or of a type that cannot be ordered, or the caps leave too little to remove.
    """
    choice = Choice(anatomy, head_policy(anatomy))
    reader = _Reader(shards, on_bytes)
    for stage in recipe.stages:
        assert stage.prune is not None
        for group in stage.prune.groups:
            if group.role in ("lm_head", "embedding") and choice.head != "untied" and group.tie:
                choice.head = "untied" if group.tie == "untie" else group.tie
        for group in stage.prune.groups:
            _choose_group(group, choice, reader)
    return choice


def _choose_group(group: Group, choice: Choice, reader: _Reader) -> None:
    target = target_of(group, choice.anatomy, choice.head)
    if computed := [weight.path for weight in target.weights if choice.source(weight.path) not in reader.shards.places]:
        raise CheckpointError(f"{computed[0]}: is computed and not stored, so nothing of it can go. Leave it out.")
    streams = [reader.stream(weight, choice.source(weight.path)) for weight in target.weights]
    dtypes = {stream.dtype for stream in streams}
    passes = 2 if len(dtypes) > 1 or "F32" in dtypes else 1
    reader.begin(f"choosing {group.role}", passes)
    assert group.scope != "row"  # refused before
    found = allocate_streams(
        streams,
        group_sparsity(group),
        scope=group.scope,
        already=choice.removals,
        max_sparsity=group.max_sparsity,
        min_keep=group.min_keep,
    )
    choice.removals |= found
    choice.modes |= dict.fromkeys(found, target.mode)
    choice.groups.append(
        {
            "role": group.role,
            "num_weights": len(found),
            "num_removed": sum(removal.num_removed for removal in found.values()),
            "num_elements": sum(weight.numel for weight in target.weights),
            "sparsity": group_sparsity(group),
            "scope": group.scope,
            "tie": group.tie,
        }
    )


class _Reader:
    """Reads tensors block by block, and tells how far it is."""

    def __init__(self, shards: Shards, on_bytes: OnBytes) -> None:
        self.shards, self.on_bytes = shards, on_bytes
        self.what, self.done, self.total, self.pending = "", 0, 0, 0

    def begin(self, what: str, passes: int) -> None:
        """Begin with the tensors that were asked for since the last time."""
        self.what, self.done, self.total, self.pending = what, 0, passes * self.pending, 0

    def stream(self, weight: Weight, source: str) -> Stream:
        """Ask for a tensor."""
        entry = self.shards.entry(source)
        check_dtype(source, entry.dtype)
        self.pending += entry.end - entry.begin
        return Stream(weight.path, weight.numel, entry.dtype, lambda: self._blocks(source, DTYPES[entry.dtype]))

    def _blocks(self, source: str, dtype: np.dtype) -> Iterator[np.ndarray]:
        for piece in self.shards.layout(source).blocks(source, BLOCK * dtype.itemsize):
            yield piece.view(dtype)
            self.done += piece.nbytes
            self.on_bytes(self.what, self.done, max(self.total, self.done))


__all__ = ["Choice", "check_tensors", "choose"]
