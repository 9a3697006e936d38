"""Short real runs: Optuna proposes, a journal on disk remembers, and processes, or Ray Tune's machines, share them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.errors import SecateurError
from secateur.search.ray_trials import OnRay, run_in_ray

JOURNAL = "trials.log"
STUDY = "secateur"


@dataclass(frozen=True)
class Trial:
    """One that is done: its number, what was proposed, what its run measured."""

    number: int
    params: dict[str, float]
    value: float


@dataclass(frozen=True)
class Done:
    """All trials that ended with a figure, at least one, in their order; `best` is one of them."""

    trials: tuple[Trial, ...]
    best: Trial


def do_trials(
    propose: Callable[[Any], Any],
    run_trial: Callable[[int, Mapping[str, float]], float],
    *,
    first: Sequence[Mapping[str, float]],
    facts: Mapping[str, Any],
    folder: Path,
    num_trials: int,
    higher_is_better: bool,
    seed: int,
    ray: OnRay | None = None,
) -> Done:
    """Do what is missing of a number of trials.

    Args:
        propose: asks an Optuna trial for its parameters.
        run_trial: (number, parameters) -> figure; a SecateurError marks the trial as failed.
        first: parameters that are tried before any that are proposed.
        facts: what makes these trials comparable; a journal of others is refused.
        folder: where the journal stands; it exists.
        num_trials: how many are to be done in all, failed ones counted, at least 1.
        higher_is_better: the figure's direction.
        seed: of the proposals.
        ray: lets Ray Tune do them; None: this process does them one after the other.

    Returns:
        The trials.

    Raises:
        SecateurError: a package is not installed, the journal is of another search, or every trial failed.
    """
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    lock = optuna.storages.journal.JournalFileOpenLock(str(folder / JOURNAL))
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL), lock_obj=lock)
    )
    # Each process proposes its own: the same seed would make them try the same.
    there = STUDY in optuna.get_all_study_names(storage)
    known = len(optuna.load_study(study_name=STUDY, storage=storage).trials) if there else 0
    sampler = optuna.samplers.TPESampler(seed=seed + known, multivariate=True)
    study = optuna.create_study(
        study_name=STUDY,
        storage=storage,
        sampler=sampler,
        direction="maximize" if higher_is_better else "minimize",
        load_if_exists=True,
    )
    if study.user_attrs and study.user_attrs != facts:
        raise SecateurError(f"{folder / JOURNAL}: holds the trials of another search. Choose another --out.")
    if not study.user_attrs:
        for key, value in facts.items():
            study.set_user_attr(key, value)
        for params in first:
            study.enqueue_trial(dict(params))
    ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
    missing = num_trials - len(study.get_trials(states=ended))
    if missing > 0 and ray is not None:
        run_in_ray(propose, run_trial, study, sampler, count=missing, folder=folder, ray=ray)
    elif missing > 0:

        def objective(trial: Any) -> float:
            propose(trial)
            return run_trial(trial.number, trial.params)

        enough = optuna.study.MaxTrialsCallback(num_trials, states=ended)
        study.optimize(objective, callbacks=[enough], catch=(SecateurError,))
    complete = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    if not complete:
        raise SecateurError(f"{folder}: every one of {num_trials} trials failed; see their folders.")
    found = {trial.number: Trial(trial.number, trial.params, trial.value) for trial in complete}
    return Done(tuple(found.values()), found[study.best_trial.number])


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


__all__ = ["JOURNAL", "Done", "Trial", "do_trials"]
