"""Before any retraining: quality by every score at 50, 70 and 80 % of the non-embedding weights.

    python benchmarks/quality/scores.py g2p

Every score prunes the same matrices (attention and feed-forward, both stacks) at once, with one threshold for all of
them and with one for each (scope global and tensor). `torch_prune` is torch.nn.utils.prune's global L1 on the same
matrices. Nothing is retrained; quality is that of validation data. Cells stand in runs/scores/TASK: a call that was
stopped goes on. --scores measures some alone; --quick takes few rows and writes elsewhere.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import prune

from secateur.artifacts.manifest import artefact_hash, environment
from secateur.files import read_json, write_json
from secateur.masks.scores import SCORES, needs
from secateur.masks.statistics import LEARNED, Statistics
from secateur.plan_groups import Target
from secateur.probe import open_dense, pruned, quality
from secateur.recipe.schema import Calibration
from secateur.report.drawing import GREY, line_style, new_figure, plain, quality_label, write_png
from secateur.report.sections import markdown_table
from secateur.report.table import figure_text
from secateur.shaping import gather
from secateur.state import Live, Run
from tasks import NON_EMBEDDING, ROOT, TASKS, Task

SPARSITIES = (0.5, 0.7, 0.8)
CALIBRATION = Calibration(rows=512, batch_size=32)
TORCH = "torch_prune"


class Bench:
    """A dense model of a task, and what scores ask of it."""

    def __init__(self, task: Task, dense: Path, folder: Path, *, rows: int | None, device: str) -> None:
        self.recipe = task.recipe([], model=dense)
        state, live = open_dense(self.recipe, str(dense), folder, device=device)
        self.state: Run = state
        self.live: Live = live
        pairs = state.load("validation")
        self.pairs = pairs.head(rows) if rows else pairs
        weights = tuple(weight for weight in live.anatomy.weights if weight.role in NON_EMBEDDING)
        self.target = Target(weights, "hold")
        self._known: dict[frozenset[str], dict[str, Statistics]] = {frozenset(): {}}

    def statistics(self, score: str) -> dict[str, Statistics]:
        """Gather what a score asks, once."""
        asked = needs(score)
        if asked not in self._known:
            wanted = dict.fromkeys(self.target.weights, asked)
            self._known[asked] = gather(self.state, self.live, wanted, CALIBRATION)
        return self._known[asked]

    def measure(self) -> dict[str, Any]:
        """Evaluate the model as it is."""
        return quality(self.state, self.live, self.pairs, self.recipe.evaluation.metrics)

    @contextmanager
    def pruned_by_torch(self, sparsity: float) -> Iterator[int]:
        """Prune with torch's own global L1, and take it off again."""
        layers = [
            (self.live.model.get_submodule(weight.path.rpartition(".")[0]), "weight") for weight in self.target.weights
        ]
        before = [layer.weight.detach().clone() for layer, _ in layers]
        prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=sparsity)
        try:
            yield sum(int((layer.weight_mask == 0).sum()) for layer, _ in layers)
        finally:
            for (layer, name), weight in zip(layers, before, strict=True):
                prune.remove(layer, name)
                with torch.no_grad():
                    layer.weight.copy_(weight)


def cells() -> list[tuple[str, str, float]]:
    """List what is measured: score, scope, sparsity; the dense model first."""
    judged = [score for score in SCORES if needs(score).isdisjoint(LEARNED)]
    scored = [(score, scope) for score in judged for scope in ("global", "tensor")]
    return [("dense", "-", 0.0), *((*pair, s) for pair in [(TORCH, "global"), *scored] for s in SPARSITIES)]


def measure(bench: Bench, score: str, scope: Any, sparsity: float) -> dict[str, Any]:
    """Measure one cell."""
    entry: dict[str, Any] = {"score": score, "scope": scope, "sparsity": sparsity}
    if score == "dense":
        return entry | {"num_removed": 0, "metrics": bench.measure()}
    if score == TORCH:
        with bench.pruned_by_torch(sparsity) as removed:
            return entry | {"num_removed": removed, "metrics": bench.measure()}
    with pruned(
        bench.state,
        bench.live,
        bench.target,
        sparsity=sparsity,
        score=score,
        scope=scope,
        statistics=bench.statistics(score),
        calibration=CALIBRATION,
    ) as masks:
        return entry | {"num_removed": masks.num_removed, "metrics": bench.measure()}


def table(found: list[dict[str, Any]], metric: str) -> str:
    """Lay the cells out, a row for each score and scope."""
    rows = []
    for (score, scope), mine in by_score(found, metric).items():
        shown = [figure_text(mine[sparsity]) if sparsity in mine else "–" for sparsity in SPARSITIES]
        rows.append([score, scope, *shown])
    dense = next(cell for cell in found if cell["score"] == "dense")["metrics"][metric]
    header = ["score", "scope", *(f"{sparsity:.0%}" for sparsity in SPARSITIES)]
    return f"{markdown_table(header, rows)}\n\nDense: {figure_text(dense)}."


def by_score(found: list[dict[str, Any]], metric: str) -> dict[tuple[str, str], dict[float, dict[str, Any]]]:
    """Sort the cells: score and scope -> sparsity -> figure; without the dense model."""
    lines: dict[tuple[str, str], dict[float, dict[str, Any]]] = {}
    for cell in found:
        if cell["score"] != "dense":
            lines.setdefault((cell["score"], cell["scope"]), {})[cell["sparsity"]] = cell["metrics"][metric]
    return lines


def draw(found: list[dict[str, Any]], metric: str, path: Path) -> None:
    """Draw the main figure over the sparsity, one line for each score at its better scope."""
    dense = next(cell for cell in found if cell["score"] == "dense")["metrics"][metric]
    sign = 1 if dense["higher_is_better"] else -1
    lines: dict[str, tuple[str, list[float]]] = {}  # score -> scope and values, of its better scope
    for (score, scope), mine in by_score(found, metric).items():
        values = [mine[sparsity]["value"] for sparsity in SPARSITIES]
        if score not in lines or sign * sum(values) > sign * sum(lines[score][1]):
            lines[score] = scope, values
    figure = new_figure(8, 5)
    axes = figure.subplots()
    ordered = sorted(lines.items(), key=lambda line: -sign * line[1][1][-1])
    for index, (score, (scope, values)) in enumerate(ordered):
        axes.plot(SPARSITIES, values, **line_style(index), label=f"{score}, {scope}", linewidth=1.2)
    axes.axhline(dense["value"], color=GREY, linestyle=":", linewidth=1)
    place = {"xytext": (0, 4 if sign > 0 else -12), "textcoords": "offset points", "ha": "right"}  # off the lines
    axes.annotate("dense", (SPARSITIES[-1], dense["value"]), fontsize=9, **place)
    if sign < 0:
        axes.set_yscale("log")
    axes.set_xticks(SPARSITIES, [f"{sparsity:.0%}" for sparsity in SPARSITIES])
    axes.set_xlabel("share of the non-embedding weights removed")
    axes.set_ylabel(quality_label(metric, dense))
    plain(axes)
    axes.legend(frameon=False, fontsize=8)
    figure.suptitle("Before any retraining, each score at its better scope (validation)", fontsize=11)
    write_png(figure, path)


def main() -> None:
    """Measure all cells that are not there yet, then write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--dense", type=Path, help="the dense model's folder; default: what dense-long.yaml leaves")
    parser.add_argument("--quick", action="store_true", help="32 rows, two scores")
    known = list(dict.fromkeys(score for score, _, _ in cells()))
    parser.add_argument("--scores", nargs="+", choices=known, help="only these, and the dense model")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    task = TASKS[arguments.task]
    dense = (arguments.dense or task.dense).resolve()
    folder = ROOT / "runs" / ("scores-quick" if arguments.quick else "scores") / task.name
    bench = Bench(task, dense, folder, rows=32 if arguments.quick else None, device=arguments.device)
    about = {
        "task": task.name,
        "hash": artefact_hash(str(dense)),
        "data_hash": bench.pairs.fingerprint(),
        "calibration": CALIBRATION.model_dump(),
    }
    claim = folder / "about.json"
    if claim.exists() and read_json(claim) != about:
        raise SystemExit(f"{folder}: holds cells of another model or other data. Move it away.")
    write_json(claim, about)
    wanted = arguments.scores or ([TORCH, "lamp", "obs"] if arguments.quick else known)
    chosen = [cell for cell in cells() if cell[0] in ("dense", *wanted)]
    found = []
    for number, (score, scope, sparsity) in enumerate(chosen, start=1):
        file = folder / f"{score}-{scope}-{sparsity:g}.json"
        if not file.exists():
            print(f"{number}/{len(chosen)} {score} {scope} {sparsity:g}", flush=True)
            write_json(file, measure(bench, score, scope, sparsity))
        found.append(read_json(file))
    write_json(folder / "scores.json", about | {"environment": environment(arguments.device), "cells": found})
    print(table(found, task.metric))
    draw(found, task.metric, folder / "scores.png")
    print(f"Written: {folder / 'scores.json'}, scores.png")


if __name__ == "__main__":
    main()
