"""Find a shape that is fast enough: `secateur search --latency-ms` times shapes, measures what they cost, and tries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from secateur.anatomy.families import FAMILIES
from secateur.anatomy.family import WIDTHS
from secateur.anatomy.stored import read_config
from secateur.artefact import find_artefact
from secateur.artifacts.lock import lock_folder
from secateur.artifacts.manifest import environment
from secateur.bench_entries import ENGINES
from secateur.errors import SecateurError
from secateur.exports.ctranslate2 import cannot_hold
from secateur.fields import load_split, refuse_classes
from secateur.files import write_json, write_text
from secateur.measure import recipe_of
from secateur.pruning import asks_rows
from secateur.recipe.open import open_recipe
from secateur.recipe.schema import Cut, Export, Prune, Recipe, Stage, Train
from secateur.run_folder import dense_model
from secateur.search.budget import told_failures
from secateur.search.refine import pick
from secateur.search.shapes import AXES, Candidate, Clock, Shape, candidates, levels, sparsities, to_time
from secateur.searching import with_evaluation, with_reasons
from secateur.sensing import NUM_ROWS
from secateur.shape_costs import WORDS, shape_losses, unit_group
from secateur.shape_timer import ShapeTimer, shaped_config
from secateur.short_runs import (
    FORMAT,
    LATENCY,
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

LatencyScore = Literal["magnitude", "random", "l2_norm", "taylor", "fpgm", "activation_mean", "apoz"]
ROUNDS = 4  # of timing what was chosen, and choosing again where it was slower than predicted


def search_latency(
    model: str,
    recipe: Recipe | str | Path | None = None,
    *,
    out: str | Path,
    latency_ms: float,
    engine: str = "ct2-int8",
    threads: int = 1,
    score: LatencyScore = "taylor",
    rows: int = NUM_ROWS,
    repeats: int = 5,
    trials: int = 0,
    trial_epochs: float = 0.25,
    epochs: float = 4.0,
    overrides: Sequence[str] = (),
    device: str = "auto",
    ray_threads: int | None = None,
    on_cell: Callable[[int, int, str], None] | None = None,
    on_trial: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Choose layers, heads and neurons for a number of milliseconds, and write a recipe that is ready to run.

    Zeros save no time, so whole units go. A few shapes with random weights are timed in the engine, in turns with the
    dense model's; a clock fitted to them tells the time of all others. The loss of the dense model with each axis cut
    alone, without retraining, tells what they cost. The cheapest shape that is fast enough is timed itself, and another
    is chosen if it is not. With trials, short real runs choose among the best shapes of every number of layers. The
    vocabulary stays whole: which rows a task needs is a matter of counts, not of search.

    Args:
        model: a run folder, a stage folder, a Hugging Face folder, or a hub id; dense.
        recipe: as for `searching.search`.
        out: the search's folder: new, empty, or that of the same search.
        latency_ms: for one text at batch 1, which is written as long as the mean target; above 0.
        engine: a name of `bench_entries.ENGINES`.
        threads: CPU threads of the engine.
        score: of heads and neurons; layers go by even spacing.
        rows: of the validation texts, for the losses.
        repeats: timed rounds.
        trials: the most short real runs; 0 leaves it at the prediction.
        trial_epochs: of retraining in each.
        epochs: of retraining in the recipe that is written.
        overrides: `a.b=c`, as `--set` takes them.
        device: auto, cpu, cuda or mps: of losses and trials.
        ray_threads: as for `searching.search`.
        on_cell: is told (cells done, cells in all, the next cell's name).
        on_trial: is told (trial's number, trials in all).
        should_stop: asked before every measurement, and at every step of a trial; not under Ray.

    Returns:
        What search.json holds: the times and the clock, what each axis costs, the candidates, and the shape chosen with
        its milliseconds beside the dense model's.

    Raises:
        CheckpointError: the folder is foreign, or holds another search. Another number of milliseconds is the same
            search as long as no trials have been made.
        RunInterrupted: stopped on request; the same call goes on.
        SecateurError: no shape is fast enough, or an option is out of range.
    """
    amounts: dict[str, float] = {"rows": rows, "repeats": repeats, "trials": trials, "trial_epochs": trial_epochs}
    check_amounts(latency_ms=latency_ms, epochs=epochs, **amounts)
    if engine not in ENGINES:
        raise SecateurError(f"engine: no {engine!r}. There are: {', '.join(ENGINES)}.")
    folder = Path(out).expanduser().resolve()
    checked = open_recipe(recipe if recipe is not None else recipe_of(model), overrides)
    refuse_classes(checked, "search --latency-ms: it times what is generated")
    path = dense_model(model)
    config, _ = read_config(path, trust_remote_code=checked.trust_remote_code)
    if FAMILIES[config.model_type].layer_norm:
        raise SecateurError(
            f"{model}: shapes are searched for T5's family, where one number of heads and neurons serves all layers; "
            f"this is a {config.model_type}. Search sparsities with --counted, or prune units by a recipe."
        )
    if getattr(config, WIDTHS, None) is not None:
        raise SecateurError(f"{model}: its layers differ in width already. Search from the dense model.")
    pairs = load_split(checked, checked.evaluation.split)
    dense = Shape(config.num_layers, config.num_decoder_layers, config.num_heads, config.d_ff)
    allowed = _allowed(dense, config, engine)
    cells = [(axis, count) for axis in AXES for count in allowed[axis][:-1]]
    if not cells:
        raise SecateurError(f"{model}: nothing can be taken from one layer a stack and so few heads and neurons.")
    asks = asks_rows(unit_group("heads", 0.5, score))
    about = {
        "model": model,
        "hash": find_artefact(model).hash,
        "data_hash": pairs.fingerprint(),
        "engine": engine,
        "threads": threads,
        "repeats": repeats,
        "score": score,
        "rows": rows,
        "seed": checked.seed,
        "task": checked.task.model_dump(mode="json", exclude={"data"}),
        "max_new_tokens": checked.evaluation.max_new_tokens,
        "calibration": calibration_of(checked).model_dump() if asks else None,
        "calibration_hash": load_split(checked, "train").fingerprint() if asks else None,
        "processor": environment("cpu")["processor"],  # milliseconds of two machines do not compare
    }
    mine = {name: value for name, value in about.items() if name != "model" or about["hash"] is None}
    claim_search(folder, mine, {LATENCY: latency_ms}, trials=trials)
    total = len(cells) + 3  # times of shapes, the dense loss, times of the cheapest
    tell = on_cell or (lambda done, all_, name: None)
    with lock_folder(folder, wait=True):  # of several processes one measures; the trials are shared
        tell(0, total, "times of shapes")
        timer = ShapeTimer(
            folder, path, checked, pairs, engine=engine, threads=threads, repeats=repeats, should_stop=should_stop
        )
        times = timer.times(to_time(dense, allowed))
        if times[dense] <= latency_ms:
            raise SecateurError(
                f"latency_ms: the dense model takes {times[dense]:.3g} ms, and {latency_ms:g} are asked for. Ask for "
                "less."
            )
        clock = Clock.fit(dense, times)
        losses = shape_losses(
            folder, path, checked, dense, cells, score, pairs.head(rows), device, tell, should_stop=should_stop
        )
        rises = {
            axis: {count: losses[f"{axis}-{count}"] - losses["dense"] for at, count in cells if at == axis}
            for axis in AXES
        }
        tell(total - 1, total, "times of the cheapest shapes")
        found = _fast_enough(timer, dense, rises, clock, latency_ms)
        taken = timer.times((dense, *(each.shape for each in found[: 2 * trials + 1])))
    kept = [each for each in found if taken.get(each.shape, latency_ms + 1) <= latency_ms][: max(1, trials)]
    facts: dict[str, Any] = {
        "format": FORMAT,
        "version": 1,
        **about,
        "latency_ms": latency_ms,
        "new_tokens": timer.new_tokens,
        "dense": dense.name,
        "dense_ms": times[dense],
        "dense_loss": losses["dense"],
        "times": {shape.name: taken for shape, taken in times.items()},
        "clock": {"coefficients": clock.coefficients, "largest_relative_error": clock.error},
        "rises": rises,
        "candidates": [
            {"shape": each.shape.name, "ms": each.share * times[dense], "rise": each.rise} for each in found
        ],
        "trials": None,
    }
    chosen = kept[0]
    if trials:
        short = ShortRuns(folder, len(kept), device, ray_threads, on_trial, should_stop)
        facts["trials"] = _try(short, kept, dense, checked, path, score, trial_epochs, latency_ms)
        chosen = kept[facts["trials"]["best"]]
    facts |= {"shape": chosen.shape.name, "ms": taken[chosen.shape], "rise": chosen.rise}
    facts["sparsities"] = sparsities(chosen.shape, dense)
    facts["reasons"] = {
        axis: f"{getattr(dense, axis)} {WORDS[axis]} become {getattr(chosen.shape, axis)}"
        for axis in facts["sparsities"]
    }
    export = {"ctranslate2": "ctranslate2", "onnx": "onnx"}.get(ENGINES[engine][0])
    final = make_recipe(checked, path, chosen.shape, dense, score, retraining_of(checked, epochs))
    if export:
        shipped = Stage(name="ship", export=Export.model_validate({"to": export, "int8": ENGINES[engine][1]}))
        final = final.model_copy(update={"stages": (*final.stages, shipped)})
    final = with_evaluation(final, checked)
    write_text(folder / RECIPE, _header(facts) + with_reasons(final, list(facts["reasons"].values())))
    write_json(folder / SEARCH, facts)
    return facts


def make_recipe(base: Recipe, model: str, shape: Shape, dense: Shape, score: str, train: Train) -> Recipe:
    """Write a shape as a recipe: prune whole units, cut them out, retrain with the dense model as the teacher.

    Args:
        base: says task, evaluation and calibration.
        model: the dense model.
        shape: what it becomes.
        dense: what it is.
        score: of heads and neurons.
        train: the retraining.

    Returns:
        The recipe; the whole shape is only retrained.
    """
    groups = tuple(unit_group(axis, share, score) for axis, share in sparsities(shape, dense).items())
    prune = Prune(groups=groups, calibration=calibration_of(base))
    smaller = (Stage(name="prune", prune=prune), Stage(name="cut", cut=Cut())) if groups else ()
    retrain = Stage(name="retrain", train=train.model_copy(update={"teacher": "given"}))
    return base.model_copy(update={"model": model, "initialize": "pretrained", "stages": (*smaller, retrain)})


def _allowed(dense: Shape, config: Any, engine: str) -> dict[str, tuple[int, ...]]:
    """List the counts that are searched along each axis: those that the engine can hold."""

    def holds(axis: str, count: int) -> bool:
        shaped = shaped_config(config, dense.with_(axis, count))
        return ENGINES[engine][0] != "ctranslate2" or not cannot_hold(shaped)

    counts = {axis: levels(getattr(dense, axis), axis) for axis in AXES}
    return {axis: tuple(count for count in found if holds(axis, count)) for axis, found in counts.items()}


def _fast_enough(
    timer: ShapeTimer, dense: Shape, rises: Mapping[str, Mapping[int, float]], clock: Clock, latency_ms: float
) -> list[Candidate]:
    """Choose shapes until the first of them is measured to be fast enough."""
    dense_ms = timer.times((dense,))[dense]
    tried: dict[Shape, float] = {}
    full = share = latency_ms / dense_ms
    found = candidates(dense, rises, clock, full)
    for _ in range(ROUNDS):
        taken = timer.times((dense, found[0].shape))[found[0].shape]
        if taken <= latency_ms:
            return found
        tried[found[0].shape] = taken
        share *= latency_ms / taken  # what is slower than predicted is asked to be faster by as much
        # One time that other work made long may ask for more than there is: then any that was not tried will do.
        slow = {shape: ms / dense_ms for shape, ms in tried.items()}
        found = _untried(dense, rises, clock, share, slow) or _untried(dense, rises, clock, full, slow)
        if not found:
            break
    timer.forget(tried)
    told = ", ".join(f"{shape.name} {taken:.3g} ms" for shape, taken in tried.items())
    raise SecateurError(
        f"latency_ms: shapes that should have taken {latency_ms:g} ms took longer: {told}. Is other work running on "
        "this machine? The same command times them again."
    )


def _untried(
    dense: Shape, rises: Mapping[str, Mapping[int, float]], clock: Clock, share: float, slow: Mapping[Shape, float]
) -> list[Candidate]:
    """Choose once more, some shapes' times known; none where no shape seems fast enough."""
    with suppress(SecateurError):
        return candidates(dense, rises, lambda shape: slow[shape] if shape in slow else clock(shape), share)
    return []


def _try(
    short: ShortRuns,
    kept: Sequence[Candidate],
    dense: Shape,
    base: Recipe,
    path: str,
    score: str,
    epochs: float,
    latency_ms: float,
) -> dict[str, Any]:
    """Retrain each candidate for a short while and find the best."""
    train = retraining_of(base, epochs)

    def recipe_for(index: int) -> Recipe:
        return make_recipe(base, path, kept[index].shape, dense, score, train)

    run_trial = short.trial(recipe_for)
    done = pick(
        {index: each.shape.name for index, each in enumerate(kept)},
        lambda index: run_trial(index, index),
        folder=short.folder,
        higher_is_better=direction_of(base),
        about=trials_about(base, train, find_artefact(path).hash) | {"latency_ms": latency_ms},
        ray=short.ray,
        should_stop=short.should_stop,
    )
    best = int(done.best.params["candidate"])
    return {
        "num_trials": len(done.trials),
        "best": best,
        "value": done.best.value,
        "start": next((trial.value for trial in done.trials if trial.params["candidate"] == 0), None),
        "epochs": epochs,
        "metric": short.metric(best),
        "failed": list(done.failed),
        "values": {kept[int(trial.params["candidate"])].shape.name: trial.value for trial in done.trials},
    }


def _header(facts: Mapping[str, Any]) -> str:
    lines = [
        f"Made by secateur search for {facts['latency_ms']:g} ms a text: {facts['engine']}, {facts['threads']} "
        f"threads, {facts['new_tokens']} tokens written.",
        f"The shape {facts['shape']} took {facts['ms']:.3g} ms with random weights, the dense {facts['dense']} "
        f"{facts['dense_ms']:.3g}. Before retraining the loss rises by {facts['rise']:.4f} from "
        f"{facts['dense_loss']:.4f}, if the rises add up.",
    ]
    if trials := facts["trials"]:
        lines.append(f"{trials['num_trials']} runs of {trials['epochs']:g} epochs chose it: {trials['value']:g}.")
        lines += told_failures(trials)
    return "".join(f"# {line}\n" for line in lines)


__all__ = ["LatencyScore", "make_recipe", "search_latency"]
