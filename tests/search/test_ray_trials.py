"""Ray Tune runs the trials, and the journal is the one that every other process would go on with."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest

from secateur.errors import SecateurError
from secateur.search import ray_trials
from secateur.search.ray_trials import OnRay
from secateur.search.refine import refine

START, SIZES = {"a role": 0.5, "b": 0.5}, {"a role": 100, "b": 100}


def cost(number: int, sparsities: Mapping[str, float]) -> float:
    if number == 1:
        raise SecateurError("lost")
    return (sparsities["b"] - 0.62) ** 2


@pytest.mark.filterwarnings("default")  # Ray's own
def test_ray_does_the_trials_and_another_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna", reason="needs secateur[search]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("ray", reason="needs secateur[ray]")
    given = {"folder": tmp_path, "higher_is_better": False, "seed": 1}
    told: list[int] = []
    ray = OnRay({"cpu": 1}, told.append)
    found = refine(START, SIZES, cost, num_trials=3, ray=ray, **given)  # type: ignore[arg-type]
    assert told == [0, 1, 2]
    assert found.num_trials == 2 and found.start == pytest.approx(0.0144)  # one of the three failed
    assert sum(found.sparsities.values()) == pytest.approx(1.0, abs=1e-4)
    assert "Traceback" not in capfd.readouterr().err
    numbers: list[int] = []

    def here(number: int, sparsities: Mapping[str, float]) -> float:
        numbers.append(number)
        return cost(number, sparsities)

    refine(START, SIZES, here, num_trials=5, **given)  # type: ignore[arg-type]
    assert numbers == [3, 4]


def test_too_little_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Small:
        is_initialized = staticmethod(lambda: True)
        cluster_resources = staticmethod(lambda: {"CPU": 2.0})

    monkeypatch.setattr(ray_trials, "_ray", lambda: (Small, None, None))
    asked = OnRay({"cpu": 4.0, "gpu": 1.0})
    with pytest.raises(SecateurError, match="4 cpu of 2, 1 gpu of 0"):
        ray_trials.run_in_ray(lambda trial: None, cost, None, None, count=1, folder=tmp_path, ray=asked)


def test_without_ray_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SecateurError, match=r"pip install 'secateur\[ray\]'"):
        ray_trials._ray()
