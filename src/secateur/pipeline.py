"""Run a recipe, stage by stage, into a folder that can be checked, gone on from and loaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.anatomy.check import anatomy_of
from secateur.anatomy.family import WIDTHS
from secateur.anatomy.gaps import GAPS
from secateur.anatomy.roles import Anatomy
from secateur.anatomy.stored import read_config
from secateur.artifacts.loading import load_tokenizer
from secateur.artifacts.lock import lock_folder
from secateur.artifacts.manifest import (
    environment,
    is_run,
    read_manifest,
    resolve_model,
)
from secateur.errors import CheckpointError, RecipeError, RunInterrupted, SecateurError
from secateur.evaluation.metrics import UserMetric
from secateur.exports.engines import check_installed
from secateur.fields import evaluation_settings, load_split
from secateur.files import new_folder, read_json, remove_partial, write_text
from secateur.given import Classes, classes_of, load_start
from secateur.masks.mask import MaskSet
from secateur.masks.tie import untie
from secateur.nni_stage import reads_rows
from secateur.planning import head_policy, plan_stages, schedule_faults
from secateur.processes import join, pick_device
from secateur.pruning import asks_rows
from secateur.recipe.load import dump_recipe
from secateur.recipe.open import RECIPE, open_recipe
from secateur.recipe.schema import Recipe
from secateur.reporter import Reporter
from secateur.run_folder import RunFolder, choose_folder, empty_folder, prepare_folder
from secateur.stages import measure_given, restore, run_stage, tidy
from secateur.state import Inputs, Live, Run
from secateur.tasks.corrupt import sentinels_of
from secateur.tasks.encode import check_tokenizer
from secateur.tasks.labels import found_labels
from secateur.tasks.trim import check_trimmable
from secateur.teaching import check_teachers


@dataclass(frozen=True)
class RunResult:
    """Where a run's folder lies, and its manifest."""

    folder: Path
    manifest: dict[str, Any]


def run(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    data: Mapping[str, Iterable[Mapping[str, Any]]] | None = None,
    metrics: Sequence[UserMetric] = (),
    callbacks: Sequence[Any] = (),
    reporter: Reporter | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> RunResult:
    """Run a recipe: prune, retrain, evaluate, and leave a folder that can be checked.

    Args:
        recipe: a Recipe, its file, or (to resume) a run folder.
        out: the run folder; by default runs/NAME, NAME being the recipe's file name. It must be new or empty.
        overrides: `a.b=c`, as `--set` takes them.
        resume: go on with the run that stands in `out`; a folder without one starts anew.
        overwrite: replace the run that stands in `out`; a folder that is not a run of ours is never replaced.
        device: auto, cpu, cuda or mps.
        data: rows of your own for the splits "train", "validation", "test", instead of the recipe's data: a list of
            dicts, a `datasets.Dataset`, anything that gives mappings with the task's two columns.
        metrics: functions of your own (predictions, references) -> one number a row, one number, or a dict of either.
        callbacks: callbacks of your own for the Hugging Face trainer.
        reporter: is told how the run goes.
        should_stop: asked after every step of training and between stages; when it says yes, the run stops resumably.

    Returns:
        The folder and its manifest.

    Raises:
        RecipeError: the recipe is wrong or does not fit its model.
        RunInterrupted: stopped on request; `resume=True` goes on.
        SecateurError: anything else that the message tells how to mend.
    """
    if resume and overwrite:
        raise SecateurError("resume and overwrite exclude each other: one goes on with a run, the other replaces it.")
    checked = open_recipe(recipe, overrides)
    chosen, folder = pick_device(device), choose_folder(recipe, out)
    with join(chosen) as processes, ExitStack() as stack:
        processes.first(lambda: prepare_folder(folder, checked, resume=resume, overwrite=overwrite))
        processes.first(lambda: stack.enter_context(lock_folder(folder)))
        heard = reporter if reporter and processes.is_first else Reporter()
        inputs = Inputs(data or {}, tuple(metrics), tuple(callbacks), heard, should_stop, chosen, processes)
        state, live = _begin(checked, folder, inputs, overwrite=overwrite)
        try:
            _run_stages(state, live)
            return _finish(state)
        except (RunInterrupted, KeyboardInterrupt) as error:
            state.write("interrupted")
            raise RunInterrupted(f"{error or 'Interrupted.'} Go on with: secateur run {folder} --resume") from error
        except Exception:
            with suppress(SecateurError):  # the disk may be what failed; the first error is the one to tell
                state.write("interrupted")
            raise


def _begin(recipe: Recipe, folder: Path, inputs: Inputs, *, overwrite: bool) -> tuple[Run, Live]:
    """Load model and tokenizer, check the recipe against them, and write the first files of the run."""
    path = resolve_model(recipe.model)
    if overwrite and Path(path).exists() and Path(path).resolve().is_relative_to(folder):
        raise CheckpointError(f"{path}: the recipe starts from the run that would be replaced. Choose another --out.")
    remote = recipe.trust_remote_code
    config, raw = read_config(path, trust_remote_code=remote)
    train = load_split(recipe, "train", inputs.rows.get("train")) if recipe.task.kind == "classification" else None
    classes = classes_of(recipe, config, raw, found_labels(train) if train else None)
    model, masks, head = load_start(recipe, path, classes)
    anatomy = anatomy_of(model)
    started = masks is not None
    if masks is None or head is None:
        masks, head = MaskSet.empty(anatomy.fingerprint()), head_policy(anatomy)
    if head == "untied" and anatomy.head is not None:
        untie(model)  # guards it: transformers ties such a head again at every occasion
    tokenizer = load_tokenizer(path, trust_remote_code=remote)
    check_tokenizer(tokenizer, model.config)
    done = () if overwrite else inputs.processes.first(RunFolder(folder, recipe).done_stages)
    _check_ahead(recipe, tokenizer, classes, done)
    plan = plan_stages(recipe, anatomy, masks=masks, head=head, classes=classes)
    manifest = inputs.processes.first(lambda: _open_folder(recipe, folder, inputs, anatomy, overwrite=overwrite))
    if classes:
        manifest |= {"classes": list(classes.labels), "new_head": classes.is_new}
    state = Run(recipe, RunFolder(folder, recipe), inputs, anatomy, manifest, classes)
    if train:
        state.take("train", train)
    inputs.reporter.run_started(recipe, folder, plan)
    state.write("running")
    live = Live(model, masks, head, anatomy, tokenizer)
    if started:
        live.lay(masks)
    return state, live


def _check_ahead(recipe: Recipe, tokenizer: Any, classes: Classes | None, done: Collection[int]) -> None:
    """Find now what a later stage lacks, not after hours of the stages before."""
    for stage in recipe.stages:
        if stage.training and stage.training.denoising:
            sentinels_of(tokenizer)
        if stage.prune and any(group.unit == "vocab_row" for group in stage.prune.groups):
            check_trimmable(tokenizer)
        if stage.export:
            check_installed(stage.export.to)
    check_teachers(recipe, tokenizer, classes=classes, done=done)


def _open_folder(recipe: Recipe, folder: Path, inputs: Inputs, anatomy: Anatomy, *, overwrite: bool) -> dict[str, Any]:
    """Write the recipe into the run's folder, and begin its manifest: with what an earlier process found, if any."""
    if overwrite:  # only now: a recipe that cannot run replaces nothing
        empty_folder(folder)
    remove_partial(folder)
    write_text(folder / RECIPE, dump_recipe(recipe))
    earlier = read_manifest(folder) if is_run(folder) else None
    return {
        "status": "running",
        "recipe": RECIPE,
        "model": recipe.model,
        "seed": recipe.seed,
        "environment": environment(inputs.device) | {"processes": inputs.processes.size},
        "data": {
            "path": "rows of the caller" if inputs.rows else recipe.task.data.path,
            "hashes": earlier["data"]["hashes"] if earlier else {},
            "rows": earlier["data"]["rows"] if earlier else {},
        },
        "dense_parameters": anatomy.num_parameters,
        "dense": earlier["dense"] if earlier else None,
        "stages": [],
    }


def _run_stages(state: Run, live: Live) -> None:
    recipe, reporter = state.recipe, state.inputs.reporter
    for split in _splits(recipe):
        state.load(split)  # a fault in the test data shows now, not after hours of training
    done = state.processes.first(state.folder.done_stages)
    trains = any(stage.training for stage in recipe.stages)
    if trains and (faults := schedule_faults(recipe, state.load("train").num_rows, done=done)):
        raise RecipeError(faults, "The recipe does not fit its training rows:")
    if recipe.initialize == "pretrained" and not (state.classes and state.classes.is_new):
        measure_given(state, live)
    _go_on_from(state, live, done)
    for index, stage in enumerate(recipe.stages, start=1):
        if index in done:
            state.entries.append(done[index])
            tidy(state, index)
            reporter.stage_skipped(stage.name)
            continue
        if state.inputs.stopping():
            raise RunInterrupted(f"Stopped before stage {stage.name}.")
        reporter.stage_started(index, len(recipe.stages), stage.name, stage.kind)
        run_stage(state, live, index, stage)
        state.write("running")
        reporter.stage_finished(state.entries[-1])


def _splits(recipe: Recipe) -> list[str]:
    """Name the splits that a run will read."""
    groups = [group for stage in recipe.stages if stage.prune for group in stage.prune.groups]
    by_nni = any(stage.prune and reads_rows(stage.prune) for stage in recipe.stages)
    trains = any(stage.training for stage in recipe.stages)
    training = ["train"] if trains or by_nni or any(map(asks_rows, groups)) else []
    measured = [evaluation_settings(recipe.evaluation, stage.evaluate).split for stage in recipe.stages]
    return list(dict.fromkeys([*training, recipe.evaluation.split, *measured]))


def _go_on_from(state: Run, live: Live, done: Mapping[int, Mapping[str, Any]]) -> None:
    """Bring the live model to where the last finished stage that changed it left it."""
    state.processes.first(lambda: state.folder.forget_after(len(done) + 1))
    changed = [index for index in done if state.recipe.stages[index - 1].changes_model]
    if changed:
        restore(state, live, state.folder.stage(changed[-1]))


def _finish(state: Run) -> RunResult:
    """Put the final plain model where the folder's reader looks first, and close the manifest."""
    final = state.folder.path / "model"
    state.processes.first(lambda: _put_final(state.folder, final))
    state.manifest["model_folder"] = final.name if final.is_dir() else None
    told = read_json(final / "config.json") if (final / "config.json").is_file() else {}
    state.manifest["ragged"] = bool({WIDTHS, GAPS} & set(told))  # what secateur.load alone can load
    state.write("complete")
    state.processes.wait()  # the others read the manifest that the first wrote
    state.inputs.reporter.run_finished(state.folder.path, state.manifest)
    return RunResult(state.folder.path, read_manifest(state.folder.path))


def _put_final(folder: RunFolder, final: Path) -> None:
    source = folder.newest_model(len(folder.recipe.stages))
    if source.is_dir() and source.parent.parent == folder.path:
        link_folder(source, final)


def link_folder(source: Path, target: Path) -> None:
    """Give a stage's model its place at the top of the run's folder; the two share their bytes where they can.

    Args:
        source: a folder that will not be written into again.
        target: its second place; a folder that stands there is replaced.

    Raises:
        CheckpointError: the place cannot be written.
    """
    with new_folder(target) as place:
        shutil.copytree(source, place, dirs_exist_ok=True, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> str:
    """Share the bytes of two equal files where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


__all__ = ["Reporter", "RunResult", "run"]
