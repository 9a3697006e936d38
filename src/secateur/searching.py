"""Find how much of each group goes: `secateur search` spends a budget along measured curves, then tries."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from secateur.anatomy.check import anatomy_of, meta_model
from secateur.anatomy.stored import read_config
from secateur.artefact import find_artefact
from secateur.artifacts.lock import lock_folder
from secateur.dues import Due, due_of, dues_of_roles
from secateur.errors import RunInterrupted
from secateur.files import write_json, write_text
from secateur.measure import recipe_of
from secateur.plan_groups import head_policy, target_of
from secateur.probe import Subject
from secateur.recipe.load import dump_recipe
from secateur.recipe.names import Scope, Tie
from secateur.recipe.open import open_recipe
from secateur.recipe.schema import Prune, Recipe, Stage, Train
from secateur.run_folder import dense_model
from secateur.search.budget import BY_ROLE, LEAST, Kind, num_gone, settled, told_budget, told_failures
from secateur.search.curves import Curve, Measure
from secateur.search.refine import refine
from secateur.sensing import NUM_ROWS, SPARSITIES, check_request, curves_of, sensitivity, subjects_of
from secateur.short_runs import (
    FORMAT,
    RECIPE,
    SEARCH,
    ShortRuns,
    calibration_of,
    check_amounts,
    claim_search,
    direction_of,
    retraining_of,
    trials_about,
)

CURVES = "curves"  # their folder in the search's


def search(
    model: str,
    recipe: Recipe | str | Path | None = None,
    *,
    out: str | Path,
    budget: tuple[Kind, float] | None,
    score: str = "lamp",
    scope: Scope = "global",
    tie: Tie = "view",
    per_layer: bool = False,
    by: Measure = "divergence",
    sparsities: Sequence[float] = SPARSITIES,
    rows: int = NUM_ROWS,
    trials: int = 0,
    trial_epochs: float = 0.25,
    epochs: float = 4.0,
    overrides: Sequence[str] = (),
    device: str = "auto",
    on_cell: Callable[[int, int, str], None] | None = None,
    ray_threads: int | None = None,
    on_trial: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Choose sparsities for a budget, and write a recipe that is ready to run.

    The curves of `sensitivity` say what each group costs alone; the budget is spent where it costs least. With trials,
    short real runs then try sparsities near these, all of the same budget, and the best is taken. Everything that is
    done stands on disk: a call that was stopped goes on, and several processes may share the trials.

    Args:
        model: a run folder, a stage folder, a Hugging Face folder, or a hub id; dense.
        recipe: says task, data, and (by its first training) how to retrain; by default that of the run that `model`
            belongs to.
        out: the search's folder: new, empty, or that of the same search.
        budget: what the pruned model may be: counted or stored (a ratio), or bytes of a packed file; None: every role
            loses what it loses in the recipe, and its stacks, or layers, share that anew.
        score: of single weights.
        scope: one threshold for a whole group, or for each of its tensors, or for each of their rows.
        tie: what happens to the table that a head shares with the embedding. A view frees no stored byte, so that it
            is pruned for `counted` only.
        per_layer: every layer for itself.
        by: what is to be least: the sum of the divergences from the dense model's outputs, or of the loss's rises. Of a
            model that is too sure of itself the loss falls by pruning; it never comes nearer to its own outputs.
        sparsities: at which the curves are measured.
        rows: of the validation texts, for the curves.
        trials: short real runs in all; 0 leaves it at the curves.
        trial_epochs: of retraining in each.
        epochs: of retraining in the recipe that is written.
        overrides: `a.b=c`, as `--set` takes them.
        device: auto, cpu, cuda or mps.
        on_cell: is told (cells done, cells in all, the next cell's name) of the curves.
        ray_threads: CPU threads of each trial, for Ray Tune to run as many trials at once as there is room for; None:
            this process runs them one after the other.
        on_trial: is told (trial's number, trials in all).
        should_stop: asked before every cell of the curves, and at every step of a trial; not under Ray.

    Returns:
        What search.json holds: the budget, the elements that go, each group's sparsity with its predicted rise, and
        the trials' outcome.

    Raises:
        CheckpointError: the folder is foreign, or holds another search. Another budget is the same search as long as
            no trials have been made.
        RunInterrupted: stopped on request; the same call goes on.
        SecateurError: the budget cannot be reached, or an option is out of range.
    """
    check_request(sparsities, score)
    check_amounts(rows=rows, trials=trials, trial_epochs=trial_epochs, epochs=epochs)
    folder = Path(out).expanduser().resolve()
    checked = open_recipe(recipe if recipe is not None else recipe_of(model), overrides)
    path = dense_model(model)
    config, raw = read_config(path, trust_remote_code=checked.trust_remote_code)
    anatomy = anatomy_of(meta_model(config, raw))
    subjects = {
        subject.name: subject
        for subject in subjects_of(anatomy, score=score, scope=scope, tie=tie, per_layer=per_layer)
    }
    head = "untied" if tie == "untie" else head_policy(anatomy)
    tensors = {
        name: [weight.numel for weight in target_of(subject.group, anatomy, head).weights]
        for name, subject in subjects.items()
    }
    added = anatomy.table.numel if tie == "untie" and anatomy.shares_head else 0
    if budget is None:
        dues = dues_of_roles(checked, anatomy, subjects)
    else:
        dues = [due_of(budget, tensors, subjects, num_parameters=anatomy.num_parameters, num_added=added)]
    asked = [*budget] if budget else [BY_ROLE, {due.name: due.count for due in dues}]
    sizes = {name: sum(tensors[name]) for due in dues for name in due.groups}
    if not (folder / CURVES).exists():  # which may hold higher sparsities; is the budget in reach at all?
        for due in dues:
            due.check(sizes, max(sparsities))
    digest = find_artefact(path).hash
    about = {"hash": digest, "tie": tie} if digest else {"model": model, "tie": tie}
    # More cells would move the curves, and with them where the trials start: not once there are trials.
    spending = {"budget": asked, "by": by, "measured_sparsities": sorted(sparsities)}
    claim_search(folder, about, spending, trials=trials)
    with lock_folder(folder, wait=True):  # several processes share the trials; one measures the curves
        content = sensitivity(
            model,
            checked,
            out=folder / CURVES,
            sparsities=sparsities,
            score=score,
            scope=scope,
            tie=tie,
            per_layer=per_layer,
            rows=rows,
            calibration=calibration_of(checked),
            device=device,
            on_cell=on_cell,
            should_stop=should_stop,
        )
    curves = [curve for curve in curves_of(content, by) if curve.name in sizes]
    chosen: dict[str, float] = {}
    for due in dues:
        chosen |= due.spend([curve for curve in curves if curve.name in due.groups])
    spent = chosen
    facts: dict[str, Any] = {
        "format": FORMAT,
        "version": 1,
        "model": model,
        **about,
        **spending,
        "num_removed": sum(due.count for due in dues),
        "dense_loss": content["dense_loss"],
        "predicted_rise": sum(curve.rise_at(chosen[curve.name]) for curve in curves),
        "sparsities": chosen,
        "trials": None,
    }
    if trials:
        start = {name: sparsity for name, sparsity in chosen.items() if sparsity}
        facts["trials"] = _try(
            folder, path, digest, checked, subjects, start, sizes, dues, retraining_of(checked, trial_epochs),
            ShortRuns(folder, trials, device, ray_threads, on_trial, should_stop),
        )  # fmt: skip
        chosen = facts["sparsities"] = {**chosen, **facts["trials"]["sparsities"]}
        facts["predicted_rise"] = sum(curve.rise_at(min(chosen[curve.name], curve.hull[-1][0])) for curve in curves)
    moved = chosen != spent
    parts = {name: [sizes[name]] if scope == "global" else tensors[name] for name in sizes}
    most = {curve.name: max(curve.hull[-1][0], chosen[curve.name]) for curve in curves}
    for due in dues:
        own = {name: parts[name] for name in due.groups}
        chosen = chosen | settled({name: chosen[name] for name in own}, own, due.count, most=most)
    facts["sparsities"] = chosen
    facts["num_removed"] = num_gone({name: share if share >= LEAST else 0.0 for name, share in chosen.items()}, parts)
    final = with_evaluation(make_recipe(checked, path, subjects, chosen, retraining_of(checked, epochs)), checked)
    reasons = _reasons(curves, chosen, by=by, moved=moved)
    write_text(folder / RECIPE, _header(facts) + with_reasons(final, list(reasons.values())))
    facts["reasons"] = reasons
    write_json(folder / SEARCH, facts)
    return facts


def make_recipe(
    base: Recipe, model: str, subjects: Mapping[str, Subject], sparsities: Mapping[str, float], train: Train
) -> Recipe:
    """Write sparsities as a recipe: prune all groups at once, then retrain with the dense model as the teacher.

    Args:
        base: says task, evaluation and calibration.
        model: the dense model.
        subjects: name -> group without a sparsity.
        sparsities: name -> share removed; what is next to nothing is left out.
        train: the retraining.

    Returns:
        The recipe.
    """
    groups = tuple(
        subjects[name].group.model_copy(update={"sparsity": sparsity})
        for name, sparsity in sparsities.items()
        if sparsity >= LEAST
    )
    stages = (
        Stage(name="prune", prune=Prune(groups=groups, calibration=calibration_of(base))),
        Stage(name="retrain", train=train.model_copy(update={"teacher": "given"})),
    )
    return base.model_copy(update={"model": model, "initialize": "pretrained", "stages": stages})


def with_evaluation(found: Recipe, base: Recipe) -> Recipe:
    """End a found recipe as the base does: with the evaluations that come after its last change.

    Args:
        found: its stages have names of their own.
        base: says what is measured at the end.

    Returns:
        The recipe; short runs of trials go without, for they never see test data.
    """
    names = {stage.name for stage in found.stages}
    closing = tuple(takewhile(lambda stage: stage.evaluate is not None, reversed(base.stages)))[::-1]
    kept = (stage for stage in closing if stage.name not in names)
    return found.model_copy(update={"stages": (*found.stages, *kept)})


def _try(
    folder: Path,
    model: str,
    digest: str | None,
    base: Recipe,
    subjects: Mapping[str, Subject],
    start: Mapping[str, float],
    sizes: Mapping[str, int],
    dues: Sequence[Due],
    train: Train,
    short: ShortRuns,
) -> dict[str, Any]:
    """Refine by short runs."""
    best = refine(
        start,
        sizes,
        short.trial(lambda sparsities: make_recipe(base, model, subjects, sparsities, train)),
        folder=folder,
        num_trials=short.num_trials,
        parts=[due.groups for due in dues] if len(dues) > 1 else None,
        higher_is_better=direction_of(base),
        seed=base.seed,
        about=trials_about(base, train, digest),
        ray=short.ray,
        should_stop=short.should_stop,
    )
    return {
        "num_trials": best.num_trials,
        "best": best.number,
        "value": best.value,
        "start": best.start,
        "epochs": train.epochs,
        "metric": short.metric(best.number),
        "failed": list(best.failed),
        "sparsities": best.sparsities,
    }


def _reasons(curves: Sequence[Curve], chosen: Mapping[str, float], *, by: Measure, moved: bool) -> dict[str, str]:
    """Say why each group that is pruned loses what it loses."""
    found = {}
    for curve in curves:
        sparsity = chosen[curve.name]
        if sparsity < LEAST:
            continue
        rise = curve.rise_at(min(sparsity, curve.hull[-1][0]))
        cost = "raises the loss by" if by == "loss" else "moves the outputs by"
        told = f"{curve.name}: alone it {cost} about {rise:.4f}"
        found[curve.name] = f"{told}; moved by the trials" if moved else told
    return found


def _header(facts: Mapping[str, Any]) -> str:
    rise, dense = facts["predicted_rise"], facts["dense_loss"]
    lines = [
        f"Made by secateur search for {told_budget(facts['budget'])}: {facts['num_removed']:,} weights go.",
        f"Before retraining the loss rises by {rise:.4f} from {dense:.4f} nats a token, if the groups' rises add up."
        if facts["by"] == "loss"
        else f"Before retraining outputs are {rise:.4f} nats a token from the dense model's, if the groups' add up.",
    ]
    if trials := facts["trials"]:
        start = f" (the curves' own: {trials['start']:g})" if trials["start"] is not None else ""
        lines.append(
            f"{trials['num_trials']} runs of {trials['epochs']:g} epochs refined them: best {trials['value']:g}{start}."
        )
        lines += told_failures(trials)
    return "".join(f"# {line}\n" for line in lines)


def with_reasons(recipe: Recipe, reasons: Sequence[str]) -> str:
    """Write a recipe without its defaults, and a reason beside each group's sparsity, in their order."""
    left, text = iter(reasons), dump_recipe(recipe, defaults=False)
    return re.sub(
        r"^( +(?:- )?sparsity: [\d.e-]+)$", lambda found: f"{found[1]}  # {next(left)}", text, flags=re.MULTILINE
    )


__all__ = ["RunInterrupted", "make_recipe", "search", "with_reasons"]
