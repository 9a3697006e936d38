"""What every score of single weights costs on T5-small's shape, beyond the calibration passes that it asks for.

    python benchmarks/scores.py [--quick] [--json FILE]

One group: all matrices of attention and feed-forward layers, 70 % removed. Each score gathers what it asks of the same
calibration rows (random tokens, 256 in, 64 out), scores, and allocates; obs and obs_fisher adjust what stays as well.
The passes are timed alone in the same run: forward for activations, forward and backward for gradients.

- seconds: all of it. beyond: less the passes (for obs and obs_fisher nothing is taken off).
- peak: how far resident memory rises at most, beyond what the passes alone need; also over one copy of the group.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from common import environment, finish, parse_arguments, peak_bytes, seconds, t5_small
from secateur.anatomy.check import anatomy_of
from secateur.anatomy.roles import Weight
from secateur.masks.group import prune_group
from secateur.masks.mask import MaskSet
from secateur.masks.moments import Batch
from secateur.masks.reconstruct import reconstruct
from secateur.masks.scores import ADJUSTING, SCORES, needs
from secateur.masks.statistics import GRADIENTS, LEARNED, Statistics, gather_statistics, passes
from secateur.tasks.reading import batch_loss

ROLES = ("self_attention", "cross_attention", "feed_forward")
SOURCE_TOKENS, TARGET_TOKENS, BATCH_SIZE = 256, 64, 16
SPARSITY = 0.7


def batches(model: Any, rows: int) -> list[Batch]:
    """Draw calibration rows."""
    drawn = torch.Generator().manual_seed(0)
    size = model.config.vocab_size
    return [
        {
            "input_ids": torch.randint(2, size, (BATCH_SIZE, SOURCE_TOKENS), generator=drawn),
            "attention_mask": torch.ones(BATCH_SIZE, SOURCE_TOKENS, dtype=torch.long),
            "labels": torch.randint(2, size, (BATCH_SIZE, TARGET_TOKENS), generator=drawn),
        }
        for _ in range(rows // BATCH_SIZE)
    ]


loss = partial(batch_loss, precision="auto")  # as a run does


def pass_through(model: nn.Module, rows: list[Batch], weights: tuple[Weight, ...], *, backward: bool) -> None:
    """Pass the calibration rows through the model and keep nothing."""
    chosen = {id(model.get_parameter(weight.path)) for weight in weights}
    for parameter in model.parameters():
        parameter.requires_grad_(backward and id(parameter) in chosen)
    for batch in rows:
        with torch.set_grad_enabled(backward):
            found = loss(model, batch)
        if backward:
            found.backward()
            model.zero_grad(set_to_none=True)


def judge(model: nn.Module, rows: list[Batch], weights: tuple[Weight, ...], score: str) -> None:
    """Do what a prune stage does with one group, but lay no masks."""
    statistics: dict[str, Statistics] = {}
    if names := needs(score):
        wanted: Mapping[Weight, Any] = dict.fromkeys(weights, names)
        for part in passes(wanted):
            statistics |= gather_statistics(model, part, rows, loss=loss)
    masks = prune_group(
        model, weights, already=MaskSet.empty(), sparsity=SPARSITY, score=score, statistics=statistics, scope="tensor"
    )
    if score in ADJUSTING:
        reconstruct(model, {weight: masks[weight.path] for weight in weights}, rows, forward=loss)


def main() -> None:
    """Measure, print, and write the JSON file."""
    arguments = parse_arguments(__doc__ or "")
    facts = environment()
    model = t5_small().eval()
    weights = tuple(weight for weight in anatomy_of(model).weights if weight.role in ROLES)
    group = 4 * sum(weight.numel for weight in weights)
    rows = batches(model, 32 if arguments.quick else 128)
    alone = {}
    for backward in (False, True):
        pass_through(model, rows[:1], weights, backward=backward)  # warm
        peak, (elapsed, _) = peak_bytes(
            lambda backward=backward: seconds(lambda: pass_through(model, rows, weights, backward=backward))
        )
        alone[backward] = {"seconds": elapsed, "peak_bytes": peak}
        print(f"{'forward and backward' if backward else 'forward':20} {elapsed:6.1f} s, {peak / 2**20:.0f} MiB")
    found = {}
    for score in SCORES:
        asked = needs(score)
        if not asked.isdisjoint(LEARNED):
            continue  # learned while a stage trains
        kind = None if not asked else not asked.isdisjoint(GRADIENTS)
        peak, (elapsed, _) = peak_bytes(lambda score=score: seconds(lambda: judge(model, rows, weights, score)))
        passed = {"seconds": 0.0, "peak_bytes": 0} if kind is None or score in ADJUSTING else alone[kind]
        found[score] = {
            "seconds": elapsed,
            "beyond_seconds": elapsed - passed["seconds"],
            "peak_bytes": peak - passed["peak_bytes"],
            "over_group": (peak - passed["peak_bytes"]) / group,
        }
        print(
            f"{score:20} {elapsed:6.1f} s, beyond the passes {found[score]['beyond_seconds']:5.1f} s, "
            f"{found[score]['peak_bytes'] / 2**20:.0f} MiB, {found[score]['over_group']:.2f} of the group",
            flush=True,
        )
    others = [entry for score, entry in found.items() if score not in ADJUSTING]
    results = {
        "obs_seconds": found["obs"]["seconds"],
        "obs_peak_bytes": found["obs"]["peak_bytes"],
        "others_beyond_seconds": max(entry["beyond_seconds"] for entry in others),
        "others_over_group": max(entry["over_group"] for entry in others),
        "rows": len(rows) * BATCH_SIZE,
        "passes": {"forward": alone[False], "backward": alone[True]},
        "scores": found,
        "environment": facts,
    }
    print(f"\nobs_seconds {results['obs_seconds']:.1f}  (aim: at most 60)")
    print(f"obs_peak_bytes {results['obs_peak_bytes']:,}  (aim: at most 2,000,000,000)")
    print(f"others_beyond_seconds {results['others_beyond_seconds']:.1f}  (aim: at most 10)")
    print(f"others_over_group {results['others_over_group']:.2f}  (aim: at most 1)")
    finish(results, arguments.json)


if __name__ == "__main__":
    main()
