"""What the kind of a task asks of the rest of a recipe: what seq2seq must give, and what classification cannot use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from secateur.recipe import columns, names
from secateur.recipe.schema import Evaluate, Evaluation, Part, Task, Train
from secateur.recipe.unchecked import Finding, listing
from secateur.recipe.yaml_tree import Path

Values = Mapping[str, Any]

_CLASSIFICATION = "classification"
_ONE_CLASS = "classification names one class and writes no text"
_IDLE: dict[type[Part], tuple[str, ...]] = {  # keys that say how texts are written
    Task: ("max_target_tokens",),
    Evaluation: ("max_new_tokens", "num_beams"),
    Evaluate: ("max_new_tokens", "num_beams"),
    Train: ("pseudo_labels", "denoising"),
}
_NEEDED = {  # what seq2seq cannot do without
    ("task", "max_target_tokens"): "the longest target in tokens",
    ("evaluation", "max_new_tokens"): "the longest output in tokens",
}


def findings(
    task: Values, evaluation: Values, trainings: Sequence[tuple[Values, Path]], stages: Sequence[Values]
) -> Iterator[Finding]:
    """Check what goes with the task's kind.

    Args:
        task: what stands under `task`, as plain values; anything may be missing or of the wrong type.
        evaluation: what stands under `evaluation`.
        trainings: every training of the recipe, and where it stands.
        stages: every stage.

    Yields:
        The path and the message of each fault.

    >>> [path for path, _ in findings({"kind": "classification", "max_target_tokens": 9}, {}, [], [])]
    [('task', 'max_target_tokens')]
    """
    kind = task.get("kind", Task.model_fields["kind"].default)
    if kind not in names.words(names.TaskKind):
        return
    yield from columns.findings(kind, task)
    measured: list[tuple[Values, Path, type[Part]]] = [(evaluation, ("evaluation",), Evaluation)]
    for index, stage in enumerate(stages):
        if isinstance(stage.get("evaluate"), Mapping):
            measured.append((stage["evaluate"], ("stages", index, "evaluate"), Evaluate))
    for values, path, _ in measured:
        yield from _metrics(kind, values, path)
    if kind != _CLASSIFICATION:
        yield from _missing({"task": task, "evaluation": evaluation})
        return
    yield from _idle(task, ("task",), Task)
    for values, path, part in measured:
        yield from _idle(values, path, part)
    for values, path in trainings:
        yield from _idle(values, path, Train)
    for index, stage in enumerate(stages):
        if stage.get("export") is not None:
            told = "cannot be done yet: the engines here write texts. Remove the stage; pack makes a small file."
            yield ("stages", index, "export"), f"of a classification model {told}"


def _missing(parts: Mapping[str, Values]) -> Iterator[Finding]:
    for (part, key), what in _NEEDED.items():
        if parts[part] and parts[part].get(key) is None:  # a part that is missing whole is told by the schema
            yield (part, key), f"is missing: {what}. seq2seq needs it."


def _idle(values: Values, path: Path, part: type[Part]) -> Iterator[Finding]:
    for key in _IDLE[part]:
        default = part.model_fields[key].default
        if values.get(key, default) != default:
            yield (*path, key), f"cannot act: {_ONE_CLASS}. Remove it."


def _metrics(kind: str, values: Values, path: Path) -> Iterator[Finding]:
    """Metrics of labels and metrics of texts exclude each other."""
    of_labels = kind == _CLASSIFICATION
    known = names.words(names.Metric)
    fitting = [metric for metric in known if (metric in names.LABEL_METRICS) == of_labels]
    for index, metric in enumerate(listing(values.get("metrics"))):
        if metric in known and metric not in fitting:
            about = "texts that were written" if of_labels else "classes"
            yield (*path, "metrics", index), f"{metric} is about {about}. For {kind} there are: {', '.join(fitting)}."


__all__ = ["findings"]
