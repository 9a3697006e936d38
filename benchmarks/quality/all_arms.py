"""Run every arm of the contest that is not there yet, one after the other, and sum up after each.

    python benchmarks/quality/all_arms.py g2p --threads 1

Three seeds of every tenth arm, one of each longer one; `nni_tenth` where NNI 3.0 is installed (pip install nni==3.0),
`search_tenth` where its search has been run. What is kept beside summary.json counts as there. A call that was stopped
goes on where it was; several processes with the same --out share the arms.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from contest import ARMS, PLACE
from summary import BUDGETS, SCRIPTS, facts_file

from secateur.artifacts.lock import lock_folder
from secateur.errors import CheckpointError
from tasks import TASKS, Task

HERE = Path(__file__).parent
SEEDS = (1, 2, 3)
FIRST = ("dense", "ours_tenth", "control_tenth", "report_tenth", "torch_prune_tenth", "nni_tenth", "search_tenth")


def jobs(task: Task) -> Iterator[tuple[str, int]]:
    """List the arms and seeds that can be run here, the cheap ones and the first seeds first."""
    for seed in SEEDS:
        for arm in (*FIRST, *(arm for arm in BUDGETS if arm not in FIRST)):
            possible = arm in ARMS or importlib.util.find_spec("nni") is not None
            if arm == "search_tenth":
                possible = task.searched.exists()
            elif arm == "logits_tenth":
                possible = bool(task.distillation)  # without, it is ours
            elif arm == "report_half":
                possible = ARMS[arm][1] in task.dropout  # where a full arm takes hours
            if possible and (seed == 1 or arm.endswith("_tenth")):
                yield arm, seed


def command(task: str, arm: str, seed: int, *, out: Path, threads: int) -> list[str]:
    """Write the command of one arm."""
    script, *words = SCRIPTS.get(arm, "contest.py {task} {arm}").format(task=task, arm=arm).split()
    return [
        *(sys.executable, str(HERE / script), *words),
        *("--seed", str(seed), "--out", str(out), "--threads", str(threads)),
    ]


def main() -> int:
    """Run what is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--arms", help="only these, separated by commas")
    parser.add_argument("--out", type=Path, default=PLACE)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    task, wanted = TASKS[arguments.task], (arguments.arms or ",".join(BUDGETS)).split(",")
    failed, elsewhere = list[str](), list[str]()
    for arm, seed in jobs(task):
        if arm not in wanted or facts_file(task.name, arm, seed).exists():
            continue
        place = arguments.out / task.name / ".claims" / f"{arm}-{seed}"
        place.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(lock_folder(place))
            except CheckpointError:
                elsewhere.append(f"{arm}-{seed}")
                continue
            print(f"{task.name} {arm}-{seed}", flush=True)
            words = command(task.name, arm, seed, out=arguments.out, threads=arguments.threads)
            if subprocess.run(words, check=False).returncode or _sum_up(arguments.out):
                failed.append(f"{arm}-{seed}")
    if elsewhere:
        print(f"At work in another process: {', '.join(elsewhere)}.")
    if failed:
        print(f"Not done: {', '.join(failed)}.")
    if not failed + elsewhere:
        print("Every arm is there.")
    return min(len(failed), 1)


def _sum_up(out: Path) -> int:
    """Keep what an arm wrote, and sum up; processes take turns."""
    with lock_folder(out, wait=True):
        words = [sys.executable, str(HERE / "summary.py"), "--runs", str(out)]
        return subprocess.run(words, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
