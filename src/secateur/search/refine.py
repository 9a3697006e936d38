"""Refine sparsities by short real runs: Optuna proposes, a journal on disk remembers, and processes may share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.errors import SecateurError
from secateur.search.budget import shifted

JOURNAL = "trials.log"
STUDY = "secateur"
REACH = 1.0  # the most that a trial moves a group's logit


@dataclass(frozen=True)
class Refined:
    """What the trials found.

    Attributes:
        sparsities: of the best trial.
        value: what its run measured.
        number: which trial it was; 0 is the start.
        num_trials: how many are done.
        start: what the start measured, or none if its trial failed.
    """

    sparsities: dict[str, float]
    value: float
    number: int
    num_trials: int
    start: float | None


def refine(
    start: Mapping[str, float],
    sizes: Mapping[str, int],
    run_trial: Callable[[int, Mapping[str, float]], float],
    *,
    folder: Path,
    num_trials: int,
    higher_is_better: bool,
    seed: int,
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

    Returns:
        The best.

    Raises:
        SecateurError: Optuna is not installed, the journal is of another search, or every trial failed.
    """
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(
            str(folder / JOURNAL), lock_obj=optuna.storages.journal.JournalFileOpenLock(str(folder / JOURNAL))
        )
    )
    # Each process proposes its own: the same seed would make them try the same.
    known = len(optuna.load_study(study_name=STUDY, storage=storage).trials) if _exists(optuna, storage) else 0
    study = optuna.create_study(
        study_name=STUDY,
        storage=storage,
        sampler=optuna.samplers.TPESampler(seed=seed + known, multivariate=True),
        direction="maximize" if higher_is_better else "minimize",
        load_if_exists=True,
    )
    facts = {"start": dict(start), "sizes": dict(sizes)}
    if study.user_attrs and study.user_attrs != facts:
        raise SecateurError(f"{folder / JOURNAL}: holds the trials of another search. Choose another --out.")
    if not study.user_attrs:
        for key, value in facts.items():
            study.set_user_attr(key, value)
        study.enqueue_trial(dict.fromkeys(start, 0.0))

    def objective(trial: Any) -> float:
        offsets = {name: trial.suggest_float(name, -REACH, REACH) for name in start}
        sparsities = dict(start) if not any(offsets.values()) else shifted(start, sizes, offsets)
        trial.set_user_attr("sparsities", sparsities)
        return run_trial(trial.number, sparsities)

    done = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
    if len(study.get_trials(states=done)) < num_trials:
        enough = optuna.study.MaxTrialsCallback(num_trials, states=done)
        study.optimize(objective, callbacks=[enough], catch=(SecateurError,))
    complete = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    if not complete:
        raise SecateurError(f"{folder}: every one of {num_trials} trials failed; see their folders.")
    best, first = study.best_trial, next((trial for trial in complete if trial.number == 0), None)
    return Refined(
        sparsities=best.user_attrs["sparsities"],
        value=best.value,
        number=best.number,
        num_trials=len(complete),
        start=first.value if first else None,
    )


def _exists(optuna: Any, storage: Any) -> bool:
    return STUDY in optuna.get_all_study_names(storage)


def _optuna() -> Any:
    try:
        import optuna
        import optuna.storages.journal
    except ImportError as error:
        raise SecateurError(
            "--trials needs Optuna: pip install 'secateur[search]', or leave the option out: the curves alone give "
            "sparsities."
        ) from error
    return optuna


__all__ = ["JOURNAL", "Refined", "refine"]
