"""One process is a group of one; several agree, and fail together. Real groups are in test_several_processes.py."""

from __future__ import annotations

import pytest

from secateur.errors import SecateurError
from secateur.processes import Processes, join, pick_device


def test_the_device_that_is_asked_for_must_be_there() -> None:
    assert pick_device("cpu") == "cpu" and pick_device("auto") in ("cpu", "cuda", "mps")
    with pytest.raises(SecateurError, match=r"device 'tpu' is not there. Devices of this machine: .*cpu"):
        pick_device("tpu")


def test_alone_nothing_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join("cpu") as processes:
        assert processes == Processes(0, 1) and processes.is_first
        assert processes.first(lambda: 3) == 3 and processes.share("a") == "a" and processes.gather(1) == [1]
        assert processes.any(True) and not processes.any(False)


def test_shares_are_disjoint_and_whole() -> None:
    items = list(range(11))
    shares = [Processes(rank, 4).own(items) for rank in range(4)]
    assert sorted(item for share in shares for item in share) == items


def test_processes_that_cannot_meet_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SecateurError, match="the 2 processes cannot meet"), join("cpu"):
        pass
