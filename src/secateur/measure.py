"""The verbs that look at a model or a recipe and change nothing: plan, inspect, evaluate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from secateur.anatomy.check import meta_model
from secateur.anatomy.inspect import describe
from secateur.anatomy.stored import read_config
from secateur.artefact import find_artefact
from secateur.artifacts.loading import load_model
from secateur.artifacts.manifest import STAGE, environment, is_run, resolve_model
from secateur.errors import DataError, SecateurError
from secateur.evaluation.evaluate import EvalResult, evaluate_model, write_predictions
from secateur.evaluation.metrics import UserMetric
from secateur.fields import evaluation_arguments, evaluation_facts, load_split
from secateur.files import check_writable, read_json
from secateur.planning import Plan, make_plan
from secateur.recipe.open import RECIPE, open_recipe
from secateur.recipe.schema import Evaluate, Recipe
from secateur.run_folder import stage_of
from secateur.tasks.labels import found_labels
from secateur.tasks.pairs import Pairs


def plan(recipe: Recipe | str | Path, *, overrides: Sequence[str] = ()) -> Plan:
    """Tell what a recipe would do, from its model's config.json alone.

    Args:
        recipe: a Recipe, its file, or a run folder.
        overrides: `a.b=c`, as `--set` takes them.

    Returns:
        Per stage what would be removed, the counts after it, steps and memory. Steps are known when the training rows
        can be read from this disk; where they cannot, or a teacher is not there, a note says so.

    Raises:
        RecipeError: the recipe is wrong or does not fit its model, every fault at once.
        CheckpointError: there is no config.json.
        DataError: a classifier's head is to be made, and the training rows that name its classes cannot be read.
    """
    checked = open_recipe(recipe, overrides)
    rows, labels, notes = None, None, _absent_teachers(checked)
    path = checked.task.data.path
    if path == "cmudict" or Path(path).exists():
        try:
            pairs = load_split(checked, "train")
        except DataError as error:  # the plan does not need the data; `run` does
            notes.append(f"task.data: {error}")
        else:
            rows = len(pairs.rows())
            labels = found_labels(pairs) if checked.task.kind == "classification" else None
    elif Path(path).is_absolute():  # as open_recipe makes what is not a hub id
        notes.append(f"task.data.path: {path}: no such file or folder. The run will stop there.")
    else:
        notes.append(f"task.data.path: {path}: is not on this disk, so steps stay open; the run asks the hub for it.")
    found = make_plan(checked, resolve_model(checked.model), train_rows=rows, labels=labels)
    return replace(found, notes=tuple(notes))


def _absent_teachers(recipe: Recipe) -> list[str]:
    """Tell which teachers are neither the recipe's own nor on this disk."""
    known, notes = {"given"}, list[str]()
    for stage in recipe.stages:
        teacher = stage.training.teacher if stage.training else None
        if teacher is not None and teacher not in known and not Path(teacher).exists():
            where = f"stages.{stage.name}.{'' if stage.train else 'prune.'}train.teacher: {teacher}"
            notes.append(
                f"{where}: is neither an earlier stage ({', '.join(sorted(known))}) nor a folder on this disk; the run "
                "asks the hub for it."
            )
        known.add(stage.name)
    return notes


def inspect(
    model: str, *, source_tokens: int = 256, new_tokens: int = 64, weights: bool = True, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Describe a model: every parameter with its role and shape, ties, sparsity, costs, counts.

    Args:
        model: a run folder, a stage folder, a Hugging Face folder, or a hub id.
        source_tokens: length of the source that the costs are for.
        new_tokens: length of the output that the costs are for.
        weights: False reads config.json only, and leaves sparsity open.
        trust_remote_code: whether code that comes with the model may run.

    Returns:
        See `secateur.anatomy.inspect.describe`, whose counts are of the plain folder against itself; of a run or a
        stage `run_counts` too, which are against the run's dense model.

    Raises:
        AnatomyError: the model is not what its family says.
        CheckpointError: there is no such model.
    """
    path = resolve_model(model)
    config, raw = read_config(path, trust_remote_code=trust_remote_code)
    live = load_model(path, trust_remote_code=trust_remote_code) if weights else meta_model(config, raw)
    found = describe(live, source_tokens=source_tokens, new_tokens=new_tokens)
    if weights and (stage := stage_of(model)) and (stage / STAGE).exists():
        found["run_counts"] = read_json(stage / STAGE)["counts"]
    return found


@dataclass(frozen=True)
class Measurement:
    """What `evaluate` found: the figures of one artefact (named by the hash of its weights) on one split."""

    model: str
    hash: str | None
    split: str
    pairs: Pairs
    result: EvalResult
    environment: dict[str, Any]
    settings: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The measurement under the names of the manifest."""
        return {
            "model": self.model,
            "hash": self.hash,
            "split": self.split,
            "rows": len(self.pairs),
            "data_hash": self.pairs.fingerprint(),
            "metrics": {name: asdict(figure) for name, figure in self.result.figures.items()},
            "evaluation": self.settings | {"seconds": self.result.seconds},
            "collapse": self.result.collapse and asdict(self.result.collapse),
            "environment": self.environment,
        }


def evaluate(
    model: str,
    recipe: Recipe | str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    rows: Iterable[Mapping[str, Any]] | None = None,
    metrics: Sequence[UserMetric] = (),
    device: str = "auto",
    predictions: str | Path | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    split: str | None = None,
) -> Measurement:
    """Measure the quality of a checkpoint on a recipe's task.

    Args:
        model: a run folder (its final model), a stage folder, a Hugging Face folder, an export (quality is measured
            through its engine), a packed file, or a hub id.
        recipe: says task, data and evaluation; by default the recipe of the run that `model` belongs to.
        overrides: `a.b=c`, as `--set` takes them.
        rows: rows of your own instead of the recipe's data.
        metrics: functions of your own, beside the recipe's metrics.
        device: auto, cpu, cuda or mps.
        predictions: a file for one JSON object a row.
        on_batch: is told (rows done, rows in all).
        split: train, validation, test, or a split's own name; by default the recipe's.

    Returns:
        Figures with 95 % intervals, outputs, signs of collapse.

    Raises:
        RecipeError: the recipe is wrong.
        SecateurError: no recipe, model or data there, or they do not fit each other.
    """
    artefact = find_artefact(model)
    if predictions is not None:
        check_writable(predictions)
    checked = open_recipe(recipe if recipe is not None else recipe_of(model), overrides)
    settings = checked.evaluation
    wanted = split or settings.split
    pairs = load_split(checked, wanted, rows)
    chosen = artefact.device(device)
    with artefact.opened(trust_remote_code=checked.trust_remote_code) as (writer, tokenizer):
        result = evaluate_model(
            writer,
            tokenizer,
            pairs,
            metrics=[*settings.metrics, *metrics],
            **evaluation_arguments(checked, settings),
            device=chosen,
            on_batch=on_batch,
        )
    if predictions is not None:
        write_predictions(predictions, pairs, result.predictions)
    kept = evaluation_facts(checked, settings)
    return Measurement(model, artefact.hash, wanted, pairs, result, environment(chosen), kept)


def recipe_of(model: str) -> Path:
    """Find the run that a model folder belongs to.

    Args:
        model: a run folder, a stage folder, or the model folder of either.

    Returns:
        The run folder, which holds the recipe.

    Raises:
        SecateurError: it belongs to none.
    """
    folder = Path(model).expanduser().resolve()
    for place in (folder, *list(folder.parents)[:2]):
        if is_run(place) and (place / RECIPE).exists():
            return place
    raise SecateurError(f"{model}: belongs to no run, so its task is not known. Give a recipe with --recipe FILE.")


def find_recipe(model: str, recipe: Recipe | str | Path | None, overrides: Sequence[str]) -> Recipe | None:
    """Open the recipe that is given, or that of the run that a model belongs to.

    Args:
        model: as for `recipe_of`.
        recipe: what the caller gave, if anything.
        overrides: `a.b=c`, as `--set` takes them.

    Returns:
        The recipe; None where none is given and the model belongs to no run.

    Raises:
        RecipeError: the recipe is wrong.
        SecateurError: something is to be changed in a recipe, and there is none.
    """
    if recipe is None:
        with suppress(SecateurError):
            recipe = recipe_of(model)
    if recipe is None and overrides:
        raise SecateurError(f"--set {overrides[0]}: no recipe is known that it could change. Give one with --recipe.")
    return None if recipe is None else open_recipe(recipe, overrides)


__all__ = ["Evaluate", "Measurement", "evaluate", "find_recipe", "inspect", "plan", "recipe_of"]
