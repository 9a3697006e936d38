"""Short real runs: Optuna proposes, a journal on disk remembers, and processes, or Ray Tune's machines, share them."""

from __future__ import annotations

import math
import os
import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.artifacts.lock import lock_folder
from secateur.errors import CheckpointError, RunInterrupted, SecateurError
from secateur.search.ray_trials import FAULT, NUMBER, OnRay, called, run_in_ray

JOURNAL = "trials.log"
STUDY = "secateur"
OPENINGS = "trials.opened"  # how many processes have opened the journal
ALIVE = "alive"  # holds a folder for each process at work
FACTS, PROCESS, AGAIN = "facts", "process", "again"
_GO_ON = "The same command goes on."
_PAUSE = 0.5  # seconds between two looks at what other processes do


@dataclass(frozen=True)
class Trial:
    """One that is done: what it is called, what was proposed, what its run measured."""

    number: int
    params: dict[str, float]
    value: float


@dataclass(frozen=True)
class Done:
    """All trials that ended with a figure, at least one, in their order; `best` is one of them, `failed` says why."""

    trials: tuple[Trial, ...]
    best: Trial
    failed: tuple[str, ...] = ()


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
    counts: Callable[[Mapping[str, float]], bool] | None = None,
    ray: OnRay | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Done:
    """Do what is missing of a number of trials.

    Args:
        propose: asks an Optuna trial for its parameters.
        run_trial: (number, parameters) -> figure; a trial that is done again has its old number. A SecateurError marks
            it as failed, but a CheckpointError: what the disk lacks or lost is no fault of what was proposed.
        first: parameters that are tried before any that are proposed.
        facts: what makes these trials comparable; a journal of others is refused.
        folder: where the journal stands; it exists.
        num_trials: how many are to be done in all, at least 1; failed ones are counted, unless no trial before this
            call came to a figure.
        higher_is_better: the figure's direction.
        seed: of the proposals.
        counts: tells by the parameters whether a trial in the journal is of those that are asked for now; None: all.
        ray: lets Ray Tune do them; None: this process does them one after the other.
        should_stop: asked while other processes of this machine do the last ones.

    Returns:
        The trials that count.

    Raises:
        RunInterrupted: stopped on request; the trial at work is left for the next call.
        CheckpointError: from a trial, which is left for the next call.
        SecateurError: a package is not installed, the journal is of another search, or every trial failed.
    """
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _alive_in(folder) as me:
        with lock_folder(folder, wait=True):  # of several processes one makes the study
            study, sampler = _open(
                optuna, folder, facts, higher_is_better=higher_is_better, seed=seed, num_trials=num_trials
            )
            others = give_back(study, optuna.trial.TrialState, folder)
            trials = _Trials(optuna, study, folder, me, num_trials, counts or (lambda params: True), first)
            missing = num_trials - trials.num_ended()
        if missing > others and ray is not None:
            run_in_ray(propose, run_trial, study, sampler, me, count=missing - others, folder=folder, ray=ray)
            if trials.num_ended() + others < num_trials:
                raise RunInterrupted(f"Stopped before the last trials. {_GO_ON}")  # Ray itself ends as if all were done
        elif missing > 0:
            trials.run(propose, run_trial, should_stop)
    failed = tuple(trials.failed())
    complete = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    found = tuple(Trial(called(trial), trial.params, trial.value) for trial in complete if trials.counts(trial.params))
    if not found:
        raise SecateurError(" ".join([f"{folder}: every one of {num_trials} trials failed.", *failed[-1:]]))
    return Done(found, best_of(found, higher_is_better=higher_is_better), failed)


def best_of(trials: Sequence[Trial], *, higher_is_better: bool) -> Trial:
    """Give the best of some trials, at least one; of equals the first.

    >>> best_of([Trial(0, {}, 1.0), Trial(1, {}, 2.0)], higher_is_better=False).number
    0
    """
    return (max if higher_is_better else min)(trials, key=lambda trial: trial.value)


class _Trials:
    """The trials of a study, as this process sees them; those of other machines are no matter of its own."""

    def __init__(
        self,
        optuna: Any,
        study: Any,
        folder: Path,
        me: str,
        num_trials: int,
        counts: Callable[[Mapping[str, float]], bool],
        first: Sequence[Mapping[str, float]],
    ) -> None:
        self.states: Any = optuna.trial.TrialState
        self.study, self.folder, self.me, self.num_trials, self.counts = study, folder, me, num_trials, counts
        self.void = set[int]()
        if not any(counts(trial.params) for trial in study.get_trials(states=(self.states.COMPLETE,))):
            # Whatever kept every trial from a figure may be mended by now.
            failed = study.get_trials(states=(self.states.FAIL,))
            self.void = {trial.number for trial in failed if FAULT in trial.user_attrs}
        waiting = [trial for trial in study.get_trials() if trial.number not in self.void]
        asked = [trial.params or trial.system_attrs.get("fixed_params") for trial in waiting]
        for params in first:
            if dict(params) not in asked:
                study.enqueue_trial(dict(params))

    def _ended(self, *states: Any) -> list[Any]:
        """List trials that are done and count; those that are to be done again do not."""
        found = [trial for trial in self.study.get_trials(states=states) if trial.number not in self.void]
        return [trial for trial in found if not trial.user_attrs.get(AGAIN) and self.counts(trial.params)]

    def num_ended(self) -> int:
        """How many trials are done, failed ones counted."""
        return len(self._ended(self.states.COMPLETE, self.states.FAIL))

    def failed(self) -> Iterator[str]:
        """Say why trials failed."""
        for trial in self._ended(self.states.FAIL):
            yield f"Trial {called(trial)}: {trial.user_attrs.get(FAULT, 'its figure was no number.')}"

    def run(
        self,
        propose: Callable[[Any], Any],
        run_trial: Callable[[int, Mapping[str, float]], float],
        should_stop: Callable[[], bool] | None,
    ) -> None:
        """Do trials one after the other; one that is interrupted is left for the next call."""
        while (trial := self._next(propose, should_stop)) is not None:
            try:
                value = run_trial(called(trial), trial.params)
            except RunInterrupted as error:
                _set_aside(self.study, self.states, trial, again=trial.params)
                raise RunInterrupted(f"Stopped in trial {called(trial)}. {_GO_ON}") from error
            except CheckpointError as error:
                _set_aside(self.study, self.states, trial, again=trial.params)
                raise CheckpointError(f"Trial {called(trial)}: {error} {_GO_ON}") from error
            except SecateurError as error:
                trial.set_user_attr(FAULT, str(error))
                self.study.tell(trial, state=self.states.FAIL)
                continue
            except Exception:  # not to be met again by every call that follows
                self.study.tell(trial, state=self.states.FAIL)
                raise
            self.study.tell(trial, **({"state": self.states.FAIL} if math.isnan(value) else {"values": value}))

    def _next(self, propose: Callable[[Any], Any], should_stop: Callable[[], bool] | None) -> Any:
        """Begin a trial, as long as one is missing that no process of this machine does; wait for those that do."""
        while True:
            with lock_folder(self.folder, wait=True):  # no process sees another's trial half begun
                running = give_back(self.study, self.states, self.folder)
                if self.num_ended() + running < self.num_trials:
                    trial = self.study.ask()
                    trial.set_user_attr(PROCESS, self.me)
                    with warnings.catch_warnings():  # of candidates that are asked for no more
                        warnings.simplefilter("ignore", UserWarning)
                        propose(trial)
                    if self.counts(trial.params):
                        return trial
                    _set_aside(self.study, self.states, trial)
                    continue
            if not running:
                return None
            if should_stop and should_stop():
                raise RunInterrupted(f"Stopped while other processes do the last trials. {_GO_ON}")
            time.sleep(_PAUSE)


def give_back(study: Any, states: Any, folder: Path) -> int:
    """Put trials back whose process is gone, to be done again; count those at work in living processes of this machine.

    Args:
        study: the Optuna study; its folder is locked.
        states: Optuna's names of a trial's state.
        folder: of the search.

    Returns:
        How many are at work.
    """
    num_alive = 0
    for trial in study.get_trials(states=(states.RUNNING,)):
        alive = _is_alive(folder, trial.user_attrs.get(PROCESS))
        num_alive += alive is True
        if alive is False:
            _set_aside(study, states, trial, again=trial.params or trial.system_attrs.get("fixed_params"))
    return num_alive


def _set_aside(study: Any, states: Any, trial: Any, *, again: Mapping[str, float] | None = None) -> None:
    """End a trial so that it counts nowhere; these parameters, if any, are tried again, under its old number."""
    study._storage.set_trial_user_attr(trial._trial_id, AGAIN, True)  # of another process's, there is no other way
    if again:
        study.enqueue_trial(again, user_attrs={NUMBER: called(trial)})
    study.tell(trial.number, state=states.FAIL)


def _open(
    optuna: Any,
    folder: Path,
    facts: Mapping[str, Any],
    *,
    higher_is_better: bool,
    seed: int,
    num_trials: int,
) -> tuple[Any, Any]:
    """Open the study, or make it."""
    lock = optuna.storages.journal.JournalFileOpenLock(str(folder / JOURNAL))
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL), lock_obj=lock)
    )
    # Each process proposes its own: the same seed would make them try the same.
    counter = folder / OPENINGS
    opened = int(counter.read_text()) if counter.exists() else 0
    counter.write_text(str(opened + 1))
    # Optuna's own ten first trials by chance would be most of what is asked for.
    startup = min(10, max(3, num_trials // 4))
    sampler = optuna.samplers.TPESampler(seed=seed + opened, multivariate=True, n_startup_trials=startup)
    study = optuna.create_study(
        study_name=STUDY,
        storage=storage,
        sampler=sampler,
        direction="maximize" if higher_is_better else "minimize",
        load_if_exists=True,
    )
    if not _comparable(study.user_attrs.get(FACTS, facts), facts):
        raise SecateurError(f"{folder / JOURNAL}: holds the trials of another search. Choose another --out.")
    study.set_user_attr(FACTS, dict(facts))
    return study, sampler


def _comparable(there: Mapping[str, Any], mine: Mapping[str, Any]) -> bool:
    """Tell whether two searches' trials compare; what an earlier version did not write down is not compared."""
    about = there.get("about", {})
    asked = {**mine, "about": {name: value for name, value in mine.get("about", {}).items() if name in about}}
    return dict(there) == asked if about else dict(there) == dict(mine)


@contextmanager
def _alive_in(folder: Path) -> Iterator[str]:
    """Name this process for the journal, and hold a lock of that name: the system lets go of it however it ends."""
    (folder / ALIVE).mkdir(exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f"{platform.node()}-", dir=folder / ALIVE))
    try:
        with lock_folder(place):
            yield f"{platform.node()}:{place.name}"
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _is_alive(folder: Path, process: str | None) -> bool | None:
    """Tell whether a process that does a trial still lives; of other machines, and without locks, nothing is known."""
    node, _, name = (process or "").rpartition(":")
    if process is not None and (node != platform.node() or os.name != "posix"):
        return None
    place = folder / ALIVE / name
    if not name or not place.is_dir():
        return False
    try:
        with lock_folder(place):
            return False
    except CheckpointError:
        return True


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
