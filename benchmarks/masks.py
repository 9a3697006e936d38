"""Prune the report's four groups of T5-small here and with torch.nn.utils.prune, in one run.

    python benchmarks/masks.py [--quick] [--json FILE]

Both sides get the same random weights of T5-small's shape and the same sparsities, one L1 threshold per group. Timed on
our side: scores, allocation and laying the masks on the weights (`prune_group` and `attach`, which also puts the
removed values aside); on torch's: `global_unstructured` with `L1Unstructured`, which does its part of the same. The
repeats of the two sides alternate.

- times_faster_than_torch: torch's median time over ours, the four groups together.
- same_masks: both keep the same set; where they differ, both sides' weights have the threshold's own magnitude.
- peak_extra_over_largest_group: the highest rise of resident memory (the kernel's own peak mark) while deciding on a
  group's masks, scores included and result masks not, over the bytes of the largest group's weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from common import REPORT_GROUPS, environment, finish, median, parse_arguments, peak_bytes, seconds, t5_small
from secateur.anatomy.check import anatomy_of
from secateur.anatomy.roles import Weight
from secateur.masks.group import prune_group
from secateur.masks.hold import attach
from secateur.masks.mask import MaskSet, Mode

EMPTY = MaskSet.empty()


def torch_holders(model: nn.Module, weights: tuple[Weight, ...]) -> list[nn.Module]:
    """Wrap each tensor in a module of its own, so that torch's pruning does not touch the model."""
    holders = []
    for weight in weights:
        holder = nn.Module()
        holder.weight = nn.Parameter(model.get_parameter(weight.path).detach())
        holders.append(holder)
    return holders


def prune_with_torch(holders: list[nn.Module], sparsity: float) -> None:
    """Let torch prune one group by one threshold."""
    parameters = [(holder, "weight") for holder in holders]
    prune.global_unstructured(parameters, pruning_method=prune.L1Unstructured, amount=sparsity)


def same_set(model: nn.Module, masks: dict[str, Tensor], others: list[Tensor]) -> bool:
    """Say whether two selections are the same but for which of equal magnitudes they took."""
    odd, removed = [], 0
    for (path, mask), other in zip(masks.items(), others, strict=True):
        differs = mask != other.bool()
        odd.append(model.get_parameter(path).detach().abs()[differs])
        removed += int(mask.sum()) - int(other.bool().sum())
    return removed == 0 and torch.cat(odd).unique().numel() <= 1


def measure_group(model: nn.Module, weights: tuple[Weight, ...], sparsity: float, *, repeats: int) -> dict[str, Any]:
    """Measure one group on both sides."""
    # The head is tied; zeros cannot be written into it without asking which policy, so its mask is a view.
    mode: Mode = "view" if weights[0].role == "lm_head" else "hold"
    num_elements = sum(weight.numel for weight in weights)
    peak, masks = peak_bytes(lambda: prune_group(model, weights, already=EMPTY, sparsity=sparsity))
    mask_set = MaskSet(masks, dict.fromkeys(masks, mode), "")
    decide, lay, torchs, same = [], [], [], True
    for _ in range(repeats):
        decide.append(seconds(lambda: prune_group(model, weights, already=EMPTY, sparsity=sparsity))[0])
        elapsed, attachment = seconds(lambda: attach(model, mask_set))
        lay.append(elapsed)
        attachment.detach()
        holders = torch_holders(model, weights)
        torchs.append(seconds(lambda holders=holders: prune_with_torch(holders, sparsity))[0])
        same = same and same_set(model, masks, [holder.get_buffer("weight_mask") for holder in holders])
    return {
        "num_elements": num_elements,
        "sparsity": sparsity,
        "decide_seconds": median(decide),
        "attach_seconds": median(lay),
        "torch_seconds": median(torchs),
        "times_faster": median(torchs) / (median(decide) + median(lay)),
        "same_masks": same,
        "peak_extra_bytes": max(0, peak - num_elements),  # a mask is one byte an element while it is in memory
    }


def main() -> None:
    """Measure, print, and write the JSON file."""
    arguments = parse_arguments(__doc__ or "")
    facts = environment()
    model = t5_small()
    anatomy = anatomy_of(model)
    groups = {}
    for role, sparsity in REPORT_GROUPS.items():
        weights = anatomy.select(role=role)
        group = groups[role] = measure_group(model, weights, sparsity, repeats=1 if arguments.quick else 5)
        print(
            f"{role:16} {group['num_elements']:>10,} weights at {sparsity}: ours {group['decide_seconds']:.3f} s + "
            f"{group['attach_seconds']:.3f} s to lay them, torch {group['torch_seconds']:.3f} s, "
            f"{group['times_faster']:.1f} times; same set: {group['same_masks']}; "
            f"peak extra {group['peak_extra_bytes'] / 2**20:.0f} MiB",
            flush=True,
        )
    ours = sum(group["decide_seconds"] + group["attach_seconds"] for group in groups.values())
    torchs = sum(group["torch_seconds"] for group in groups.values())
    largest = 4 * max(group["num_elements"] for group in groups.values())
    results = {
        "times_faster_than_torch": torchs / ours,
        "same_masks": all(group["same_masks"] for group in groups.values()),
        "peak_extra_over_largest_group": max(group["peak_extra_bytes"] for group in groups.values()) / largest,
        "groups": groups,
        "environment": facts,
    }
    print(f"\ntimes_faster_than_torch {results['times_faster_than_torch']:.1f}  (aim: at least 10)")
    print(f"same_masks {results['same_masks']}")
    print(f"peak_extra_over_largest_group {results['peak_extra_over_largest_group']:.2f}  (aim: at most 1.5)")
    finish(results, arguments.json)


if __name__ == "__main__":
    main()
