"""Sum the contest up: what is there of runs/contest becomes summary.json, predictions/ and a table; or check it.

    python benchmarks/quality/summary.py          # read the runs, keep their predictions, write summary.json
    python benchmarks/quality/summary.py --check  # make every entry again of what is kept, and compare

Only finished runs on the whole test split count. What is kept of earlier ones counts on, as long as all began from one
dense model, so that arms may be run on other days and machines. Of an arm with several seeds `mean` is the mean over
seeds, and the interval is from resampling rows, all seeds' outputs of a row together: it says how far the mean would
move on other rows. `per_seed` shows how far it moves with the seed. `beside` holds the distance from the dense model
with the same extra training, and from the report's way with more, on the same resampled rows: rows that are hard for
both do not widen its interval.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contest import ARMS, PLACE, stages_of

from secateur.artifacts.manifest import read_manifest
from secateur.errors import SecateurError
from secateur.evaluation.bootstrap import interval
from secateur.evaluation.figures import as_written, resample
from secateur.fields import load_split
from secateur.files import read_json, write_bytes, write_json
from secateur.recipe.load import load_recipe
from secateur.recipe.schema import Recipe
from secateur.report.sections import markdown_table
from secateur.tasks.pairs import Pairs
from tasks import ROOT, TASKS, Task

HERE = Path(__file__).parent
SUMMARY, KEPT = HERE / "summary.json", HERE / "predictions"
BUDGETS = {arm: share for arm, (_, share) in ARMS.items()} | {"nni_tenth": 0.1}  # arm -> share of the full epochs
SCRIPTS = {"nni_tenth": "nni_arm.py {task}"}  # of the arms that contest.py does not run
CONTROLS = {"_tenth": "control_tenth", "_full": "control_full"}  # ending of an arm -> the dense model trained as long
LONGER = ("report_full", "report_half")  # what tenth arms are to be better than
NEAR = 1e-6  # of a recomputed mean
SAME_RATIO = 1e-3  # what the ratios of an arm's seeds may differ by
SEED = 42  # of the resampling

Entry = dict[str, Any]  # an arm's, of the summary


def kept_file(task: str, arm: str, seed: int) -> Path:
    """Name the file that keeps a run's outputs on test data, one a line, compressed."""
    return KEPT / f"{task}-{arm}-{seed}.txt.gz"


def facts_file(task: str, arm: str, seed: int) -> Path:
    """Name the file that keeps what a run's manifest says."""
    return KEPT / f"{task}-{arm}-{seed}.json"


def keep(task: Task, arm: str, seed: int, folder: Path, facts: dict[str, Any]) -> None:
    """Keep a finished run's outputs and facts."""
    write_json(facts_file(task.name, arm, seed), facts)
    rows = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    lines = [str(json.loads(row)["prediction"]) for row in rows]
    if any("\n" in line for line in lines):
        raise SecateurError(f"{folder}: an output holds a line break; it cannot be kept one a line.")
    text = "".join(f"{line}\n" for line in lines).encode()
    write_bytes(kept_file(task.name, arm, seed), gzip.compress(text, mtime=0))


def read_kept(task: str, arm: str, seed: int) -> list[str]:
    """Read what `keep` wrote."""
    return gzip.decompress(kept_file(task, arm, seed).read_bytes()).decode().split("\n")[:-1]


def score(task: Task, pairs: Pairs, outputs: Sequence[Sequence[str]]) -> tuple[Entry, np.ndarray]:
    """Score an arm's outputs of all seeds: the mean over seeds with an interval over rows, and resampled means."""
    names = [name for name in task.evaluation["metrics"] if task.metric.startswith(name)]
    # The same rows are drawn for every seed, so a resample's mean over seeds is a mean on those rows.
    samples = [resample(names, as_written(each, pairs.references), seed=SEED)[task.metric] for each in outputs]
    mean = float(np.mean([sample.value for sample in samples]))
    draws = np.mean([sample.resampled for sample in samples if sample.resampled is not None], axis=0)
    entry = {
        "metric": task.metric,
        "unit": samples[0].unit,
        "higher_is_better": samples[0].higher_is_better,
        "mean": mean,
        **bounds(mean, draws),
        "per_seed": [sample.value for sample in samples],
    }
    return entry, draws


def bounds(value: float, draws: np.ndarray) -> dict[str, float]:
    """Return the interval of a figure and its resampled values (resamples,)."""
    low, high = interval(np.array([value]), draws[:, None])
    return {"low": float(low[0]), "high": float(high[0])}


def with_distances(found: Mapping[str, tuple[Entry, np.ndarray]]) -> dict[str, Entry]:
    """Add how far each arm is from those it is judged by: the share of their score, or the points of an error rate."""
    for arm, (entry, draws) in found.items():
        control = next((control for ending, control in CONTROLS.items() if arm.endswith(ending)), arm)
        others = [control, *(LONGER if arm.endswith("_tenth") else ())]
        distance = np.divide if entry["higher_is_better"] else np.subtract
        entry["beside"] = {
            other: {
                "value": (value := float(distance(entry["mean"], found[other][0]["mean"]))),
                **bounds(value, distance(draws, found[other][1])),
            }
            for other in others
            if other in found and other != arm and not arm.startswith("control")
        }
    return {arm: entry for arm, (entry, _) in found.items()}


def finished(task: Task, place: Path) -> dict[str, dict[int, Path]]:
    """Find the finished runs of a task: arm -> seed -> folder, seeds ascending."""
    found: dict[str, dict[int, Path]] = {}
    for arm in BUDGETS:
        for folder in (place / task.name).glob(f"{arm}-[0-9]*"):
            if (folder / "manifest.json").exists() and read_manifest(folder)["status"] == "complete":
                found.setdefault(arm, {})[int(folder.name.rpartition("-")[2])] = folder
    return {arm: dict(sorted(folders.items())) for arm, folders in found.items()}


def kept(task: str) -> dict[str, list[int]]:
    """List what is kept of a task: arm -> seeds, both in order."""
    found: dict[str, list[int]] = {arm: [] for arm in BUDGETS}
    for file in KEPT.glob(f"{task}-*.json"):
        arm, _, seed = file.stem.removeprefix(f"{task}-").rpartition("-")
        found[arm].append(int(seed))
    return {arm: sorted(seeds) for arm, seeds in found.items() if seeds}


def summarise(task: Task, place: Path) -> dict[str, Any]:
    """Make a task's part of the summary, and keep outputs and facts of every run."""
    pairs = load_split(task.recipe([]), "test")
    for arm, folders in finished(task, place).items():
        for seed, folder in folders.items():
            manifest = read_manifest(folder)
            last = manifest["stages"][-1]
            if last["split"] != "test" or manifest["data"]["hashes"].get("test") != pairs.fingerprint():
                raise SecateurError(f"{folder}: was not measured on the whole test split. Run the arm anew.")
            keep(task, arm, seed, folder / last["folder"], facts_of(manifest) | {"definition": definition_of(folder)})
    arms = with_distances({arm: entry_of(task, pairs, arm, seeds) for arm, seeds in kept(task.name).items()})
    return with_one_dense(task, {"data_hash": pairs.fingerprint(), "rows": len(pairs), "arms": arms})


def facts_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Take what a summary says of a run from its manifest."""
    counts = manifest["stages"][-1]["counts"]
    trainings = [stage.get("train") or {} for stage in manifest["stages"]]
    epochs = sum(training.get("epochs", 0.0) for training in trainings)
    return {
        "counted_ratio": counts["counted_ratio"],
        "stored_ratio": counts["stored_ratio"],
        "epochs": round(epochs, 6),
        "minutes": round(sum(stage["seconds"] for stage in manifest["stages"]) / 60, 1),
        "dense_hash": (manifest["dense"] or {}).get("hash"),
        "threads": manifest["environment"].get("threads"),
        "precision": next((each["precision"] for each in trainings if each.get("precision")), None),
        "data_hash": manifest["data"]["hashes"]["test"],
    }


def definition_of(folder: Path) -> str | None:
    """Hash what a run's recipe does, whatever its seed, places and precision; None: a script ran it, not a recipe."""
    file = folder / "recipe.yaml"
    return _definition(load_recipe(file)) if file.exists() else None


def _definition(recipe: Recipe) -> str:
    values = recipe.model_dump(mode="json", include={"task", "evaluation", "stages"}, exclude_defaults=True)
    values["task"].pop("data")
    for stage in values["stages"]:  # precision is of the machine: bf16 where it is fast
        prune = stage.get("prune") or {}
        for part in (stage.get("train"), prune.get("train"), prune.get("calibration")):
            (part or {}).pop("precision", None)
        if not prune.get("calibration", True):
            del prune["calibration"]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def entry_of(task: Task, pairs: Pairs, arm: str, seeds: Sequence[int]) -> tuple[Entry, np.ndarray]:
    """Make an arm's entry and resampled means of its kept runs; what the seeds do not agree on is refused."""
    facts = {seed: read_json(facts_file(task.name, arm, seed)) for seed in seeds}
    budget = BUDGETS[arm] * task.full_epochs
    for seed, found in facts.items():
        if abs(found["epochs"] - budget) > 0.01 * budget:
            raise SecateurError(
                f"{task.name} {arm}-{seed}: trained {found['epochs']:g} epochs, its budget is {budget:g}: a quick run "
                "is no figure."
            )
        if found.get("definition") and found["definition"] != _definition(task.recipe(stages_of(task, arm))):
            raise SecateurError(
                f"{task.name} {arm}-{seed}: was run as the arm was defined then; its command runs another. "
                f"Remove it from {KEPT.relative_to(ROOT)}, or define the arm as it was."
            )
        for key in ("epochs", "dense_hash", "data_hash", "counted_ratio", "stored_ratio"):
            # Which of the weights go depends on the seed; how many, hardly: a head's view is stored where it is alive.
            near = isinstance(found[key], float) and abs(found[key] - facts[seeds[0]][key]) < SAME_RATIO
            if found[key] != facts[seeds[0]][key] and not near:
                raise SecateurError(
                    f"{task.name} {arm}: {key} is {facts[seeds[0]][key]} with seed {seeds[0]} and {found[key]} with "
                    f"{seed}: these are no runs of one arm."
                )
    outputs = [read_kept(task.name, arm, seed) for seed in seeds]
    entry, draws = score(task, pairs, outputs)
    more = {
        "seeds": list(seeds),
        **{key: value for key, value in facts[seeds[0]].items() if key not in ("definition", "precision")},
        "minutes": [found["minutes"] for found in facts.values()],
        "precision": [found.get("precision") for found in facts.values()],
        "command": _command(task.name, arm),
    }
    return entry | more, draws


def with_one_dense(task: Task, part: dict[str, Any]) -> dict[str, Any]:
    """Refuse arms that did not begin from the same dense model."""
    if len(hashes := {entry["dense_hash"] for entry in part["arms"].values()}) > 1:
        raise SecateurError(
            f"{task.name}: the arms began from {len(hashes)} dense models: {sorted(map(str, hashes))}. Remove from "
            f"{KEPT.relative_to(ROOT)} what does not begin from today's."
        )
    return part


def _command(task: str, arm: str) -> str:
    script = SCRIPTS.get(arm, "contest.py {task} {arm}").format(task=task, arm=arm)
    return f"python benchmarks/quality/{script} --seed SEED"


def check(summary: dict[str, Any]) -> list[str]:
    """Make every entry again of what is kept; list what differs, what is missing and what is too many."""
    faults = [] if summary["tasks"] else ["The summary is empty."]
    named = {
        file(name, arm, seed).name
        for name, part in summary["tasks"].items()
        for arm, entry in part["arms"].items()
        for seed in entry["seeds"]
        for file in (kept_file, facts_file)
    }
    there = {file.name for file in KEPT.iterdir()} if KEPT.exists() else set()
    faults += [f"{name}: is missing." for name in sorted(named - there)]
    faults += [f"{name}: is kept, and the summary does not name it." for name in sorted(there - named)]
    if named - there:
        return faults
    for name, part in summary["tasks"].items():
        task = TASKS[name]
        pairs = load_split(task.recipe([]), "test")
        if (pairs.fingerprint(), len(pairs)) != (part["data_hash"], part["rows"]):
            faults.append(f"{name}: the test data here are not those of the summary.")
            continue
        again = {arm: entry_of(task, pairs, arm, entry["seeds"]) for arm, entry in part["arms"].items()}
        for arm, found in with_distances(again).items():
            entry = part["arms"][arm]
            wrong = [key for key in {**found, **entry} if not _agree(found.get(key), entry.get(key))]
            faults += [
                f"{name} {arm}: {key} is {entry.get(key)}, what is kept gives {found.get(key)}." for key in wrong
            ]
        with_one_dense(task, part)
    return faults


def _agree(one: Any, two: Any) -> bool:
    """Compare values as JSON has them, numbers up to the last digits; NaN agrees with nothing."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(_agree(value, two[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(_agree, one, two))
    if isinstance(one, float) and isinstance(two, (int, float)):
        return abs(one - two) <= NEAR
    return one == two


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
    parser.add_argument("--check", action="store_true", help="make every entry again; exit 1 if one differs")
    parser.add_argument("--runs", type=Path, default=PLACE)
    arguments = parser.parse_args()
    if arguments.check:
        faults = check(read_json(SUMMARY))
        print("\n".join(faults) or "Every entry is as what is kept gives it.")
        return 1 if faults else 0
    tasks = {
        name: summarise(task, arguments.runs)
        for name, task in TASKS.items()
        if finished(task, arguments.runs) or kept(name)
    }
    if not tasks:
        print(f"{arguments.runs}: no finished arm.", file=sys.stderr)
        return 1
    summary = {"format": "secateur-contest", "version": 1, "tasks": tasks}
    write_json(SUMMARY, summary)
    print(table(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
