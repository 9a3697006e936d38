"""The contest: the report's way, others' and ours, at the report's four sparsities, with its retraining or a tenth.

    python benchmarks/quality/contest.py g2p ours_tenth --seed 1

Runs one arm of one task with one seed into runs/contest/TASK/ARM-SEED, and goes on where it was stopped. Full arms
get 40 epochs of retraining on g2p and 10 on Debian, spread over the report's four stages in its own shares
15 : 20 : 15 : 30; tenth arms a tenth of that; on Debian, where a full arm takes hours, `report_half` gets half of it.
`summary.py` makes the table of what is there.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from secateur.files import write_text
from secateur.recipe.load import dump_recipe, load_recipe
from tasks import ROOT, SHARES, SPARSITIES, TASKS, Task

Stages = list[dict[str, Any]]
ROUNDS = 4  # of torch_prune
CALIBRATION = {"rows": 1024, "batch_size": 32}
PLACE = ROOT / "runs" / "contest"


def _group(role: str, *, tie: str = "view", **keys: Any) -> dict[str, Any]:
    head = {"tie": tie} if role == "lm_head" else {}
    return {"role": role, "sparsity": SPARSITIES[role], **head, **keys}


def _report(task: Task, epochs: float) -> Stages:
    """One role after the other, each by one global magnitude threshold, retrained before the next."""
    stages: Stages = []
    for role, share in SHARES.items():
        part = epochs * share / sum(SHARES.values())
        stages.append({"name": role, "prune": {"groups": [_group(role)]}})
        stages.append({"name": f"retrain-{role}", "train": {**task.retrain, "epochs": part}})
    return stages


def _control(task: Task, epochs: float) -> Stages:
    """The dense model, given the same extra training."""
    return [{"name": "train", "train": {**task.retrain, "epochs": epochs}}]


def _torch_prune(task: Task, epochs: float) -> Stages:
    """All roles together in four rounds, each of which takes the same share of what remains, as torch.prune counts.

    A role is pruned by one threshold of magnitude, which is `global_unstructured` with `L1Unstructured`; that both
    choose the same masks is tested (tests/masks/test_torch_prune.py).
    """
    stages: Stages = []
    for number in range(1, ROUNDS + 1):
        groups = [_group(role) for role in SPARSITIES]
        for group in groups:
            group["sparsity"] = 1.0 - (1.0 - group["sparsity"]) ** (number / ROUNDS)
        stages.append({"name": f"prune-{number}", "prune": {"groups": groups}})
        stages.append({"name": f"retrain-{number}", "train": {**task.retrain, "epochs": epochs / ROUNDS}})
    return stages


def _at_once(task: Task, epochs: float, groups: list[dict[str, Any]]) -> Stages:
    """All groups at once, then one retraining, in which the dense model teaches."""
    return [
        {"name": "prune", "prune": {"groups": groups, "calibration": CALIBRATION}},
        {"name": "retrain", "train": {**task.retrain, "epochs": epochs, "teacher": "given"}},
    ]


def _ours(task: Task, epochs: float) -> Stages:
    """All roles at once by obs, row by row, which adjusts what stays; then one retraining with the dense model's help.

    The head gets its own table, for a view of the shared one cannot be adjusted.
    """
    return _with_hidden_states(task, _logits(task, epochs))


def _with_hidden_states(task: Task, stages: Stages) -> Stages:
    """Let the last training learn what the task's ours learns beside the dense model's logits."""
    if task.distillation:
        stages[-1]["train"]["distillation"] = task.distillation
    return stages


def _logits(task: Task, epochs: float) -> Stages:
    """As ours, but learning from the dense model's logits alone: on g2p that is ours."""
    groups = [_group(role, score="obs", scope="row", tie="untie") for role in SPARSITIES]
    return _at_once(task, epochs, groups)


def _fisher(task: Task, epochs: float) -> Stages:
    """One threshold a matrix, under which rows that the loss feels more keep more; layers aim at the dense model."""
    groups = [_group(role, score="obs_fisher", scope="tensor", tie="untie") for role in SPARSITIES]
    stages = _with_hidden_states(task, _at_once(task, epochs, groups))
    stages[0]["prune"]["calibration"] = {**CALIBRATION, "aim": "dense"}
    return stages


def _tensor(task: Task, epochs: float) -> Stages:
    """As logits, but one threshold for each matrix, and the head a view of the shared table, which is not adjusted."""
    groups = [_group(role, score="obs", scope="tensor") for role in SPARSITIES]
    return _at_once(task, epochs, groups)


def _search(task: Task, epochs: float) -> Stages:
    """As ours, with the sparsities of each layer of each role that `secateur search` found for the same counted ratio.

    secateur search recipes/TASK/dense-long --recipe recipes/TASK/best.yaml --counted 0.2862 (Debian: 0.2671)
    --per-layer --score obs --scope row --tie untie --sparsities 0.3,0.5,0.7,0.8,0.9,0.95 --out runs/search-TASK
    (Debian: --rows 256 --set stages.0.prune.calibration.rows=512 too); its recipe.yaml is kept as
    recipes/TASK/searched.yaml
    """
    if not task.searched.exists():
        raise SystemExit(f"{task.searched}: no such file. Search first: {_search.__doc__}")
    prune = load_recipe(task.searched).stages[0].prune
    assert prune is not None
    groups = [group.model_dump(exclude_defaults=True) for group in prune.groups]
    return _with_hidden_states(task, _at_once(task, epochs, groups))


ARMS: dict[str, tuple[Callable[[Task, float], Stages], float]] = {
    "dense": (lambda task, epochs: [], 0.0),
    "control_full": (_control, 1.0),
    "control_tenth": (_control, 0.1),
    "report_full": (_report, 1.0),
    "report_half": (_report, 0.5),
    "report_tenth": (_report, 0.1),
    "torch_prune_tenth": (_torch_prune, 0.1),
    "ours_tenth": (_ours, 0.1),
    "logits_tenth": (_logits, 0.1),
    "fisher_tenth": (_fisher, 0.1),
    "tensor_tenth": (_tensor, 0.1),
    "search_tenth": (_search, 0.1),
}


def stages_of(task: Task, arm: str) -> Stages:
    """Write the stages of an arm.

    Args:
        task: of the contest.
        arm: a key of ARMS.

    Returns:
        Stages of a recipe, without the evaluation on test data.
    """
    make, share = ARMS[arm]
    stages = make(task, share * task.full_epochs)
    for stage in stages:
        if "train" in stage:
            stage["train"]["dropout"] = task.dropout[share]
    return stages


def main() -> None:
    """Run one arm, or go on with it: hands over to `secateur run`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dense", type=Path, help="the dense model's folder; default: what dense-long.yaml leaves")
    parser.add_argument("--tune", metavar="NAME", help="try something on validation data alone, into runs/tune")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="try something: change one value")
    parser.add_argument("--out", type=Path, default=PLACE)
    parser.add_argument("--threads", default=str(os.cpu_count()))
    arguments = parser.parse_args()
    task = TASKS[arguments.task]
    place = ROOT / "runs" / "tune" if arguments.tune else arguments.out
    folder = place / task.name / f"{arguments.arm}-{arguments.tune or arguments.seed}"
    options = ["--threads", arguments.threads]
    stages = stages_of(task, arguments.arm)
    recipe = task.recipe(stages, seed=arguments.seed, model=arguments.dense, tuning=bool(arguments.tune))
    file, text = folder.with_suffix(".yaml"), dump_recipe(recipe)
    text += "".join(f"# --set {change}\n" for change in arguments.set)
    if (folder / "recipe.yaml").exists():
        if file.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{folder}: was begun as {file.name} says, and the arm is another now. Move both away.")
        options += ["--resume", str(folder)]
    else:
        write_text(file, text)
        options += [str(file), "--out", str(folder), *(part for change in arguments.set for part in ("--set", change))]
    os.execv(sys.executable, [sys.executable, "-m", "secateur", "run", *options])


if __name__ == "__main__":
    main()
