"""Runs, models and prediction files side by side, on the same rows: `secateur compare`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from secateur.artefact import Artefact, find_artefact
from secateur.artifacts.manifest import STAGE, is_run, read_manifest
from secateur.errors import CheckpointError, SecateurError
from secateur.evaluation.compare import Difference, check_same_rows, compare_samples
from secateur.evaluation.evaluate import read_predictions
from secateur.evaluation.figures import Figure, as_written, resample
from secateur.evaluation.generate import Prediction
from secateur.evaluation.metrics import METRICS, UserMetric, check_metrics, settings_of
from secateur.fields import load_split
from secateur.files import read_json
from secateur.measure import recipe_of
from secateur.prediction import write_outputs
from secateur.recipe.load import load_recipe
from secateur.recipe.open import RECIPE, open_recipe
from secateur.recipe.schema import Recipe
from secateur.tasks.pairs import Pairs, without_prefix

Value = TypeVar("Value")

PREDICTIONS = "predictions.jsonl"  # what a stage's folder calls its outputs
RESAMPLES = 1000
_FILES = (".jsonl", ".jsonl.gz")  # what ends so is a file of predictions, also where it is missing
_GENERATION = ("max_new_tokens", "num_beams")


@dataclass(frozen=True)
class Compared:
    """One of the things that were compared.

    Args:
        model: what the caller called it.
        stage: the stage of a run whose outputs were read; None for a file, and for a model that wrote anew.
        hash: of the weight files that wrote; None where that is not known.
        evaluation: lengths and beams that it wrote with; empty where that is not known.
        figures: name -> figure.
        differences: name -> difference from the first; None for the first itself.
    """

    model: str
    stage: str | None
    hash: str | None
    evaluation: dict[str, Any]
    figures: dict[str, Figure]
    differences: dict[str, Difference] | None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Args:
        split: None where only prediction files were compared.
        rows: how many.
        seed: of the resampling.
        settings: metric -> what else decides its figures.
        entries: in the order given; the others are compared with the first.
    """

    split: str | None
    rows: int
    seed: int
    settings: dict[str, str]
    entries: tuple[Compared, ...]

    @property
    def notes(self) -> list[str]:
        """What else differs besides the model, and may be the reason of a difference."""
        first = self.entries[0]
        return [
            f"{key} differs: {first.evaluation[key]} in {first.model}, {entry.evaluation[key]} in {entry.model}."
            for entry in self.entries[1:]
            for key in _GENERATION
            if key in first.evaluation and key in entry.evaluation and first.evaluation[key] != entry.evaluation[key]
        ]

    def as_json(self) -> dict[str, Any]:
        """The comparison under the names of the manifest."""
        return {
            "split": self.split,
            "rows": self.rows,
            "seed": self.seed,
            "resamples": RESAMPLES,
            "settings": self.settings,
            "notes": self.notes,
            "models": [
                {
                    "model": entry.model,
                    "stage": entry.stage,
                    "hash": entry.hash,
                    "evaluation": entry.evaluation,
                    "metrics": {name: asdict(figure) for name, figure in entry.figures.items()},
                    "differences": entry.differences
                    and {name: asdict(difference) for name, difference in entry.differences.items()},
                }
                for entry in self.entries
            ],
        }


@dataclass(frozen=True)
class _Outputs:
    """One of the things to compare.

    Args:
        model: what the caller called it.
        pairs: its rows; sources as its model reads them.
        predictions: what it wrote; None for a model that is still to write.
        prefix: what its sources begin with; None where that is not known.
        seed: of the recipe it was made by; None where there is none.
        metrics: what it was, or would be, measured with.
        evaluation: lengths and beams; empty where they are not known.
        stage: of a run.
        hash: of the weights.
        artefact: what is to write, where nothing is written yet.
        recipe: by which a model is to write.
    """

    model: str
    pairs: Pairs
    predictions: list[Prediction] | None
    prefix: str | None = None
    seed: int | None = None
    metrics: tuple[str, ...] = ()
    evaluation: dict[str, Any] = field(default_factory=dict)
    stage: str | None = None
    hash: str | None = None
    artefact: Artefact | None = None
    recipe: Recipe | None = None

    def without_prefix(self, usual: str) -> Pairs:
        """Its rows without its prefix, or without the usual one where its own is not known."""
        own = usual if self.prefix is None else self.prefix
        return Pairs(tuple(without_prefix(source, own) for source in self.pairs.sources), self.pairs.references)


def compare(
    models: Sequence[str | Path],
    recipe: Recipe | str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    split: str | None = None,
    metrics: Sequence[str | UserMetric] = (),
    device: str = "auto",
    on_batch: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Compare runs, models and prediction files with the first of them, row by row, by a paired bootstrap.

    Of a run the outputs are read that its last stage on the split left behind; any other model writes anew. All must
    have the same sources (prefixes aside) and references, in the same order.

    Args:
        models: two or more of: a run folder, a stage folder, a predictions.jsonl, a Hugging Face folder, or a hub id.
        recipe: says task and data of models that belong to no run, and metrics and seed; by default those of the first
            run.
        overrides: `a.b=c`, as `--set` takes them: for the recipe, or for those of the models that write anew.
        split: train, validation, test, or a split's own name; by default that of the first run's last stage, or the
            recipe's.
        metrics: names, or functions of your own, instead of the recipe's or the run's.
        device: auto, cpu, cuda or mps; for models that write anew.
        on_batch: is told (rows done, rows in all).

    Returns:
        Figures of each with 95 % intervals; of all but the first also the differences, with intervals and verdicts.

    Raises:
        DataError: the rows are not the same; the first that differs is named.
        RecipeError: the recipe is wrong.
        SecateurError: fewer than two models, no such model, stage, split or metric.
    """
    names = [str(model) for model in models]
    if len(names) < 2:
        raise SecateurError("compare: needs two or more runs, models or prediction files.")
    checked = open_recipe(recipe, overrides) if recipe is not None else None
    wanted = split or _usual_split(names, checked)
    outputs = [_outputs(name, checked, overrides, wanted) for name in names]
    if overrides and checked is None and all(item.recipe is None for item in outputs):
        raise SecateurError("--set: cannot act: all outputs are stored, and none is made anew. Give a --recipe too.")
    scored = metrics or (checked.evaluation.metrics if checked else _first(item.metrics for item in outputs)) or ()
    if not scored:
        raise SecateurError("metrics: prediction files do not say which. Give --metric NAME (or several), or --recipe.")
    check_metrics(scored)
    seed = (checked.seed if checked else _first(item.seed for item in outputs)) or 0
    usual = _first(item.prefix for item in outputs) or (checked.task.prefix if checked else "")
    rows = [item.without_prefix(usual) for item in outputs]
    check_same_rows(names, rows)  # before anything is written: rows that do not fit shall cost no hours
    samples = []
    for item, pairs in zip(outputs, rows, strict=True):
        written = as_written(_predictions(item, device, on_batch), pairs.references, pairs.sources)
        samples.append(resample(scored, written, seed=seed, resamples=RESAMPLES))
    entries = tuple(
        Compared(
            item.model,
            item.stage,
            item.hash,
            item.evaluation,
            figures={name: sample.figure() for name, sample in found.items()},
            differences=compare_samples(samples[0], found) if index else None,
        )
        for index, (item, found) in enumerate(zip(outputs, samples, strict=True))
    )
    return Comparison(wanted, len(rows[0]), seed, settings_of(scored), entries)


def _first(values: Iterable[Value | None]) -> Value | None:
    """The first that says something."""
    return next((value for value in values if value), None)


def _is_file(name: str) -> bool:
    return name.endswith(_FILES) or Path(name).expanduser().is_file()


def _stages(name: str) -> list[tuple[Path, dict[str, Any]]]:
    """The finished stages of a run, or the one of a stage folder, with their folders; none for anything else."""
    folder = Path(name).expanduser()
    if is_run(folder):
        return [(folder / entry["folder"], entry) for entry in read_manifest(folder)["stages"]]
    entry = read_json(folder / STAGE) if (folder / STAGE).is_file() else {}
    return [(folder, entry)] if "split" in entry else []  # what `secateur prune` wrote is measured nowhere yet


def _usual_split(names: Sequence[str], recipe: Recipe | None) -> str | None:
    """The split that the first run was measured on last, or else the recipe's; none is needed for files alone."""
    models = [name for name in names if not _is_file(name)]
    stages = next((stages for name in models if (stages := _stages(name))), None)
    if stages:
        return stages[-1][1]["split"]
    if recipe is None and models:
        recipe = open_recipe(recipe_of(models[0]))
    return recipe.evaluation.split if recipe else None


def _outputs(name: str, recipe: Recipe | None, overrides: Sequence[str], split: str | None) -> _Outputs:
    if _is_file(name):
        pairs, predictions = read_predictions(Path(name).expanduser())
        return _Outputs(name, pairs, predictions)
    if is_run(Path(name).expanduser()) or _stages(name):
        return _stored_outputs(name, split)
    return _model_outputs(name, recipe or open_recipe(recipe_of(name), overrides), split)


def _stored_outputs(name: str, split: str | None) -> _Outputs:
    """Read what the last stage of a run on a split, or a stage, wrote."""
    stages = _stages(name)
    fitting = [(place, entry) for place, entry in stages if entry["split"] == split]
    if not fitting:
        there = ", ".join(dict.fromkeys(entry["split"] for _, entry in stages))
        told = f"Its stages were measured on: {there}." if there else "No stage of it is done yet."
        raise CheckpointError(f"{name}: no stage was measured on the split {split!r}. {told} Choose with --split.")
    place, entry = fitting[-1]
    pairs, predictions = read_predictions(place / PREDICTIONS)
    made_by = load_recipe(recipe_of(str(place)) / RECIPE)
    settings = entry["evaluation"]
    return _Outputs(
        name,
        pairs,
        predictions,
        prefix=made_by.task.prefix,
        seed=made_by.seed,
        metrics=tuple(metric for metric in settings["settings"] if metric in METRICS),  # a user's functions are gone
        evaluation={key: settings[key] for key in _GENERATION if made_by.task.kind == "seq2seq"},
        stage=entry["name"],
        hash=entry["hash"],
    )


def _model_outputs(name: str, recipe: Recipe, split: str | None) -> _Outputs:
    """Read the rows that a model is to write for."""
    found = find_artefact(name)
    settings = recipe.evaluation
    return _Outputs(
        name,
        load_split(recipe, split or settings.split),
        None,
        prefix=recipe.task.prefix,
        seed=recipe.seed,
        metrics=settings.metrics,
        evaluation={key: getattr(settings, key) for key in _GENERATION if recipe.task.kind == "seq2seq"},
        hash=found.hash,
        artefact=found,
        recipe=recipe,
    )


def _predictions(item: _Outputs, device: str, on_batch: Callable[[int, int], None] | None) -> Sequence[Prediction]:
    if item.predictions is not None:
        return item.predictions
    assert item.recipe is not None and item.artefact is not None  # what has neither is never made
    return write_outputs(item.artefact, item.recipe, item.pairs.sources, device=device, on_batch=on_batch)
