"""Lottery tickets: a prune stage that goes by rounds is written out as plain stages, two for each round.

`NAME-1` prunes, `NAME-1-train` gives what is left its first weights again and trains it, `NAME-2` prunes further, and
so on. What a run keeps, shows and goes on with are these stages; the rounds are in no recipe that is written out.

Frankle and Carbin 2019, arXiv:1803.03635, sec. 2 ("iterative pruning"); how much goes by round is NNI 2.x's rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from secateur.recipe.schema import Recipe, Stage, Train
from secateur.recipe.unchecked import Finding
from secateur.recipe.yaml_tree import Path

LOTTERY = "lottery_ticket"
MAX_ROUNDS = 99  # as the schema bounds total_iteration
MAX_NAME = 80  # as the schema bounds a stage's name
_RATIOS = ("sparse_ratio", "min_sparse_ratio", "max_sparse_ratio")


def names_of(stage: Mapping[str, Any]) -> list[str]:
    """List what a stage is called: its own name, and those of the stages that its rounds become.

    Args:
        stage: as plain values; anything may be missing or of the wrong type.

    Returns:
        The names in the order of the stages; empty for a stage without one.

    >>> pruner = {"schedule": "lottery_ticket", "total_iteration": 2}
    >>> names_of({"name": "a", "prune": {"nni_config_list": [], "nni_pruner": pruner}})
    ['a', 'a-1', 'a-1-train', 'a-2', 'a-2-train']
    """
    name = stage.get("name")
    if not isinstance(name, str):
        return []
    rounds = range(1, _num_rounds(stage) + 1)
    return [name, *(called for index in rounds for called in _called(name, index))]


def _called(name: str, index: int) -> tuple[str, str]:
    return f"{name}-{index}", f"{name}-{index}-train"


def _num_rounds(stage: Mapping[str, Any]) -> int:
    prune = stage.get("prune")
    pruner = prune.get("nni_pruner") if isinstance(prune, Mapping) else None
    if not isinstance(prune, Mapping) or not isinstance(pruner, Mapping) or pruner.get("schedule") != LOTTERY:
        return 0
    number = pruner.get("total_iteration")
    if not isinstance(number, int) or isinstance(number, bool) or prune.get("nni_config_list") is None:
        return 0
    return number if 1 <= number <= MAX_ROUNDS else 0


def findings(stages: Sequence[Any]) -> Iterator[Finding]:
    """Check that the stages that rounds become have names of their own.

    Args:
        stages: as plain values.

    Yields:
        The path and the message of each fault.
    """
    called = [names_of(stage) if isinstance(stage, Mapping) else [] for stage in stages]
    for index, mine in enumerate(called):
        if len(mine) < 2:
            continue
        path: Path = ("stages", index, "name")
        if len(mine[-1]) > MAX_NAME:
            yield path, f'is too long: its last round is called "{mine[-1]}", and {MAX_NAME} letters are the most.'
        others = {name: place for place, names in enumerate(called) if place != index for name in names}
        if twice := [name for name in mine[1:] if name in others]:
            told = f'a round of it is called "{twice[0]}", and so is stage {others[twice[0]]}. Rename one of the two.'
            yield path, told


def write_out(recipe: Recipe) -> Recipe:
    """Write the stages that go by rounds out as plain stages.

    A round ends at 1 - (1 - sparsity)^(i / N) of the original elements. Its training starts from the weights that the
    model had before the first round, or at the stage that `rewind` names. A later stage that names the whole stage as
    its teacher, or goes back to it, means the last of its rounds.

    Args:
        recipe: a valid one.

    Returns:
        A recipe without rounds; the same one if it has none.
    """
    stages: list[Stage] = []
    last: dict[str, str] = {}
    before = "given"
    for stage in recipe.stages:
        plain = _renamed(stage, last)
        by_rounds = plain.prune is not None and plain.prune.nni_pruner.schedule == LOTTERY
        stages += _rounds(plain, before) if by_rounds else [plain]
        if by_rounds:
            last[stage.name] = stages[-1].name
        if stage.changes_model:
            before = stages[-1].name
    return recipe.model_copy(update={"stages": tuple(stages)}) if last else recipe


def _renamed(stage: Stage, last: Mapping[str, str]) -> Stage:
    """Let a stage name the last round of what it names."""

    def renamed(train: Train | None) -> Train | None:
        changes = {
            key: last[named]
            for key in ("teacher", "rewind")
            if train is not None and (named := getattr(train, key)) in last
        }
        return train.model_copy(update=changes) if train is not None and changes else train

    prune = stage.prune and stage.prune.model_copy(update={"train": renamed(stage.prune.train)})
    return stage.model_copy(update={"train": renamed(stage.train), "prune": prune})


def _rounds(stage: Stage, before: str) -> list[Stage]:
    prune = stage.prune
    assert prune is not None and prune.train is not None and prune.nni_config_list is not None  # nni_rules.py
    pruner, found = prune.nni_pruner, list[Stage]()
    plain = pruner.model_copy(update={"schedule": None, "total_iteration": None, "reset_weight": None})
    rewind = None if pruner.reset_weight is False else prune.train.rewind or before
    train = prune.train.model_copy(update={"rewind": rewind})
    number = pruner.total_iteration or 1
    for index in range(1, number + 1):
        entries = tuple(_entry(entry, index / number) for entry in prune.nni_config_list)
        update = {"train": None, "nni_pruner": plain, "nni_config_list": entries}
        pruning, training = _called(stage.name, index)
        found.append(Stage(name=pruning, prune=prune.model_copy(update=update)))
        found.append(Stage(name=training, train=train))
    return found


def _entry(entry: Mapping[str, Any], share: float) -> dict[str, Any]:
    """Ask for what is gone after a share of the rounds; bounds move along, or the first rounds could not meet them."""
    found: dict[str, Any] = {key: _after(value, share) if key in _RATIOS else value for key, value in entry.items()}
    if found.get("target_settings"):
        found["target_settings"] = {name: _entry(part, share) for name, part in found["target_settings"].items()}
    return found


def _after(ratio: float | None, share: float) -> float | None:
    """Tell what is gone after a share of the rounds; all of it after the last, to the bit.

    >>> _after(0.75, 0.5), _after(0.75, 1.0)
    (0.5, 0.75)
    """
    return ratio if ratio is None or share == 1.0 else 1.0 - (1.0 - ratio) ** share


__all__ = ["LOTTERY", "findings", "names_of", "write_out"]
