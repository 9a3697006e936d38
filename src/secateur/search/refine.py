"""Refine sparsities by short real runs, or pick among shapes by them; see `search.trials` for how they are done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.errors import SecateurError
from secateur.search.budget import shifted
from secateur.search.ray_trials import OnRay
from secateur.search.trials import Done, do_trials

REACH = 1.0  # the most that a trial moves a group's logit
CANDIDATE = "candidate"


@dataclass(frozen=True)
class Refined:
    """What the trials found.

    Attributes:
        sparsities: of the best trial.
        value: what its run measured.
        number: which trial it was.
        num_trials: how many are done.
        start: what the start measured, or none if its trial failed.
        failed: of each trial that failed, why.
    """

    sparsities: dict[str, float]
    value: float
    number: int
    num_trials: int
    start: float | None
    failed: tuple[str, ...] = ()


def refine(
    start: Mapping[str, float],
    sizes: Mapping[str, int],
    run_trial: Callable[[int, Mapping[str, float]], float],
    *,
    folder: Path,
    num_trials: int,
    higher_is_better: bool,
    seed: int,
    parts: Sequence[Sequence[str]] | None = None,
    about: Mapping[str, Any] | None = None,
    ray: OnRay | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Refined:
    """Try sparsities near the start, all of which remove as much.

    Args:
        start: group -> sparsity; the first trial.
        sizes: group -> number of elements.
        run_trial: (number, sparsities) -> figure of a short real run; a SecateurError marks the trial as failed.
        folder: where the journal stands; processes that share it share the trials, and a later call goes on.
        num_trials: how many are to be done in all, at least 1.
        higher_is_better: the figure's direction.
        seed: of the proposals.
        parts: groups that remove as much among themselves, every group in one of them; None: all groups do.
        about: what else makes trials comparable, JSON-ready; a journal of others is refused.
        ray: lets Ray Tune do the trials; None: this process does them one after the other.
        should_stop: asked while other processes do the last trials.

    Returns:
        The best.

    Raises:
        SecateurError: a package is not installed, the journal is of another search, or every trial failed.
    """
    shared = [[name for name in part if name in start] for part in parts or [list(start)]]
    free = [name for part in shared if len(part) > 1 for name in part]  # a group alone must lose what it loses
    if not free:
        raise SecateurError("trials: every part is one group, which cannot lose more or less. Leave them out.")

    def propose(trial: Any) -> None:
        for name in free:
            trial.suggest_float(name, -REACH, REACH)

    def sparsities(offsets: Mapping[str, float]) -> dict[str, float]:
        if not any(offsets.values()):
            return dict(start)
        moved = dict(start)
        for part in shared:
            if len(part) > 1:
                moved |= shifted({name: start[name] for name in part}, sizes, offsets)
        return moved

    divided = {} if parts is None else {"parts": [list(part) for part in parts]}
    found = do_trials(
        propose,
        lambda number, offsets: run_trial(number, sparsities(offsets)),
        first=[dict.fromkeys(free, 0.0)],
        facts={"start": dict(start), "sizes": dict(sizes), **divided, "about": dict(about or {})},
        folder=folder,
        num_trials=num_trials,
        higher_is_better=higher_is_better,
        seed=seed,
        ray=ray,
        should_stop=should_stop,
    )
    first = next((trial.value for trial in found.trials if not any(trial.params.values())), None)
    best = found.best
    return Refined(sparsities(best.params), best.value, best.number, len(found.trials), first, found.failed)


def pick(
    labels: Mapping[int, str],
    run_trial: Callable[[int], float],
    *,
    folder: Path,
    higher_is_better: bool,
    about: Mapping[str, Any] | None = None,
    ray: OnRay | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Done:
    """Try each of some candidates once.

    Args:
        labels: number -> what the candidate is, from 0 on without gaps; a later call may have more of them, or fewer.
        run_trial: candidate -> figure of a short real run; a SecateurError marks the trial as failed.
        folder: as for `refine`.
        higher_is_better: the figure's direction.
        about: as for `refine`.
        ray: as for `refine`.
        should_stop: as for `refine`.

    Returns:
        The trials of these candidates; `params["candidate"]` of each says which it tried.

    Raises:
        SecateurError: as for `refine`.
    """
    return do_trials(
        lambda trial: trial.suggest_int(CANDIDATE, 0, len(labels) - 1),
        lambda number, params: run_trial(int(params[CANDIDATE])),
        first=[{CANDIDATE: number} for number in labels],
        facts={"about": dict(about or {})},
        folder=folder,
        num_trials=len(labels),
        higher_is_better=higher_is_better,
        seed=0,
        counts=lambda params: params.get(CANDIDATE) in labels,
        ray=ray,
        should_stop=should_stop,
    )


__all__ = ["Refined", "pick", "refine"]
