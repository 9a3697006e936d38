"""Peak memory is of a process of its own, and is left open where the system does not tell it."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from secateur import bench_memory
from secateur.artefact import find_artefact
from secateur.bench_entries import Entry, Work
from secateur.bench_memory import peak_memory_mib
from secateur.errors import SecateurError
from toy import Toy

WORK = Work(None, 1, 5, new_tokens=2, exactly=True)


def test_peak_memory_is_measured_where_the_system_tells_it(toy: Toy) -> None:
    entry = Entry(str(toy.start), "hf-fp32", "1-hf-fp32", find_artefact(str(toy.start)))
    found = peak_memory_mib(entry, WORK, size=1, threads=1)
    if not Path("/proc/self/status").exists():
        assert found is None
    else:
        assert found is not None and 50 < found < 5000  # python and torch alone take more than the first


def test_the_batch_with_the_longest_text_is_written(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[list[list[int]]] = []
    monkeypatch.setattr(Work, "write", lambda self, engine, batch, new_tokens=None: written.append(batch))
    entry = Entry(str(toy.start), "hf-fp32", "1-hf-fp32", find_artefact(str(toy.start)))
    work = Work(["a", "mathematics", "ace"], 3, 20, new_tokens=2, exactly=True)
    asked = {"entry": asdict(entry), "work": asdict(work), "size": 1, "threads": 1, "trust": False}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(asked)))
    if bench_memory.peak_memory_bytes() is not None:
        bench_memory.write_once()
        ((longest,),) = written
        assert len(longest) > 5


@pytest.mark.skipif(bench_memory.peak_memory_bytes() is None, reason="this system does not tell peak memory")
def test_a_process_that_fails_says_why(toy: Toy, tmp_path: Path) -> None:
    gone = replace(find_artefact(str(toy.start)), path=str(tmp_path / "gone"))
    with pytest.raises(SecateurError, match=r"hf-fp32: the process that measures memory failed: .*\w"):
        peak_memory_mib(Entry("gone", "hf-fp32", "1-hf-fp32", gone), WORK, size=1, threads=1)


def test_without_proc_it_is_not_measured(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_memory, "peak_memory_bytes", lambda: None)
    monkeypatch.setattr(bench_memory.subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    entry = Entry(str(toy.start), "hf-fp32", "1-hf-fp32", find_artefact(str(toy.start)))
    assert peak_memory_mib(entry, WORK, size=1, threads=1) is None
