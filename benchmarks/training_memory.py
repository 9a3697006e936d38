"""How much memory a training of rows of all lengths takes on a CPU, with and without what secateur does about it.

    python benchmarks/training_memory.py [--quick] [--json FILE]

Under bf16 on a CPU, torch multiplies through oneDNN, which prepares each shape of a product once and keeps what it
prepared, working memory included: 1,024 of them, and a batch of any new length brings a few dozen. The `secateur`
command keeps 64. And what tensors of all sizes leave free, glibc keeps: every 10 seconds it is given back. Each side is
a process of its own that takes the same steps of recipes/debian/start (of the g2p model that comes along with --quick,
or where the data is not there); the figures are the largest resident memory at the end of a step, in each quarter of
the steps, and the mean time of a step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from common import environment, finish, parse_arguments, resident_bytes
from secateur.cli import MATMUL_CACHE
from secateur.retrain import trainer as retraining
from training import Clock, debian, g2p, train_ours

STEPS, QUICK_STEPS = 120, 40
QUARTERS = 4


class Watch(Clock):
    """Takes the resident memory at the end of every step too."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = [0] * QUARTERS

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note time and memory."""
        super().on_step_end(args, state, control, **kwargs)
        quarter = (state.global_step - 1) * QUARTERS // state.max_steps
        self.bytes[quarter] = max(self.bytes[quarter], resident_bytes())


def measure(quick: bool) -> None:
    """Train in this process; print what was seen as JSON."""
    shape = g2p(QUICK_STEPS) if quick else debian(STEPS) or g2p(STEPS)
    watch = Watch()
    if MATMUL_CACHE[0] not in os.environ:
        retraining.MemoryCallback = TrainerCallback  # which does nothing
    with tempfile.TemporaryDirectory() as work:
        train_ours(shape.make(), shape, watch, Path(work))
    spent = watch.seconds()
    found = {"shape": shape.name, "steps": shape.steps, "bytes": watch.bytes, "ms": 1000 * sum(spent) / len(spent)}
    print(json.dumps(found))


def side(capacity: str | None, *, quick: bool, threads: int) -> dict[str, Any]:
    """Measure one side in a fresh process."""
    surroundings = {name: value for name, value in os.environ.items() if name != MATMUL_CACHE[0]}
    if capacity is not None:
        surroundings[MATMUL_CACHE[0]] = capacity
    words = [sys.executable, __file__, "--threads", str(threads), *(["--quick"] if quick else [])]
    done = subprocess.run(
        words, env=surroundings | {"SECATEUR_MEASURE": "1"}, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure both sides, print, write."""
    arguments = parse_arguments(__doc__ or "")
    if os.environ.get("SECATEUR_MEASURE"):
        measure(arguments.quick)
        return
    results: dict[str, Any] = {"environment": environment()}
    for name, capacity in (("as_it_is", None), ("ours", MATMUL_CACHE[1])):
        found = results[name] = side(capacity, quick=arguments.quick, threads=arguments.threads)
        memory = ", ".join(f"{value / 2**20:,.0f}" for value in found["bytes"])
        print(f"{found['shape']}, {found['steps']} steps, {name:8}  {memory} MiB, {found['ms']:.0f} ms a step")
    results["times_smaller"] = max(results["as_it_is"]["bytes"]) / max(results["ours"]["bytes"])
    results["times_slower"] = results["ours"]["ms"] / results["as_it_is"]["ms"]
    print(f"\ntimes_smaller {results['times_smaller']:.2f}, times_slower {results['times_slower']:.2f}")
    finish(results, arguments.json)


if __name__ == "__main__":
    main()
