"""What is freed goes back to the system, between steps, and only where it can."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from secateur.retrain import memory
from secateur.retrain.memory import INTERVAL, MemoryCallback, give_back

PIECE, NUM_PIECES = 2**16, 1024  # bytes: below what glibc takes from the system by itself


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="utf-8") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not give_back(), reason="this system cannot be given memory back")
def test_holes_between_what_is_kept_are_given_back() -> None:
    pieces = [torch.ones(PIECE // 4) for _ in range(2 * NUM_PIECES)]
    kept = pieces[::2]
    del pieces
    before = resident_bytes()
    give_back()
    assert before - resident_bytes() > PIECE * NUM_PIECES / 2
    assert all(bool((piece == 1).all()) for piece in kept)


def test_a_training_gives_back_now_and_then_and_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(memory, "_trim", lambda: calls.append)
    now = 0.0
    monkeypatch.setattr(memory, "time", SimpleNamespace(monotonic=lambda: now))
    callback: Any = MemoryCallback()
    for step in range(1, 25):
        now = step * INTERVAL / 10
        callback.on_step_end(None, None, None)
        assert len(calls) == step // 10
    callback.on_train_end(None, None, None)
    assert len(calls) == 3


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_trim", lambda: None)
    assert not give_back()
