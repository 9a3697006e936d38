"""The contest's arm of NNI 3.0: AGP over LevelPruner, through NNI's own API, with the budget of a tenth.

    pip install nni==3.0 && python benchmarks/quality/nni_arm.py g2p --seed 1

NNI keeps no state of a training on disk: an arm that is stopped begins anew. Its wrappers train a head of their own
where the model ties the head to the embedding, so that the pruned model has one table more; see `tied` in what is
written. Every matrix has a threshold of its own, NNI's default: one for a whole role (global_group_id) pushes every
single weight through a heap in Python at each of AGP's steps. The outcome stands beside the other arms, in
runs/contest/TASK/nni_tenth-SEED.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from contest import PLACE, ROUNDS
from transformers.optimization import Adafactor

from secateur.artifacts.loading import load_model, load_tokenizer
from secateur.artifacts.manifest import artefact_hash, environment, write_manifest
from secateur.evaluation.evaluate import evaluate_model, write_predictions
from secateur.fields import encode_rows, evaluation_arguments, load_split
from secateur.recipe.schema import Recipe
from secateur.retrain.attention import attention_of
from secateur.retrain.dropout import dropout_rate
from secateur.tasks.encode import Collator
from secateur.tasks.precision import PRECISIONS, resolve_precision
from secateur.tasks.sampler import LengthSampler
from tasks import ROOT, SPARSITIES, TASKS, Task

NAMES = {"self_attention": "SelfAttention", "cross_attention": "EncDecAttention", "feed_forward": "DenseReluDense"}
TIMES = 10 * ROUNDS  # that AGP prunes, over the first 70 % of the steps
END = 0.7


def config_list() -> list[dict[str, Any]]:
    """Write the report's sparsities as NNI takes them; every matrix has a threshold of its own, NNI's default."""
    groups = [
        {"op_names_re": [rf".*\.{name}\..*"], "op_types": ["Linear"], "sparse_ratio": SPARSITIES[role]}
        for role, name in NAMES.items()
    ]
    return [*groups, {"op_names": ["lm_head"], "sparse_ratio": SPARSITIES["lm_head"]}]


class Training:
    """The task's retraining as a loop of its own, for NNI hands in the optimizer that it watches.

    Args:
        recipe: says task and data.
        model: the dense model.
        tokenizer: its.
        settings: of the retraining.
        seed: of the order.
        device: cpu, cuda or mps.
    """

    def __init__(
        self, recipe: Recipe, model: Any, tokenizer: Any, settings: dict[str, Any], *, seed: int, device: str
    ) -> None:
        self.settings, self.device = settings, device
        self.dtype = PRECISIONS[settings["precision"]]
        self.rows = encode_rows(recipe, load_split(recipe, "train"), tokenizer, model)
        self.sampler = LengthSampler(self.rows.length_keys, settings["batch_size"], seed=seed)
        self.collate = Collator(tokenizer.pad_token_id)
        self.num_steps = math.ceil(settings["epochs"] * math.ceil(len(self.rows) / settings["batch_size"]))

    def step(self, batch: dict[str, torch.Tensor], model: Any, *_: Any, **__: Any) -> torch.Tensor:
        """Compute the loss of a batch, as NNI asks for it."""
        labels = batch["labels"]
        with torch.autocast(self.device, dtype=self.dtype, enabled=self.dtype is not None):
            logits = model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels),
                use_cache=False,
            ).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())

    def run(
        self, model: Any, optimizer: Any, step: Callable[..., torch.Tensor], scheduler: Any, max_steps: int, *_: Any
    ) -> None:
        """Train for so many steps, as NNI asks for it."""
        peak, warmup = self.settings["learning_rate"], self.settings["warmup_steps"]
        started = time.monotonic()
        model.train()
        for number, batch in enumerate(self._batches(), start=1):
            rising = number / warmup
            falling = 0.5 * (1 + math.cos(math.pi * max(0, number - warmup) / max(1, max_steps - warmup)))
            for group in optimizer.param_groups:
                group["lr"] = peak * min(rising, falling)
            optimizer.zero_grad()
            loss = step(batch, model)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if number % 100 == 0:
                print(f"{number}/{max_steps} loss {loss.item():.3f} {time.monotonic() - started:.0f} s", flush=True)
            if number == max_steps:
                return

    def _batches(self) -> Iterator[dict[str, torch.Tensor]]:
        epoch, size = 0, self.settings["batch_size"]
        while True:
            self.sampler.set_epoch(epoch)
            order = list(self.sampler)
            for start in range(0, len(order), size):
                batch = self.collate([self.rows[index] for index in order[start : start + size]])
                yield {name: tensor.to(self.device) for name, tensor in batch.items()}
            epoch += 1


def prune(model: Any, training: Training) -> dict[str, torch.Tensor]:
    """Prune and retrain through NNI, and write its zeros, which its own `unwrap_model` leaves out.

    Args:
        model: the dense model; it is changed.
        training: the loop.

    Returns:
        Module name -> mask, True = keep.
    """
    # A peer, for this arm only: it is no dependency of the project.
    import nni  # pyright: ignore[reportMissingImports]
    from nni.compression import TorchEvaluator  # pyright: ignore[reportMissingImports]
    from nni.compression.pruning import AGPPruner, LevelPruner  # pyright: ignore[reportMissingImports]

    settings = {"lr": 1.0, "scale_parameter": True, "relative_step": False, "warmup_init": False}
    optimizer = nni.trace(Adafactor)(model.parameters(), **settings)
    evaluator = TorchEvaluator(training.run, optimizer, training.step)
    interval = max(1, int(END * training.num_steps / TIMES))
    pruner = AGPPruner(LevelPruner(model, config_list(), evaluator), interval_steps=interval, total_times=TIMES)
    _, found = pruner.compress(max_steps=training.num_steps, max_epochs=None)
    pruner.unwrap_model()
    masks = {name: each["weight"].bool() for name, each in found.items()}
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_submodule(name).weight.masked_fill_(~mask, 0.0)
    return masks


def run(task: Task, *, seed: int, device: str, folder: Path, dense: Path, tuning: bool) -> dict[str, Any]:
    """Run the arm, and write what the summary reads."""
    started = time.monotonic()
    torch.manual_seed(seed)
    recipe = task.recipe([], seed=seed, model=dense)
    model: Any = load_model(str(dense))
    model.to(device)
    tokenizer = load_tokenizer(str(dense))
    num_dense = sum(parameter.numel() for parameter in model.parameters())
    settings = {**task.retrain, "epochs": 0.1 * task.full_epochs, "dropout": task.dropout[0.1]}
    settings["precision"] = resolve_precision("auto", device)
    training = Training(recipe, model, tokenizer, settings, seed=seed, device=device)
    with dropout_rate(model, settings["dropout"], device=device), attention_of(model, "eager", device=device):
        masks = prune(model, training)
    tied = model.lm_head.weight is model.shared.weight
    split = "validation" if tuning else "test"
    pairs = load_split(recipe, split)
    result = evaluate_model(
        model.eval(), tokenizer, pairs, **evaluation_arguments(recipe, recipe.evaluation),
        metrics=recipe.evaluation.metrics, device=device,
    )  # fmt: skip
    write_predictions(folder / "final" / "predictions.jsonl", pairs, result.predictions)
    removed = sum(int((~mask).sum()) for mask in masks.values())
    nonzero = sum(int((parameter != 0).sum()) for parameter in model.parameters())
    entry = {
        "name": "final",
        "kind": "evaluate",
        "folder": "final",
        "split": split,
        "seconds": time.monotonic() - started,
        "counts": {"counted_ratio": 1 - removed / num_dense, "stored_ratio": nonzero / num_dense},
        "metrics": {name: asdict(figure) for name, figure in result.figures.items()},
        "train": {"epochs": settings["epochs"], "steps": training.num_steps, "precision": settings["precision"]},
        "tied": tied,
    }
    hashes = {split: pairs.fingerprint()}
    about = {"dense": {"hash": artefact_hash(str(dense))}, "data": {"hashes": hashes, "rows": {split: len(pairs)}}}
    write_manifest(folder, {"status": "complete", "stages": [entry], "environment": environment(device), **about})
    return entry


def main() -> None:
    """Run the arm unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dense", type=Path, help="the dense model's folder; default: what dense-long.yaml leaves")
    parser.add_argument("--tune", metavar="NAME", help="on validation data, into runs/tune")
    parser.add_argument("--out", type=Path, default=PLACE)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    task = TASKS[arguments.task]
    place = ROOT / "runs" / "tune" if arguments.tune else arguments.out
    folder = place / task.name / f"nni_tenth-{arguments.tune or arguments.seed}"
    if (folder / "manifest.json").exists():
        print(f"{folder}: there already.")
        return
    entry = run(
        task, seed=arguments.seed, device=arguments.device, folder=folder, dense=arguments.dense or task.dense,
        tuning=bool(arguments.tune),
    )  # fmt: skip
    print({name: figure["value"] for name, figure in entry["metrics"].items()}, entry["counts"], "tied:", entry["tied"])


if __name__ == "__main__":
    main()
