"""Short real runs: Optuna proposes, a journal on disk remembers, and processes, or Ray Tune's machines, share them."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.artifacts.lock import lock_folder
from secateur.errors import RunInterrupted, SecateurError
from secateur.search.ray_trials import OnRay, run_in_ray

JOURNAL = "trials.log"
STUDY = "secateur"
OPENINGS = "trials.opened"  # how many processes have opened the journal
FACTS, PROCESS, AGAIN = "facts", "process", "again"
_GO_ON = "The same command goes on."
_PAUSE = 0.5  # seconds between two looks at what other processes do


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
    should_stop: Callable[[], bool] | None = None,
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
        should_stop: asked while other processes of this machine do the last ones.

    Returns:
        The trials.

    Raises:
        RunInterrupted: stopped on request; the trial at work is left for the next call.
        SecateurError: a package is not installed, the journal is of another search, or every trial failed.
    """
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with lock_folder(folder, wait=True):  # of several processes one makes the study
        study, sampler = _open(optuna, folder, first, facts, higher_is_better=higher_is_better, seed=seed)
    missing = num_trials - _num_ended(optuna, study)
    if missing > 0 and ray is not None:
        run_in_ray(propose, run_trial, study, sampler, _me(), count=missing, folder=folder, ray=ray)
    elif missing > 0:
        _run_here(optuna, study, propose, run_trial, num_trials, folder=folder, should_stop=should_stop)
    complete = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    if not complete:
        raise SecateurError(f"{folder}: every one of {num_trials} trials failed; see their folders.")
    found = tuple(Trial(trial.number, trial.params, trial.value) for trial in complete)
    return Done(found, best_of(found, higher_is_better=higher_is_better))


def best_of(trials: Sequence[Trial], *, higher_is_better: bool) -> Trial:
    """Give the best of some trials, at least one; of equals the first.

    >>> best_of([Trial(0, {}, 1.0), Trial(1, {}, 2.0)], higher_is_better=False).number
    0
    """
    return (max if higher_is_better else min)(trials, key=lambda trial: trial.value)


def _run_here(
    optuna: Any,
    study: Any,
    propose: Callable[[Any], Any],
    run_trial: Callable[[int, Mapping[str, float]], float],
    num_trials: int,
    *,
    folder: Path,
    should_stop: Callable[[], bool] | None,
) -> None:
    """Do trials one after the other; one that is interrupted is left for the next call."""
    failed = optuna.trial.TrialState.FAIL
    while (trial := _next(optuna, study, propose, num_trials, folder=folder, should_stop=should_stop)) is not None:
        try:
            value = run_trial(trial.number, trial.params)
        except RunInterrupted as error:
            trial.set_user_attr(AGAIN, True)
            study.enqueue_trial(trial.params)
            study.tell(trial, state=failed)
            raise RunInterrupted(f"Stopped in trial {trial.number}. {_GO_ON}") from error
        except SecateurError:
            study.tell(trial, state=failed)
            continue
        study.tell(trial, **({"state": failed} if math.isnan(value) else {"values": value}))


def _next(
    optuna: Any,
    study: Any,
    propose: Callable[[Any], Any],
    num_trials: int,
    *,
    folder: Path,
    should_stop: Callable[[], bool] | None,
) -> Any:
    """Begin a trial, as long as one is missing that nobody does; wait for those that others on this machine do.

    Of other machines nothing is known: what they still do is left to them, and to the next call.
    """
    while True:
        with lock_folder(folder, wait=True):  # no process sees another's trial half begun
            running = _alive(optuna, study)
            if _num_ended(optuna, study) + len(running) < num_trials:
                trial = study.ask()
                trial.set_user_attr(PROCESS, _me())
                propose(trial)
                return trial
        if not any(process.rpartition(":")[0] == platform.node() for process in running):
            return None
        if should_stop and should_stop():
            raise RunInterrupted(f"Stopped while other processes do the last trials. {_GO_ON}")
        time.sleep(_PAUSE)


def _alive(optuna: Any, study: Any) -> list[str]:
    """List the processes of the trials at work; a trial whose process is gone is put back, to be done again."""
    found = []
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        process = trial.user_attrs.get(PROCESS)
        if not _is_dead(process):
            found.append(process)
            continue
        study._storage.set_trial_user_attr(trial._trial_id, AGAIN, True)  # the study gives it no other way
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if params := trial.params or trial.system_attrs.get("fixed_params"):
            study.enqueue_trial(params)
    return found


def _open(
    optuna: Any,
    folder: Path,
    first: Sequence[Mapping[str, float]],
    facts: Mapping[str, Any],
    *,
    higher_is_better: bool,
    seed: int,
) -> tuple[Any, Any]:
    """Open the study, or make it, and see that what comes first is there, and what died with its process again."""
    lock = optuna.storages.journal.JournalFileOpenLock(str(folder / JOURNAL))
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL), lock_obj=lock)
    )
    # Each process proposes its own: the same seed would make them try the same.
    counter = folder / OPENINGS
    opened = int(counter.read_text()) if counter.exists() else 0
    counter.write_text(str(opened + 1))
    sampler = optuna.samplers.TPESampler(seed=seed + opened, multivariate=True)
    study = optuna.create_study(
        study_name=STUDY,
        storage=storage,
        sampler=sampler,
        direction="maximize" if higher_is_better else "minimize",
        load_if_exists=True,
    )
    if study.user_attrs.get(FACTS, facts) != facts:
        raise SecateurError(f"{folder / JOURNAL}: holds the trials of another search. Choose another --out.")
    study.set_user_attr(FACTS, dict(facts))
    _alive(optuna, study)
    asked = [trial.params or trial.system_attrs.get("fixed_params") for trial in study.get_trials()]
    for params in first:
        if dict(params) not in asked:
            study.enqueue_trial(dict(params))
    return study, sampler


def _num_ended(optuna: Any, study: Any) -> int:
    """How many trials are done, failed ones counted, those that are to be done again not."""
    ended = study.get_trials(states=(optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL))
    return sum(not trial.user_attrs.get(AGAIN) for trial in ended)


def _me() -> str:
    return f"{platform.node()}:{os.getpid()}"


def _is_dead(process: str | None) -> bool:
    """Say whether a process of this machine is gone; of others nothing is known."""
    if process is None:
        return True
    node, _, number = process.rpartition(":")
    if node != platform.node() or os.name != "posix":
        return False
    if process == _me():  # this process does one trial at a time, and none yet
        return True
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's, so it is there
        return False
    return False


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
