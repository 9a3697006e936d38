"""Prune a model folder without loading its model: tensor by tensor, however large it is."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secateur.anatomy.check import anatomy_of, meta_model
from secateur.anatomy.families import FAMILIES
from secateur.anatomy.family import REMOVED_ROWS
from secateur.anatomy.roles import Anatomy
from secateur.anatomy.stored import read_config
from secateur.artifacts.checkpoint import folds, mark_own_head
from secateur.artifacts.counts import BUFFERS, Counts
from secateur.artifacts.lock import lock_folder
from secateur.artifacts.manifest import STAGE, check_recorded, environment, peak_memory_bytes, resolve_model
from secateur.artifacts.packed_copies import Copy, make_copy
from secateur.artifacts.shard_writer import Outline, Written, check_room, outline, write_shards
from secateur.artifacts.shards import INDEX, Shards, open_shards
from secateur.errors import CheckpointError
from secateur.files import PARTIAL, OnBytes, check_new_folder, new_folder, read_json, silent, write_json, write_text
from secateur.masks.mask_file import MaskWriter
from secateur.masks.streamed import BLOCK, DTYPES, Removal, keep_block, magnitudes
from secateur.masks.tie import HEAD
from secateur.planning import plan_stages
from secateur.pruning import MASKS
from secateur.recipe.open import open_recipe
from secateur.recipe.schema import Recipe
from secateur.report.card import CARD
from secateur.report.shards import shards_card
from secateur.shard_choice import Choice, check_tensors, choose
from secateur.shard_recipe import check_by_shards, recipe_of_groups

MODEL = "model"  # what the folder calls the pruned model, as a stage of a run does
_LOCK = ".lock"
_WEIGHTS = (".safetensors", ".bin", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth", ".ckpt", ".npz", ".gguf")


def prune(
    model: str | Path,
    out: str | Path,
    *,
    recipe: Recipe | str | Path | None = None,
    groups: Sequence[Mapping[str, Any]] = (),
    overrides: Sequence[str] = (),
    on_bytes: OnBytes = silent,
) -> dict[str, Any]:
    """Prune a model folder by magnitude, tensor by tensor, without ever loading its model.

    What goes is exactly what a run's prune stages would remove, and what stays keeps its bits and its type. The new
    folder has the form of a run's stage: `model/` (the same files and shards, for plain transformers), the masks, what
    was done as stage.json, and a card.

    Args:
        model: a model folder, a run or a stage, its weights in one file or in shards; it is only read.
        out: the new folder; new or empty. It is filled beside its place and moved there when all of it is written.
        recipe: whose prune stages are done; its model is not looked at.
        groups: instead of a recipe, keys and values as in a recipe's `groups`, all in one stage.
        overrides: `a.b=c`, as `--set` takes them, for a recipe's file.
        on_bytes: is told (what is being done, bytes done, bytes in all).

    Returns:
        What stage.json says: groups, counts, the hash of the weights, seconds, the peak memory of this process, the
        environment.

    Raises:
        RecipeError: the recipe or the groups are wrong, ask what needs the whole model, or do not fit it.
        CheckpointError: there is no such folder, one of its files is damaged, or `out` cannot be written.
        MaskError: a weight is not finite, or the caps leave too little to remove.
    """
    begun, out = time.perf_counter(), Path(out).expanduser()
    folder = Path(resolve_model(str(model)))
    if not folder.is_dir():
        raise CheckpointError(f"{model}: no such folder here. Fetch the model first, and give its folder.")
    if (recipe is None) == (not groups):
        raise CheckpointError("Give either a recipe or groups.")
    checked = recipe_of_groups(str(model), groups) if recipe is None else open_recipe(recipe, overrides)
    check_by_shards(checked)
    check_new_folder(out)
    _remove_leftovers(out)
    shards = open_shards(folder)
    config, raw = read_config(str(folder), trust_remote_code=checked.trust_remote_code)
    hub_model = meta_model(config, raw)
    anatomy = anatomy_of(hub_model)
    plan_stages(checked, anatomy)  # tells every fault of every group at once
    needless = check_tensors(shards, anatomy, unsaved=getattr(hub_model, "_keys_to_ignore_on_save", None) or ())
    _check_head(checked, shards, anatomy, config)
    _check_room(out, shards)
    check_recorded(str(folder))
    choice = choose(checked, shards, anatomy, on_bytes=on_bytes)
    writer = _Folder(shards, choice, config, on_bytes)
    plan = writer.plan(needless)
    with new_folder(out) as place, lock_folder(place):
        (place / MODEL).mkdir()
        written = writer.write(place, plan)
        entry = _entry(out.name, choice, written, writer, dense=anatomy.num_parameters, needless=needless)
        entry |= {"seconds": time.perf_counter() - begun, "peak_memory_bytes": peak_memory_bytes()}
        entry |= {"environment": environment("cpu")}
        write_text(place / CARD, shards_card(entry))
        write_json(place / STAGE, entry)
        (place / _LOCK).unlink()
    return entry


def _check_head(recipe: Recipe, shards: Shards, anatomy: Anatomy, config: Any) -> None:
    """Refuse a head of its own that would be rounded, before the work."""
    groups = [group for stage in recipe.stages if stage.prune for group in stage.prune.groups]
    policies = [group.tie for group in groups if group.tie in ("view", "untie") and anatomy.shares_head]
    dtype = shards.entry(anatomy.table.path).dtype
    if policies and dtype != "F32" and np.frexp(_scale(config))[0] != 0.5:  # a power of two rounds nothing
        raise CheckpointError(
            f"{shards.folder}: tie: {policies[0]} stores a head of its own, times d_model^-0.5, which {dtype} would "
            "round. Use tie: both, or convert the model to fp32 first."
        )


def _check_room(out: Path, shards: Shards) -> None:
    """Refuse a disk that has no room for as much as the model takes; a head of its own takes a little more."""
    place = next(place for place in (out.absolute(), *out.absolute().parents) if place.is_dir())
    check_room(place, sum(layout.file.stat().st_size for layout in shards.layouts.values()))


def _scale(config: Any) -> float:
    """Give what a head of its own is multiplied by when it is stored."""
    return config.d_model**-0.5 if folds(config) else 1.0


def _remove_leftovers(out: Path) -> None:
    """Remove what a killed pruning into the same folder left; one that is at work holds its lock."""
    for place in out.parent.glob(f"{PARTIAL}{out.name}-*") if out.parent.is_dir() else ():
        if (place / _LOCK).is_file():
            try:
                with lock_folder(place):
                    shutil.rmtree(place, ignore_errors=True)
            except CheckpointError:
                continue


def _entry(
    name: str, choice: Choice, written: Written, writer: _Folder, *, dense: int, needless: Sequence[str]
) -> dict[str, Any]:
    """Say what was done, as a stage of a run does."""
    beside = sum(math.prod(writer.shards.entry(name).shape) for name in BUFFERS & writer.shards.places.keys())
    num_parameters = written.num_parameters - beside
    counts = Counts(choice.counted, writer.num_nonzero / dense, num_parameters, written.num_bytes)
    return {
        "name": name,
        "kind": "prune",
        "groups": choice.groups,
        "counts": counts.as_json(),
        "dense_parameters": dense,
        "hash": written.hash,
        "left_out": list(needless),
        "largest_shard_bytes": writer.shards.largest_bytes,
        "sparsity": [
            {
                "path": path,
                **{key: getattr(choice.anatomy[path], key) for key in ("role", "stack", "layer")},
                "num_elements": choice.anatomy[path].numel,
                "num_removed": removal.num_removed,
                "mode": choice.modes[path],
            }
            for path, removal in choice.removals.items()
        ],
    }


class _Folder:
    """Writes the pruned folder, and counts what is in it."""

    def __init__(self, shards: Shards, choice: Choice, config: Any, on_bytes: OnBytes) -> None:
        self.shards, self.choice, self.config, self.on_bytes = shards, choice, config, on_bytes
        self.num_nonzero = self.done = self.total = 0
        self.table = choice.anatomy.table.path
        self.rows = {
            path: np.zeros(choice.anatomy[path].shape[0], np.bool_)
            for path in (self.table, HEAD)
            if path in choice.removals
        }
        self.copy = Copy(_scale(config), signed=choice.head == "view") if choice.makes_head else None

    def plan(self, needless: Sequence[str]) -> dict[str, list[Outline]]:
        """List what every file will hold; a head of its own goes beside the table."""
        added = {HEAD: self.table} if self.choice.makes_head else {}
        return {
            name: outline(layout, without=needless, added=added if self.shards.places[self.table] == name else {})
            for name, layout in self.shards.layouts.items()
        }

    def write(self, place: Path, plan: Mapping[str, Sequence[Outline]]) -> Written:
        """Write masks, weights, and whatever else the model folder holds."""
        self.total = sum(item.num_bytes for outlines in plan.values() for item in outlines)
        choice = self.choice
        shapes = {path: choice.anatomy[path].shape for path in choice.removals}
        owner = choice.anatomy.fingerprint()
        with MaskWriter(place / MASKS, shapes, choice.modes, owner=owner) as self.masks:
            written = write_shards(self.shards, place / MODEL, plan, self._content)
        for file in sorted(self.shards.folder.iterdir()):
            if file.is_file() and not file.name.startswith(".") and not file.name.endswith((*_WEIGHTS, INDEX)):
                shutil.copyfile(file, place / MODEL / file.name)
        self._settle_config(place / MODEL)
        return written

    def _content(self, name: str) -> Iterator[np.ndarray]:
        """Make a tensor's bytes, pruned, piece by piece."""
        source = self.choice.source(name)
        layout, dtype = self.shards.layout(source), self.shards.entry(source).dtype
        size = BLOCK * (DTYPES[dtype].itemsize if dtype in DTYPES else 4)
        removal = self.choice.removals.get(name)
        pieces = layout.blocks(source, size)
        if removal is not None or (name == HEAD and self.copy is not None):
            pieces = self._pruned(name, dtype, pieces, removal)
        for piece in pieces:
            self.num_nonzero += _count_nonzero(piece, dtype) if name not in BUFFERS else 0
            yield piece
            self.done += piece.nbytes
            self.on_bytes("writing", self.done, self.total)

    def _pruned(
        self, name: str, dtype: str, pieces: Iterator[np.ndarray], removal: Removal | None
    ) -> Iterator[np.ndarray]:
        """Zero what goes, write the mask, and note the rows in which something stays."""
        chosen = removal or Removal(-1.0)  # no magnitude is below 0: everything stays
        start, equals_left = 0, chosen.num_equal
        for piece in pieces:
            bits = piece.view(DTYPES[dtype])
            kept, equals_left = keep_block(magnitudes(bits, dtype), chosen, equals_left)
            if removal is not None:
                self.masks.write(name, start, kept)
            if name in self.rows:
                self.rows[name][(start + np.flatnonzero(kept)) // self.choice.anatomy[name].shape[1]] = True
            if name == HEAD and self.copy is not None:
                yield make_copy(piece, kept, self.copy, dtype=dtype)
            else:
                np.multiply(bits, kept, out=bits)
                yield piece
            start += len(bits)

    def _settle_config(self, place: Path) -> None:
        """Say in the configuration what became of the head, and which tokens have no row left."""
        file = place / "config.json"
        raw = read_json(file)
        known = dict(raw)
        if self.choice.makes_head and not FAMILIES[self.config.model_type].tie_covers_stacks:
            mark_own_head(raw, self.config.model_type)
        own = self.choice.head == "untied"
        tables = [self.rows.get(path) for path in ((self.table, HEAD) if own else (self.table,))]
        gone: list[int] = []
        if all(rows is not None for rows in tables):
            gone = np.flatnonzero(~np.any([rows for rows in tables if rows is not None], axis=0)).tolist()
        if gone:
            raw[REMOVED_ROWS] = sorted({*raw.get(REMOVED_ROWS, []), *gone})
            self._suppress(place, gone)
        if raw != known:
            write_json(file, dict(sorted(raw.items())))

    def _suppress(self, place: Path, gone: Sequence[int]) -> None:
        """Forbid tokens without a row: their logits are 0, which may be the highest."""
        from transformers import GenerationConfig

        known = (place / "generation_config.json").is_file()
        settings = GenerationConfig.from_pretrained(place) if known else GenerationConfig.from_model_config(self.config)
        settings.suppress_tokens = sorted({*(settings.suppress_tokens or []), *gone})
        settings.save_pretrained(place)


def _count_nonzero(piece: np.ndarray, dtype: str) -> int:
    """Count what is not zero; minus zero is zero."""
    if dtype in DTYPES:
        bits = piece.view(DTYPES[dtype])
        return int(np.count_nonzero(bits << 1))
    width = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4}.get(dtype, 1)
    return int(np.count_nonzero(piece.view(f"<u{width}")))


__all__ = ["MODEL", "prune"]
