"""Import what another tool pruned: a run folder of ours, from which every other verb goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.anatomy.check import anatomy_of, meta_model
from secateur.anatomy.family import WIDTHS
from secateur.anatomy.roles import Anatomy
from secateur.anatomy.stored import read_config
from secateur.artifacts.checkpoint import save_live, save_plain
from secateur.artifacts.counts import Counts, count_folder, counted_ratio
from secateur.artifacts.loading import fill_model, load_model, load_tokenizer
from secateur.artifacts.manifest import (
    STAGE,
    artefact_hash,
    environment,
    resolve_model,
    stage_folder_name,
    write_manifest,
)
from secateur.errors import CheckpointError, MaskError, SecateurError
from secateur.files import check_new_folder, new_folder, read_json, write_json, write_text
from secateur.interop.pruned_state import PrunedState, read_pruned
from secateur.masks.hold import attach
from secateur.masks.tie import counted_removed, untie
from secateur.pipeline import RunResult, link_folder, run
from secateur.processes import pick_device
from secateur.recipe.load import dump_recipe
from secateur.recipe.names import Tie
from secateur.recipe.open import RECIPE, open_recipe
from secateur.recipe.schema import Group, Prune, Recipe, Stage
from secateur.report.card import write_card
from secateur.reporter import Reporter
from secateur.run_folder import IMPORT, LIVE
from secateur.stages import sparsity_rows
from secateur.tasks.encode import check_tokenizer

_ABOUT = """\
# Written by `secateur import`: the weights and masks of this run came from another tool. The groups below are what they
# amount to, role by role; running this recipe would choose masks of its own.
"""


@dataclass(frozen=True)
class _Import:
    """What an import is made of.

    Args:
        model: what the caller calls the dense model.
        path: where it is.
        anatomy: of it.
        tokenizer: of it.
        found: what the checkpoint holds.
        checkpoint: its name.
    """

    model: str
    path: str
    anatomy: Anatomy
    tokenizer: Any
    found: PrunedState
    checkpoint: str


def import_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    *,
    model: str | Path,
    recipe: Recipe | str | Path | None = None,
    overrides: Sequence[str] = (),
    masks_from_zeros: bool = False,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> RunResult:
    """Turn a checkpoint that another tool pruned into a run folder of ours.

    Understood are state dicts with `weight_orig` and `weight_mask` (torch.nn.utils.prune), as torch.save, safetensors
    or save_pretrained write them; mappings of parameters' names to masks; NNI's masks, by module; our own mask files.
    A recipe whose `model:` is the folder that comes out goes on with its masks.

    Args:
        checkpoint: a file or a folder; only tensors of it are read, and no code is run.
        out: the run folder; new or empty.
        model: the dense model: configuration and tokenizer are taken from it, and the weights where `checkpoint` holds
            masks alone. A run folder, a Hugging Face folder, or a hub id.
        recipe: says task and data. Then both models are measured; without it nothing is.
        overrides: `a.b=c`, as `--set` takes them; they need a recipe.
        masks_from_zeros: take zeros in matrices that have no mask for removed weights, as `prune.remove()` leaves them.
        device: auto, cpu, cuda or mps; for measuring.
        reporter: is told how the measuring goes.

    Returns:
        The folder and its manifest; `manifest["stages"][0]["import"]` says what was found.

    Raises:
        CheckpointError: a file is missing, damaged or foreign (all faults of it at once), or `out` is not empty.
        SecateurError: anything else that the message tells how to mend.
    """
    if overrides and recipe is None:
        raise SecateurError(f"--set {overrides[0]}: there is no recipe that it could change. Give one with --recipe.")
    folder, chosen = Path(out).expanduser().resolve(), pick_device(device)
    check_new_folder(folder)
    task = None if recipe is None else open_recipe(recipe, overrides)
    facts = _open(Path(checkpoint).expanduser(), str(model), masks_from_zeros=masks_from_zeros)
    checked = None if task is None else _as_recipe(task, facts)
    with new_folder(folder) as place:
        manifest = _write(place, facts, chosen, measured=checked is not None)
        if checked is not None:
            write_text(place / RECIPE, dump_recipe(checked))
    if checked is None:
        write_card(folder)
        return RunResult(folder, manifest)
    # What is on disk is a run that was stopped after its one stage's weights were written: measuring is going on.
    result = run(checked, folder, resume=True, device=device, reporter=reporter)
    write_text(folder / RECIPE, _ABOUT + dump_recipe(checked))
    return result


def _open(checkpoint: Path, model: str, *, masks_from_zeros: bool) -> _Import:
    """Read the checkpoint, and of the dense model what says whether it fits."""
    path = resolve_model(model)
    config, raw = read_config(path)
    anatomy = anatomy_of(meta_model(config, raw))
    tokenizer = load_tokenizer(path)
    check_tokenizer(tokenizer, config)
    found = read_pruned(checkpoint, anatomy, masks_from_zeros=masks_from_zeros)
    return _Import(model, path, anatomy, tokenizer, found, checkpoint.name)


def _write(place: Path, facts: _Import, device: str, *, measured: bool) -> dict[str, Any]:
    """Write the run folder; when it is to be measured, as one whose stage is not closed yet."""
    started = time.monotonic()
    stage = place / stage_folder_name(1, IMPORT)
    live = _live_model(facts)
    save_plain(live, facts.tokenizer, stage / "model", masks=facts.found.masks)
    groups = _groups(facts)
    done = {
        "groups": groups,
        IMPORT: {"checkpoint": facts.checkpoint, "form": facts.found.form, "notes": [*facts.found.notes]},
    }
    if facts.found.weights is None:
        done[IMPORT]["notes"].append("The file holds masks alone: the weights are the dense model's.")
    saved = {"live": save_live(live, stage, masks=facts.found.masks), "head": facts.found.head, "done": done}
    manifest = {
        "status": "running" if measured else "complete",
        "recipe": RECIPE if measured else None,
        "model": facts.model,
        "seed": None,
        "environment": environment(device) | {"processes": 1},
        "data": {"path": None, "hashes": {}, "rows": {}},
        "dense_parameters": facts.anatomy.num_parameters,
        "dense": None if measured else _dense(facts),
        "stages": [],
    }
    write_json(stage / LIVE, saved)
    if not measured:
        entry = {
            "name": IMPORT,
            "kind": IMPORT,
            "folder": stage.name,
            "hash": artefact_hash(str(stage / "model")),
            "seconds": time.monotonic() - started,
            "counts": _counts(facts, stage / "model").as_json(),
            **done,
            "sparsity": sparsity_rows(facts.found.masks, facts.anatomy),
            "metrics": {},
        }
        write_json(stage / STAGE, entry)
        link_folder(stage / "model", place / "model")
        ragged = WIDTHS in read_json(place / "model" / "config.json")
        manifest |= {"stages": [entry], "model_folder": "model", "ragged": ragged}
    write_manifest(place, manifest)
    return manifest


def _live_model(facts: _Import) -> Any:
    """Make the model and lay the masks on it."""
    found = facts.found
    if found.weights is None:
        model = load_model(facts.path)
        if found.head == "untied":
            untie(model)
    else:
        model = fill_model(facts.path, found.weights, own_head=found.head == "untied", buffers=found.buffers)
    try:
        attach(model, found.masks)
    except MaskError as error:
        raise CheckpointError(f"{facts.checkpoint}: its masks cannot be laid on {facts.model}:\n{error}") from error
    return model


def _dense(facts: _Import) -> dict[str, Any] | None:
    """Tell the dense model's counts from its files, where they are here."""
    folder = Path(facts.path)
    if not (folder.is_dir() and any(folder.glob("*.safetensors"))):
        return None
    counts = count_folder(folder, dense_parameters=facts.anatomy.num_parameters, counted=1.0)
    named = {"name": "given", "kind": "given", "folder": None, "hash": artefact_hash(facts.path), "seconds": 0.0}
    return named | {"counts": counts.as_json(), "sparsity": [], "metrics": {}}


def _counts(facts: _Import, folder: Path) -> Counts:
    dense = facts.anatomy.num_parameters
    shared = facts.anatomy.table.path if facts.anatomy.shares_head else None
    removed = counted_removed(facts.found.masks, shared=shared)
    return count_folder(folder, dense_parameters=dense, counted=counted_ratio(dense, removed))


def _groups(facts: _Import) -> list[dict[str, Any]]:
    """Sum the masks up by role, as a prune stage tells its groups."""
    rows: dict[str, dict[str, Any]] = {}
    masks = facts.found.masks
    for path, mask in masks.masks.items():
        role = facts.anatomy[path].role
        row = rows.setdefault(role, {"role": role, "num_weights": 0, "num_removed": 0, "num_elements": 0})
        row["num_weights"] += 1
        row["num_removed"] += masks.removed(path)
        row["num_elements"] += mask.numel()
    return [
        row | {"sparsity": row["num_removed"] / row["num_elements"], "tie": _tie(facts, role)}
        for role, row in rows.items()
    ]


def _tie(facts: _Import, role: str) -> Tie | None:
    """Name the policy that stands for what happened to a shared table; None where there is nothing to say."""
    if role not in ("lm_head", "embedding") or not facts.anatomy.shares_head:
        return None
    policies: dict[str, Tie] = {"view": "view", "both": "both", "untied": "untie"}
    return policies.get(facts.found.head)


def _as_recipe(task: Recipe, facts: _Import) -> Recipe:
    """Write the recipe that belongs to the run: the task as given, the masks as groups of equal size."""
    whole = str(Path(facts.path).resolve()) if Path(facts.path).exists() else facts.path
    prune = Prune(groups=tuple(_recipe_groups(facts)))
    stage = Stage(name=IMPORT, prune=prune)
    return task.model_copy(update={"model": whole, "initialize": "pretrained", "keep": "last", "stages": (stage,)})


def _recipe_groups(facts: _Import) -> list[Group]:
    """Give each role that lost something the sparsity that removes as much of it in all."""
    masks, groups = facts.found.masks, []
    for row in _groups(facts):
        if row["role"] == "embedding" and facts.found.head == "view":
            continue  # a recipe has one policy for the table, and the head's says more
        weights = facts.anatomy.select(role=row["role"])
        total = sum(weight.numel for weight in weights)
        removed = sum(masks.removed(weight.path) for weight in weights)
        if removed:
            groups.append(Group(role=row["role"], sparsity=min(removed, total - 1) / total, tie=row["tie"]))
    return groups


__all__ = ["import_checkpoint"]
