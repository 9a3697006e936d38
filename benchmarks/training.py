"""How long a retraining step takes, against Hugging Face's Seq2SeqTrainer with its defaults, at equal loss.

    python benchmarks/training.py [--quick] [--json FILE]

Both sides start from the same weights and take the same number of steps of the same number of rows with the same
optimizer (AdamW) and learning rate; the loss is then measured once, in fp32 and without dropout, on rows that neither
was trained on. The default side is Seq2SeqTrainer as it comes: fp32, sdpa attention, torch's dropout, rows in random
order, padded to the longest of a batch. Ours is `secateur.retrain.trainer.train` as a recipe runs it: bf16 where that
is fast, one random byte an element for dropout, rows batched by length. Each of these is then taken back alone, to see
what it is worth.

Shapes: g2p (the model that comes along, CMUdict, 128 rows), debian (recipes/debian/start on its data, 32 rows; left out
where the data is not there) and t5-small (random weights and ids, 5 rows of 1,024 and 128 tokens, as in the report).
--quick takes g2p only, and few steps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    PrinterCallback,
    ProgressCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

from common import environment, finish, parse_arguments, t5_small
from secateur.artifacts.loading import load_model, load_tokenizer
from secateur.masks.mask import MaskSet
from secateur.quiet import quiet_transformers
from secateur.retrain import trainer as retraining
from secateur.retrain.trainer import train
from secateur.tasks.encode import Collator, EncodedPairs, encode
from secateur.tasks.pairs import load_pairs
from secateur.tasks.precision import computes_bf16
from secateur.tasks.sampler import LengthSampler

ROOT = Path(__file__).parents[1]
DEBIAN_DATA = (ROOT / "recipes/debian/data", ROOT.parent / "shared/data/debian-synopsis")
WARM_UP = 2  # steps that are not timed
OURS: dict[str, Any] = {"precision": "auto", "attention": "eager", "by_length": True, "byte_dropout": True}
TAKEN_BACK: dict[str, dict[str, Any]] = {
    **({"fp32": {"precision": "fp32"}} if computes_bf16("cpu") else {}),  # ours is in fp32 elsewhere
    "sdpa": {"attention": "sdpa"},
    "random_order": {"by_length": False},
    "torch_dropout": {"byte_dropout": False},
}


@dataclass(frozen=True)
class Shape:
    """A model to train, its rows, and how: the last rows are kept for measuring the loss."""

    name: str
    make: Callable[[], Any]
    rows: EncodedPairs
    held_out: EncodedPairs
    padding: int
    batch_size: int
    learning_rate: float
    steps: int


class Clock(TrainerCallback):
    """Takes the time from the end of one step to the end of the next: loading of rows included."""

    def __init__(self) -> None:
        self.ends = [perf_counter()]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.ends.append(perf_counter())

    def seconds(self) -> list[float]:
        """Give the steps' durations, without the first ones."""
        return [end - start for start, end in zip(self.ends, self.ends[1:], strict=False)][WARM_UP:]


def spread(rows: EncodedPairs, count: int) -> EncodedPairs:
    """Take so many rows, evenly over all of them: the files may be in order."""
    chosen = [index * len(rows) // count for index in range(count)]
    return EncodedPairs([rows.input_ids[index] for index in chosen], [rows.labels[index] for index in chosen])


def g2p(steps: int) -> Shape:
    """The model that comes along, from its trained weights."""
    folder = str(ROOT / "recipes/g2p/dense")
    tokenizer = load_tokenizer(folder)
    limits = {"max_source_tokens": 40, "max_target_tokens": 40}
    splits = [
        encode(load_pairs("cmudict", split, source="word", target="phonemes"), tokenizer, **limits)
        for split in ("train", "validation")
    ]
    rows, held_out = spread(splits[0], 128 * steps), spread(splits[1], 512)
    return Shape("g2p", lambda: load_model(folder), rows, held_out, tokenizer.pad_token_id, 128, 1e-4, steps)


def debian(steps: int) -> Shape | None:
    """The summariser of recipes/debian, from random weights."""
    data = next((folder for folder in DEBIAN_DATA if folder.is_dir()), None)
    folder = ROOT / "recipes/debian/start"
    if data is None or not folder.is_dir():
        return None
    tokenizer = load_tokenizer(str(folder))
    columns: dict[str, Any] = {"source": "text", "target": "summary"}
    limits = {"max_source_tokens": 320, "max_target_tokens": 32}
    rows = encode(load_pairs(data, "train", **columns), tokenizer, **limits)
    held_out = encode(load_pairs(data, "validation[:128]", **columns), tokenizer, **limits)

    def make() -> Any:
        torch.manual_seed(0)
        return AutoModelForSeq2SeqLM.from_config(AutoConfig.from_pretrained(folder))

    return Shape("debian", make, spread(rows, 32 * steps), held_out, tokenizer.pad_token_id, 32, 1e-3, steps)


def report(steps: int) -> Shape:
    """T5-small's shape in the report's settings; random ids, for only the time is of interest."""
    generator = torch.Generator().manual_seed(0)

    def ids(rows: int, tokens: int) -> list[list[int]]:
        return torch.randint(3, 32_000, (rows, tokens), generator=generator).tolist()

    rows = EncodedPairs(ids(5 * steps, 1024), ids(5 * steps, 128))
    return Shape("t5-small", t5_small, rows, EncodedPairs(ids(5, 1024), ids(5, 128)), 0, 5, 2e-5, steps)


def train_default(model: Any, shape: Shape, clock: Clock, work: Path) -> None:
    """Train with Seq2SeqTrainer as it comes."""
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=shape.batch_size,
        learning_rate=shape.learning_rate,
        max_steps=shape.steps,
        seed=0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
    )
    # DataCollatorForSeq2Seq pads to the longest of a batch as ours does, and would want the tokenizer.
    trainer = Seq2SeqTrainer(
        model=model, args=arguments, train_dataset=shape.rows, data_collator=Collator(shape.padding), callbacks=[clock]
    )
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    with quiet_transformers():
        trainer.train()


def train_ours(model: Any, shape: Shape, clock: Clock, work: Path, **changes: Any) -> None:
    """Train as a recipe does, with some of its means taken back."""
    how = OURS | changes
    with dropout_of_torch(not how["byte_dropout"]):
        train(
            model,
            shape.rows,
            collate=Collator(shape.padding),
            sampler=LengthSampler(shape.rows.length_keys, shape.batch_size, seed=0, by_length=how["by_length"]),
            masks=MaskSet.empty(),
            work=work,
            epochs=1.0,
            learning_rate=shape.learning_rate,
            batch_size=shape.batch_size,
            precision=how["precision"],
            optimizer="adamw",
            momentum=None,
            weight_decay=0.0,
            schedule="linear",
            warmup_steps=0,
            accumulation=1,
            max_grad_norm=1.0,
            label_smoothing=0.0,
            dropout=None,
            attention=how["attention"],
            save_every=10**9,
            seed=0,
            callbacks=[clock],
        )


@contextmanager
def dropout_of_torch(wanted: bool) -> Iterator[None]:
    """Leave torch's own dropout in the model and its attention, where ours would take its place."""
    rate_of, attention_of = retraining.dropout_rate, retraining.attention_of
    if wanted:
        retraining.dropout_rate = lambda model, rate, *, device: rate_of(model, rate, device="as it is")
        retraining.attention_of = lambda model, attention, *, device: attention_of(model, attention, device="as it is")
    try:
        yield
    finally:
        retraining.dropout_rate, retraining.attention_of = rate_of, attention_of


@torch.inference_mode()
def loss_of(model: Any, shape: Shape) -> float:
    """Measure the mean loss per target token, in fp32, without dropout, in nats."""
    batch = Collator(shape.padding)([shape.held_out[index] for index in range(len(shape.held_out))])
    return float(model.float().eval()(**batch).loss)


def measure(shape: Shape, training: Callable[..., None], **changes: Any) -> tuple[float, float]:
    """Train once; give the mean seconds of a step, and the loss afterwards.

    The mean, not the median: batches of like length differ in length, and all of them must be gone through.
    """
    model: nn.Module = shape.make()
    clock = Clock()
    with tempfile.TemporaryDirectory() as work:
        training(model, shape, clock, Path(work), **changes)
    return mean(clock.seconds()), loss_of(model, shape)


def compare(shape: Shape, *, take_back: bool) -> dict[str, Any]:
    """Measure one shape; print as it goes."""
    print(f"{shape.name}: {shape.steps} steps of {shape.batch_size} rows")
    default, default_loss = measure(shape, train_default)
    print(f"  trainer's defaults  {1000 * default:9.1f} ms a step, loss {default_loss:.4f}")
    ours, loss = measure(shape, train_ours)
    print(f"  ours                {1000 * ours:9.1f} ms a step, loss {loss:.4f}: {default / ours:.2f} times faster")
    found: dict[str, Any] = {
        "ms_default": 1000 * default,
        "ms_ours": 1000 * ours,
        "times_faster_than_trainer": default / ours,
        "loss_default": default_loss,
        "loss_ours": loss,
        "steps": shape.steps,
        "batch_size": shape.batch_size,
    }
    for name, changes in TAKEN_BACK.items() if take_back else ():
        seconds, _ = measure(shape, train_ours, **changes)
        print(f"  ours, but {name:13} {1000 * seconds:6.1f} ms a step: {seconds / ours:.2f} times slower")
        found[f"slower_with_{name}"] = seconds / ours
    return found


def main() -> None:
    """Measure, print, write."""
    arguments = parse_arguments(__doc__ or "")
    results: dict[str, Any] = {"environment": environment(), "shapes": {}}
    if arguments.quick:
        shapes = [g2p(15)]
    else:
        found = debian(40)
        if found is None:
            print("debian: its data or recipes/debian/start is not there; left out.")
        shapes = [g2p(100), *([found] if found else []), report(8)]
    for shape in shapes:
        results["shapes"][shape.name] = compare(shape, take_back=not arguments.quick)
    results["times_faster_than_trainer"] = min(item["times_faster_than_trainer"] for item in results["shapes"].values())
    print(
        f"\ntimes_faster_than_trainer {results['times_faster_than_trainer']:.2f}  (the least of them; aim: at least 2)"
    )
    finish(results, arguments.json)


if __name__ == "__main__":
    main()
