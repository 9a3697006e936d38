"""What keeping the zeros costs a training step of T5-small.

    python benchmarks/keeper.py [--quick] [--json FILE]

Random weights of T5-small's shape, self-attention, cross-attention and feed-forward pruned as in the report (44 of its
60.5 million weights are masked), fused AdamW (the Trainer's default), gradients clipped, 4 x 512 source and 4 x 128
target tokens, all threads. The variants take turns within every repeat, so that a slow moment of the machine meets all:

- overhead: time spent in the keeper's own work inside a step (measured inside its hooks, where it cannot drown in the
  noise of a step) over the dense step's median.
- overhead_bf16: the same under bf16 autocast, where the processor has instructions for it.
- overhead_whole_step: the difference of whole steps instead; noisier.
- view_overhead: a masked view of the tied head instead, by the difference of whole steps.
- torch_hooks_overhead: the same masks through torch.nn.utils.prune's forward hooks, by the difference of whole steps.

--quick uses 4 x 128 and 4 x 32 tokens: a step is then so short that every share is larger than in real training.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

from common import REPORT_GROUPS, environment, finish, median, parse_arguments, seconds, t5_small
from secateur.anatomy.check import anatomy_of
from secateur.masks.group import prune_group
from secateur.masks.hold import attach
from secateur.masks.mask import MaskSet
from secateur.recipe.names import Role
from secateur.retrain import keeper
from secateur.tasks.precision import computes_bf16

Batch = dict[str, torch.Tensor]
HELD: tuple[Role, ...] = ("self_attention", "cross_attention", "feed_forward")


class Training:
    """A model, its optimizer and its texts."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        self.model, self.batch = model.train(), batch
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(self, dtype: torch.dtype = torch.float32) -> float:
        """Take one whole step; give its seconds."""
        return seconds(lambda: self._step(dtype))[0]

    def _step(self, dtype: torch.dtype) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = self.model(**self.batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def make_masks(model: nn.Module, *roles: Role) -> MaskSet:
    """Prune some of the report's groups; a tied head as a view."""
    anatomy, masks, modes = anatomy_of(model), {}, {}
    for role in roles:
        weights = anatomy.select(role=role)
        masks |= prune_group(model, weights, already=MaskSet.empty(), sparsity=REPORT_GROUPS[role])
        modes |= dict.fromkeys((weight.path for weight in weights), "view" if role == "lm_head" else "hold")
    return MaskSet(masks, modes, anatomy.fingerprint())


def with_torch_hooks(model: nn.Module, masks: MaskSet) -> nn.Module:
    """Lay masks on a model the way torch does: a hook multiplies weight and mask before every forward pass."""
    for path, mask in masks.masks.items():
        prune.custom_from_mask(model.get_submodule(path.removesuffix(".weight")), "weight", mask)
    return model


@contextmanager
def keeper_clock() -> Iterator[list[float]]:
    """Time the keeper's only work, `zero_dead_`: the list's one entry sums its seconds."""
    original, spent = keeper.zero_dead_, [0.0]

    def timed(*arguments: Any) -> None:
        start = perf_counter()
        original(*arguments)
        spent[0] += perf_counter() - start

    keeper.zero_dead_ = timed
    try:
        yield spent
    finally:
        keeper.zero_dead_ = original


def measure(arguments: Any) -> dict[str, list[float]]:
    """Run all variants in turn; seconds per step and variant, the first repeat (warming up) left out."""
    num_source, num_target = (128, 32) if arguments.quick else (512, 128)
    model = t5_small()
    vocabulary = model.config.vocab_size
    batch = {
        "input_ids": torch.randint(2, vocabulary, (4, num_source)),
        "labels": torch.randint(2, vocabulary, (4, num_target)),
    }
    held, view = make_masks(model, *HELD), make_masks(model, "lm_head")
    hooked = Training(with_torch_hooks(copy.deepcopy(model), held), batch)
    kept_model = copy.deepcopy(model)
    attach(kept_model, held)
    dense, kept = Training(model, batch), Training(kept_model, batch)
    times: dict[str, list[float]] = {}
    for _ in range(1 + (3 if arguments.quick else 5)):
        for name, value in turn(dense, kept, hooked, held=held, view=view).items():
            times.setdefault(name, []).append(value)
        print(".", end="", flush=True)
    print()
    return {name: values[1:] for name, values in times.items()}


def turn(dense: Training, kept: Training, hooked: Training, *, held: MaskSet, view: MaskSet) -> dict[str, float]:
    """Take one step of every variant."""
    times = {"dense": dense.step(), "torch_hooks": hooked.step()}
    with keeper_clock() as spent, keeper.keep(kept.optimizer, kept.model, held):
        spent[0] = 0.0  # laying the masks on the moments happens once, not in every step
        times["kept"] = kept.step()
        times["keeper"] = spent[0]
        if computes_bf16("cpu"):
            spent[0] = 0.0
            times["kept_bf16"] = kept.step(torch.bfloat16)
            times["keeper_bf16"] = spent[0]
    if computes_bf16("cpu"):
        times["dense_bf16"] = dense.step(torch.bfloat16)
    with attach(dense.model, view):
        times["view"] = dense.step()
    return times


def main() -> None:
    """Measure, print, and write the JSON file."""
    arguments = parse_arguments(__doc__ or "")
    facts = environment()
    times = measure(arguments)
    medians = {name: median(values) for name, values in times.items()}

    def extra(name: str) -> float:
        return median([a - b for a, b in zip(times[name], times["dense"], strict=True)]) / medians["dense"]

    results = {
        "overhead": medians["keeper"] / medians["dense"],
        "overhead_bf16": medians["keeper_bf16"] / medians["dense_bf16"] if "dense_bf16" in medians else None,
        "overhead_whole_step": extra("kept"),
        "view_overhead": extra("view"),
        "torch_hooks_overhead": extra("torch_hooks"),
        "median_seconds": medians,
        "repeats": len(times["dense"]),
        "conditions": "fp32 unless said, fused AdamW, "
        + ("4 x 128 + 4 x 32" if arguments.quick else "4 x 512 + 4 x 128"),
        "environment": facts,
    }
    for name, value in medians.items():
        print(f"{name:12} {value * 1000:9.1f} ms")
    for name in ("overhead", "overhead_bf16", "overhead_whole_step", "view_overhead", "torch_hooks_overhead"):
        share = "not measured" if results[name] is None else f"{100 * results[name]:6.2f} %"
        print(f"{name:20} {share}" + ("  (aim: at most 3 %)" if name == "overhead" else ""))
    finish(results, arguments.json)


if __name__ == "__main__":
    main()
