"""The peak memory of one engine at one batch, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

from secateur.artefact import Artefact
from secateur.artifacts.manifest import peak_memory_bytes
from secateur.bench_entries import Entry, Work, opened, sources_of
from secateur.bench_timing import batches_of
from secateur.errors import SecateurError


def peak_memory_mib(
    entry: Entry, work: Work, *, size: int, threads: int, trust_remote_code: bool = False
) -> float | None:
    """Load and write the batch with the longest text in a fresh process.

    Args:
        entry: what is loaded.
        work: says what is read and written.
        size: texts at once.
        threads: CPU threads.
        trust_remote_code: whether code that comes with a model may run.

    Returns:
        The largest resident memory in MiB, libraries and all; None where the system does not tell it.

    Raises:
        SecateurError: the process failed, for example for want of memory.
    """
    if peak_memory_bytes() is None:
        return None
    asked = {
        "entry": asdict(entry), "work": asdict(work), "size": size, "threads": threads, "trust": trust_remote_code,
    }  # fmt: skip
    command = [sys.executable, "-c", "from secateur import bench_memory; bench_memory.write_once()"]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.split():
        last = next(reversed(done.stderr.strip().splitlines()), f"it ended with {done.returncode}")
        raise SecateurError(f"{entry.model} in {entry.engine}: the process that measures memory failed: {last}")
    return float(done.stdout.split()[-1])


def write_once() -> None:
    """Write the batch that standard input asks for, and print this process's peak resident memory in MiB."""
    asked = json.load(sys.stdin)
    entry = Entry(**{**asked["entry"], "artefact": Artefact(**asked["entry"]["artefact"])})
    work = Work(**asked["work"])
    with opened([entry], threads=asked["threads"], trust_remote_code=asked["trust"]) as (found, skipped):
        if skipped:
            raise SystemExit(skipped[0]["reason"])
        engine, tokenizer = found[entry]
        batches = batches_of(sources_of(work, engine, tokenizer), asked["size"])
        work.write(engine, max(batches, key=lambda batch: max(map(len, batch))))
    peak = peak_memory_bytes()
    assert peak is not None  # the process that asks has looked
    print(peak / 2**20)


__all__ = ["peak_memory_mib", "write_once"]
