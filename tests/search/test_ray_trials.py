"""Ray Tune runs the trials, and the journal is the one that every other process would go on with."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from secateur.errors import SecateurError
from secateur.search import ray_trials
from secateur.search.ray_trials import OnRay
from secateur.search.refine import refine

START, SIZES = {"a role": 0.5, "b": 0.5}, {"a role": 100, "b": 100}
PATIENCE = 300  # seconds
SCRIPT = """
import json, sys
from pathlib import Path
from secateur.errors import SecateurError
from secateur.search.ray_trials import OnRay
from secateur.search.refine import refine

def cost(number, sparsities):
    if number == 1:
        raise SecateurError("lost")
    return (sparsities["b"] - 0.62) ** 2

found = refine({"a role": 0.5, "b": 0.5}, {"a role": 100, "b": 100}, cost, folder=Path(sys.argv[1]), num_trials=3,
               higher_is_better=False, seed=1, ray=OnRay({"cpu": 1}, lambda number: print(number, flush=True)))
print(json.dumps({"trials": found.num_trials, "start": found.start, "sum": sum(found.sparsities.values())}))
"""


def test_ray_does_the_trials_and_another_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs secateur[search]")
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs secateur[ray]")
    started = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        told, errors = started.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        started.kill()
        told, errors = started.communicate()
        if not told:
            pytest.skip(f"Ray did not start on this machine within {PATIENCE} s")
        raise
    assert started.returncode == 0 and "Traceback" not in errors, errors
    *numbers, found = told.splitlines()
    assert numbers == ["0", "1", "2"]
    assert json.loads(found) == {"trials": 2, "start": pytest.approx(0.0144), "sum": pytest.approx(1.0, abs=1e-4)}
    here: list[int] = []

    def trial(number: int, sparsities: Mapping[str, float]) -> float:
        here.append(number)
        return sparsities["b"]

    refine(START, SIZES, trial, folder=tmp_path, num_trials=5, higher_is_better=False, seed=1)
    assert here == [3, 4]


def test_too_little_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Small:
        is_initialized = staticmethod(lambda: True)
        cluster_resources = staticmethod(lambda: {"CPU": 2.0})

    monkeypatch.setattr(ray_trials, "_ray", lambda: (Small, None, None))
    asked = OnRay({"cpu": 4.0, "gpu": 1.0})
    with pytest.raises(SecateurError, match="4 cpu of 2, 1 gpu of 0"):
        ray_trials.run_in_ray(
            lambda trial: None, lambda number, params: 0.0, None, None, "me:1", count=1, folder=tmp_path, ray=asked
        )


def test_without_ray_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SecateurError, match=r"pip install 'secateur\[ray\]'"):
        ray_trials._ray()
