"""Trials: the first is the start, the journal remembers, and processes share it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from secateur.errors import CheckpointError, RunInterrupted, SecateurError
from secateur.search import trials
from secateur.search.ray_trials import OnRay
from secateur.search.refine import pick, refine
from secateur.search.trials import JOURNAL

pytest.importorskip("optuna", reason="needs secateur[search]")

START, SIZES = {"a": 0.5, "b": 0.5}, {"a": 100, "b": 100}


def cost(number: int, sparsities: Mapping[str, float]) -> float:
    return (sparsities["a"] - 0.62) ** 2  # the best lies off the start, within reach


def run(folder: Path, trials: int, trial=cost, **options: object):
    given = {"higher_is_better": False, "seed": 1, **options}
    return refine(START, SIZES, trial, folder=folder, num_trials=trials, **given)  # type: ignore[arg-type]


def test_trials_find_what_is_better_than_the_start(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    def trial(number: int, sparsities: Mapping[str, float]) -> float:
        seen.append(dict(sparsities))
        return cost(number, sparsities)

    best = run(tmp_path, 25, trial)
    assert seen[0] == START and best.start == pytest.approx(cost(0, START)) and best.num_trials == 25
    assert best.value < best.start / 4 and best.number > 0
    assert all(each["a"] + each["b"] == pytest.approx(1.0, abs=1e-4) for each in seen)
    worst = run(tmp_path / "other", 5, higher_is_better=True) if (tmp_path / "other").mkdir() is None else None
    assert worst is not None and worst.value >= cost(0, START)


def test_a_later_call_goes_on(tmp_path: Path) -> None:
    calls: list[int] = []

    def trial(number: int, sparsities: Mapping[str, float]) -> float:
        calls.append(number)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return cost(number, sparsities)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 6, trial)
    assert run(tmp_path, 6, trial).num_trials == 6
    assert calls[:4] == [0, 1, 2, 2] and len({*calls}) == 6  # the one that was broken goes on under its old number
    done = len(calls)
    run(tmp_path, 6, trial)
    assert len(calls) == done  # all are done: nothing is tried again


def test_a_trial_that_is_stopped_is_left_for_the_next_call(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    def stopped(number: int, sparsities: Mapping[str, float]) -> float:
        seen.append(dict(sparsities))
        raise RunInterrupted("asked to stop")

    for _ in range(2):
        with pytest.raises(RunInterrupted):
            run(tmp_path, 3, stopped)
    assert seen == [START, START]  # it did not go on to the next, and began with the same again
    best = run(tmp_path, 3)
    assert best.num_trials == 3 and best.start == pytest.approx(cost(0, START))


KILLED = """
import os, sys
from pathlib import Path
from secateur.search.refine import refine
refine({"a": 0.5, "b": 0.5}, {"a": 100, "b": 100}, lambda number, sparsities: os._exit(9), folder=Path(sys.argv[1]),
       num_trials=3, higher_is_better=False, seed=1)
"""


def test_a_trial_that_died_with_its_process_is_done_again(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)]).returncode == 9
    best = run(tmp_path, 3)
    assert best.num_trials == 3 and best.start == pytest.approx(cost(0, START))


def test_trials_of_another_length_are_refused(tmp_path: Path) -> None:
    run(tmp_path, 1, about={"epochs": 1})
    with pytest.raises(SecateurError, match="trials of another search"):
        run(tmp_path, 2, about={"epochs": 2})


def test_a_later_call_may_pick_among_more_or_fewer(tmp_path: Path) -> None:
    tried: list[int] = []

    def trial(index: int) -> float:
        tried.append(index)
        return float(index)

    for count in (2, 3, 1):
        done = pick({index: str(index) for index in range(count)}, trial, folder=tmp_path, higher_is_better=True)
        assert done.best.params["candidate"] == count - 1 and len(done.trials) == count  # of those it may choose
    assert tried == [0, 1, 2]


def test_candidates_that_are_asked_for_no_more_are_not_tried(tmp_path: Path) -> None:
    tried: list[int] = []

    def stopped(index: int) -> float:
        tried.append(index)
        if len(tried) == 2:
            raise RunInterrupted("asked to stop")
        return float(index)

    with pytest.raises(RunInterrupted):
        pick({index: str(index) for index in range(4)}, stopped, folder=tmp_path, higher_is_better=True)
    done = pick({0: "0", 1: "1"}, stopped, folder=tmp_path, higher_is_better=True)
    assert tried == [0, 1, 1] and [trial.params["candidate"] for trial in done.trials] == [0, 1]


def test_a_fault_of_another_kind_is_not_met_again(tmp_path: Path) -> None:
    def faulty(number: int, sparsities: Mapping[str, float]) -> float:
        if number == 0:
            raise MemoryError("out of memory")
        return cost(number, sparsities)

    with pytest.raises(MemoryError):
        run(tmp_path, 3, faulty)
    assert run(tmp_path, 3, faulty).num_trials == 2


def test_a_killed_process_is_known_by_its_lock_and_not_by_its_number(tmp_path: Path) -> None:
    """Its number may be another process's by now."""
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)]).returncode == 9
    (place,) = (tmp_path / "alive").iterdir()
    assert place.is_dir() and str(os.getpid()) not in place.name
    assert run(tmp_path, 2).num_trials == 2
    assert list((tmp_path / "alive").iterdir()) == [place]  # this process's own is gone


def test_what_another_machine_does_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)]).returncode == 9
    monkeypatch.setattr(trials.platform, "node", lambda: "another")
    assert run(tmp_path, 2).num_trials == 2


def test_a_trial_may_fail_and_all_may_not(tmp_path: Path) -> None:
    def every_second(number: int, sparsities: Mapping[str, float]) -> float:
        if number % 2:
            raise SecateurError("lost")
        return cost(number, sparsities)

    assert run(tmp_path, 4, every_second).num_trials == 2

    assert run(tmp_path, 4, every_second).failed == ("Trial 1: lost", "Trial 3: lost")
    seen: list[dict[str, float]] = []

    def never(number: int, sparsities: Mapping[str, float]) -> float:
        seen.append(dict(sparsities))
        raise SecateurError("lost")

    (tmp_path / "other").mkdir()
    for _ in range(2):
        with pytest.raises(SecateurError, match=r"every one of 3 trials failed\. Trial \d: lost"):
            run(tmp_path / "other", 3, never)
    assert len(seen) == 6 and seen[3] == START  # what kept all of them from a figure may be mended by now
    best = run(tmp_path / "other", 3)
    assert best.num_trials == 3 and best.failed == () and best.start == pytest.approx(cost(0, START))


def test_what_the_disk_lacks_is_no_fault_of_a_trial(tmp_path: Path) -> None:
    calls: list[int] = []

    def full(number: int, sparsities: Mapping[str, float]) -> float:
        calls.append(number)
        if len(calls) == 2:
            raise CheckpointError("cannot be written: no space left on device.")
        return cost(number, sparsities)

    with pytest.raises(CheckpointError, match=r"Trial 1: cannot be written.*The same command goes on"):
        run(tmp_path, 3, full)
    best = run(tmp_path, 3, full)
    assert calls[:3] == [0, 1, 1] and len(calls) == 4 and best.num_trials == 3 and best.failed == ()


def test_ray_that_is_stopped_does_not_end_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Tune takes Ctrl-C for itself, and then ends as if all were done."""

    def one_alone(propose: Any, trial: Any, study: Any, sampler: Any, me: str, *, count: int, **given: Any) -> None:
        counts.append(count)
        asked = study.ask()
        propose(asked)
        study.tell(asked, trial(asked.number, asked.params))

    counts: list[int] = []
    monkeypatch.setattr(trials, "run_in_ray", one_alone)
    with pytest.raises(RunInterrupted, match="The same command goes on"):
        run(tmp_path, 2, ray=OnRay({"cpu": 1}))
    assert run(tmp_path, 2, ray=OnRay({"cpu": 1})).num_trials == 2
    assert counts == [2, 1]


def test_the_journal_of_another_search_is_refused(tmp_path: Path) -> None:
    run(tmp_path, 1)
    with pytest.raises(SecateurError, match="trials of another search"):
        refine({"a": 0.1, "b": 0.9}, SIZES, cost, folder=tmp_path, num_trials=2, higher_is_better=False, seed=1)


SHARED = """
import sys, time
from pathlib import Path
from secateur.search.refine import refine
def trial(number, sparsities):
    time.sleep(0.05)
    print(number)
    return sparsities["a"]
refine({"a": 0.5, "b": 0.5}, {"a": 100, "b": 100}, trial, folder=Path(sys.argv[1]), num_trials=8,
       higher_is_better=False, seed=1)
"""


def test_processes_share_the_trials(tmp_path: Path) -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", SHARED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    numbers = [int(line) for process in started for line in process.communicate(timeout=120)[0].split()]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert sorted(numbers) == list(range(8))  # none twice, and none too many
    assert (tmp_path / JOURNAL).exists()


def test_what_cannot_be_shared_is_not_tried(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    def trial(number: int, sparsities: Mapping[str, float]) -> float:
        seen.append(dict(sparsities))
        return cost(number, sparsities)

    start, sizes = {"a": 0.5, "b": 0.5, "alone": 0.4}, {"a": 100, "b": 100, "alone": 50}
    given = {"folder": tmp_path, "num_trials": 4, "higher_is_better": False, "seed": 1}
    refine(start, sizes, trial, parts=[["a", "b"], ["alone"]], **given)  # type: ignore[arg-type]
    assert all(each["alone"] == 0.4 and each["a"] + each["b"] == pytest.approx(1.0, abs=1e-4) for each in seen)
    assert len({each["a"] for each in seen}) == 4
    assert all(set(params) == {"a", "b"} for params in _params(tmp_path))
    with pytest.raises(SecateurError, match="cannot lose more or less"):
        refine(start, sizes, trial, parts=[["a"], ["b"], ["alone"]], **given)  # type: ignore[arg-type]


def _params(folder: Path) -> list[dict[str, float]]:
    import optuna

    backend = optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
    study = optuna.load_study(study_name="secateur", storage=optuna.storages.JournalStorage(backend))
    return [trial.params for trial in study.trials]
