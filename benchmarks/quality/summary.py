"""Sum the contest up: what is there of runs/contest becomes summary.json, predictions/ and a table; or check it.

    python benchmarks/quality/summary.py          # read the runs, keep their predictions, write summary.json
    python benchmarks/quality/summary.py --check  # recompute every mean from the kept predictions and the data

Only finished runs on the whole test split count. Of an arm with several seeds `mean` is the mean over seeds, and the
interval is from resampling rows, all seeds' outputs of a row together: it says how far the mean would move on other
rows. `per_seed` shows how far it moves with the seed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contest import ARMS, PLACE

from secateur.artifacts.manifest import read_manifest
from secateur.errors import SecateurError
from secateur.evaluation.bootstrap import interval
from secateur.evaluation.figures import as_written, resample
from secateur.fields import load_split
from secateur.files import read_json, write_bytes, write_json
from secateur.report.sections import markdown_table
from secateur.tasks.pairs import Pairs
from tasks import TASKS, Task

HERE = Path(__file__).parent
SUMMARY, KEPT = HERE / "summary.json", HERE / "predictions"
BUDGETS = {arm: share for arm, (_, share) in ARMS.items()} | {"nni_tenth": 0.1}  # arm -> share of the full epochs
SCRIPTS = {"nni_tenth": "nni_arm.py {task}"}  # of the arms that contest.py does not run
NEAR = 1e-6  # of a recomputed mean
SEED = 42  # of the resampling


def kept_file(task: str, arm: str, seed: int) -> Path:
    """Name the file that keeps a run's outputs on test data, one a line, compressed."""
    return KEPT / f"{task}-{arm}-{seed}.txt.gz"


def keep(task: Task, arm: str, seed: int, folder: Path) -> None:
    """Keep a finished run's outputs."""
    rows = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    lines = [str(json.loads(row)["prediction"]) for row in rows]
    if any("\n" in line for line in lines):
        raise SecateurError(f"{folder}: an output holds a line break; it cannot be kept one a line.")
    text = "".join(f"{line}\n" for line in lines).encode()
    write_bytes(kept_file(task.name, arm, seed), gzip.compress(text, mtime=0))


def read_kept(task: str, arm: str, seed: int) -> list[str]:
    """Read what `keep` wrote."""
    return gzip.decompress(kept_file(task, arm, seed).read_bytes()).decode().split("\n")[:-1]


def score(task: Task, pairs: Pairs, outputs: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Score an arm's outputs of all seeds: the mean over seeds, and an interval over rows."""
    names = [name for name in task.evaluation["metrics"] if task.metric.startswith(name)]
    # The same rows are drawn for every seed, so a resample's mean over seeds is a mean on those rows.
    samples = [resample(names, as_written(each, pairs.references), seed=SEED)[task.metric] for each in outputs]
    mean = float(np.mean([sample.value for sample in samples]))
    draws = np.mean([sample.resampled for sample in samples if sample.resampled is not None], axis=0)
    low, high = interval(np.array([mean]), draws[:, None])
    return {
        "metric": task.metric,
        "unit": samples[0].unit,
        "higher_is_better": samples[0].higher_is_better,
        "mean": mean,
        "low": float(low[0]),
        "high": float(high[0]),
        "per_seed": [sample.value for sample in samples],
    }


def finished(task: Task, place: Path) -> dict[str, dict[int, Path]]:
    """Find the finished runs of a task: arm -> seed -> folder."""
    found: dict[str, dict[int, Path]] = {}
    for arm in BUDGETS:
        for folder in sorted((place / task.name).glob(f"{arm}-[0-9]*")):
            if (folder / "manifest.json").exists() and read_manifest(folder)["status"] == "complete":
                found.setdefault(arm, {})[int(folder.name.rpartition("-")[2])] = folder
    return found


def summarise(task: Task, place: Path) -> dict[str, Any]:
    """Make a task's part of the summary, and keep the outputs."""
    pairs = load_split(task.recipe([]), "test")
    arms: dict[str, Any] = {}
    for arm, folders in finished(task, place).items():
        manifests = {seed: read_manifest(folder) for seed, folder in folders.items()}
        for seed, manifest in manifests.items():
            last = manifest["stages"][-1]
            if last["split"] != "test" or manifest["data"]["hashes"].get("test") != pairs.fingerprint():
                raise SecateurError(f"{folders[seed]}: was not measured on the whole test split. Run the arm anew.")
            keep(task, arm, seed, folders[seed] / last["folder"])
        first = next(iter(manifests.values()))
        epochs = sum((stage.get("train") or {}).get("epochs", 0.0) for stage in first["stages"])
        budget = BUDGETS[arm] * task.full_epochs
        if abs(epochs - budget) > 0.01 * budget:
            raise SecateurError(
                f"{arm}: trained {epochs:g} epochs, its budget is {budget:g}: a quick run is no figure."
            )
        counts = first["stages"][-1]["counts"]
        arms[arm] = score(task, pairs, [read_kept(task.name, arm, seed) for seed in folders]) | {
            "seeds": sorted(folders),
            "counted_ratio": counts["counted_ratio"],
            "stored_ratio": counts["stored_ratio"],
            "epochs": round(epochs, 6),
            "minutes": round(sum(stage["seconds"] for stage in first["stages"]) / 60, 1),
            "dense_hash": (first["dense"] or {}).get("hash"),
            "threads": first["environment"].get("threads"),
            "command": _command(task.name, arm),
        }
    return {"data_hash": pairs.fingerprint(), "rows": len(pairs), "arms": arms}


def _command(task: str, arm: str) -> str:
    script = SCRIPTS.get(arm, "contest.py {task} {arm}").format(task=task, arm=arm)
    return f"python benchmarks/quality/{script} --seed SEED"


def check(summary: dict[str, Any]) -> list[str]:
    """Recompute every mean from the kept outputs; list what differs."""
    faults = []
    for name, part in summary["tasks"].items():
        task = TASKS[name]
        pairs = load_split(task.recipe([]), "test")
        if pairs.fingerprint() != part["data_hash"]:
            faults.append(f"{name}: the test data here are not those of the summary.")
            continue
        for arm, entry in part["arms"].items():
            found = score(task, pairs, [read_kept(name, arm, seed) for seed in entry["seeds"]])
            wrong = [key for key in ("mean", "low", "high") if abs(found[key] - entry[key]) > NEAR]
            faults += [f"{name} {arm}: {key} is {entry[key]}, the outputs give {found[key]}." for key in wrong]
    return faults


def table(summary: dict[str, Any]) -> str:
    """Lay out all arms of all tasks."""
    rows = []
    for name, part in summary["tasks"].items():
        for arm, entry in part["arms"].items():
            figure = f"{entry['mean']:.4f} [{entry['low']:.4f}, {entry['high']:.4f}]"
            seeds = ", ".join(f"{value:.4f}" for value in entry["per_seed"])
            ratios = [f"{entry['counted_ratio']:.4f}", f"{entry['stored_ratio']:.4f}"]
            rows.append([name, arm, f"{entry['epochs']:g}", *ratios, figure, seeds])
    return markdown_table(["task", "arm", "epochs", "counted", "stored", "mean [95 %]", "each seed"], rows)


def main() -> int:
    """Write the summary, or check the one that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="recompute every mean; exit 1 if one differs")
    parser.add_argument("--runs", type=Path, default=PLACE)
    arguments = parser.parse_args()
    if arguments.check:
        faults = check(read_json(SUMMARY))
        print("\n".join(faults) or "Every mean is what the outputs give.")
        return 1 if faults else 0
    tasks = {name: summarise(task, arguments.runs) for name, task in TASKS.items() if finished(task, arguments.runs)}
    if not tasks:
        print(f"{arguments.runs}: no finished arm.", file=sys.stderr)
        return 1
    summary = {"format": "secateur-contest", "version": 1, "tasks": tasks}
    write_json(SUMMARY, summary)
    print(table(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
