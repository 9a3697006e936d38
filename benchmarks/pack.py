"""Pack T5-small as the report prunes it, and restore it: bytes, rounding, seconds and memory, in one run.

    python benchmarks/pack.py [--quick] [--json FILE]

Random weights of T5-small's shape (fixed seed, as transformers initialises them), the report's four groups pruned by
one L1 threshold each, the head under `tie: view`; nothing is downloaded. The folder is written by `save_plain`, with
the small tokenizer of recipes/tiny, and packed with each kind of values. MB are 10^6 bytes.

- fp16_megabytes, int8_megabytes: the packed file, everything in it. Aims: at most 55 and 34. The entropy of such
  weights (masks and values, each by its own frequencies) is 51.8 and 31.9.
- exact: with fp32 values every restored file has the bytes of the original.
- relative_rounding: the largest difference of a tensor over its largest value, as the file states it, and as it is
  found by comparing the two folders.
- whole_run_seconds: save, pack with fp16 values, unpack.
- peak_over_largest: the highest rise of resident memory while packing, without the file's own size, over the bytes of
  the largest tensor. About 1.7 of it is memory that glibc does not hand back at once (MALLOC_MMAP_THRESHOLD_=1000000
  in the environment shows what is really in use).

Beside it stand the plain folder and what zstd alone makes of its weight file.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import zstandard
from safetensors import safe_open
from transformers import AutoTokenizer

from common import REPORT_GROUPS, environment, finish, median, parse_arguments, peak_bytes, seconds, t5_small
from secateur.anatomy.check import anatomy_of
from secateur.artifacts.checkpoint import save_plain
from secateur.artifacts.pack import Values, pack_folder, read_packed_facts, unpack_file
from secateur.files import sha256_folder
from secateur.masks.group import prune_group
from secateur.masks.hold import attach
from secateur.masks.mask import MaskSet, Mode

TOKENIZER = Path(__file__).parents[1] / "recipes" / "tiny" / "start"
ALL_VALUES: tuple[Values, ...] = ("fp32", "bf16", "fp16", "int8")
AIMS = {"fp16": 55, "int8": 34}
DENSE_PARAMETERS = 60_506_624


def pruned_t5_small() -> tuple[Any, MaskSet]:
    """Make T5-small's shape and prune it as the report does."""
    model = t5_small()
    anatomy = anatomy_of(model)
    masks: dict[str, torch.Tensor] = {}
    modes: dict[str, Mode] = {}
    for role, sparsity in REPORT_GROUPS.items():
        group = prune_group(model, anatomy.select(role=role), already=MaskSet.empty(), sparsity=sparsity)
        masks |= group
        modes |= dict.fromkeys(group, "view" if role == "lm_head" else "hold")
    mask_set = MaskSet(masks, modes, anatomy.fingerprint())
    attach(model, mask_set)
    return model, mask_set


def compare(one: Path, other: Path) -> dict[str, float]:
    """Compare two weight files tensor by tensor: the largest difference, alone and relative, and revived zeros."""
    difference = relative = revived = 0.0
    with safe_open(one, "pt") as originals, safe_open(other, "pt") as restored:
        for name in originals.keys():  # noqa: SIM118 (not a dict)
            before, after = originals.get_tensor(name), restored.get_tensor(name)
            apart = float((before - after).abs().max())
            difference = max(difference, apart)
            relative = max(relative, apart / max(float(before.abs().max()), 1e-38))
            revived += int(((before == 0) & (after != 0)).count_nonzero())
    return {"difference": difference, "relative": relative, "revived_zeros": revived}


def measure(folder: Path, place: Path, values: Values, *, repeats: int) -> dict[str, Any]:
    """Pack and unpack with one kind of values."""
    file = place / f"{values}.safetensors"
    peak, result = peak_bytes(lambda: pack_folder(folder, file, values=values))
    pack_seconds, unpack_seconds, unpacked = [], [], None
    for index in range(repeats):
        restored = place / f"{values}-{index}"
        pack_seconds.append(seconds(lambda: pack_folder(folder, file, values=values))[0])
        elapsed, unpacked = seconds(lambda restored=restored: unpack_file(file, restored))
        unpack_seconds.append(elapsed)
    found = compare(folder / "model.safetensors", place / f"{values}-0" / "model.safetensors")
    counts = read_packed_facts(file).counts(dense_parameters=DENSE_PARAMETERS, counted=0.2626112)
    return {
        "megabytes": result.num_bytes / 1e6,
        "mask_megabytes": result.mask_bytes / 1e6,
        "value_megabytes": result.value_bytes / 1e6,
        "other_megabytes": result.other_bytes / 1e6,
        "counts": counts.as_json(),
        "copies": list(result.copies),
        "stated_relative": result.rounding.relative if result.rounding else 0.0,
        "stated_difference": result.rounding.difference if result.rounding else 0.0,
        **found,
        "exact": sha256_folder(folder) == sha256_folder(place / f"{values}-0"),
        "states_what_is_found": unpacked is not None and unpacked.rounding == result.rounding,
        "pack_seconds": median(pack_seconds),
        "unpack_seconds": median(unpack_seconds),
        "peak_bytes": peak,
    }


def main() -> None:
    """Measure, print, and write the JSON file."""
    arguments = parse_arguments(__doc__ or "")
    facts = environment() | {"zstandard": zstandard.__version__, "zstd": ".".join(map(str, zstandard.ZSTD_VERSION))}
    model, masks = pruned_t5_small()
    largest = 4 * model.get_parameter("shared.weight").numel()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
        save_seconds, _ = seconds(lambda: save_plain(model, tokenizer, place / "model", masks=masks))
        plain = (place / "model" / "model.safetensors").stat().st_size / 1e6
        alone = len(zstandard.ZstdCompressor().compress((place / "model" / "model.safetensors").read_bytes())) / 1e6
        print(f"plain folder {plain:.1f} MB, its weight file through zstd alone {alone:.1f} MB")
        kinds = {}
        for values in ALL_VALUES:
            kind = measure(place / "model", place, values, repeats=1 if arguments.quick else 3)
            kind["peak_over_largest"] = (kind["peak_bytes"] - 1e6 * kind["megabytes"]) / largest
            kinds[values] = kind
            print(
                f"{values}: {kind['megabytes']:6.2f} MB (masks {kind['mask_megabytes']:.2f}, values "
                f"{kind['value_megabytes']:.2f}, other {kind['other_megabytes']:.2f}); stored ratio "
                f"{kind['counts']['stored_ratio']:.4f}; relative rounding stated {kind['stated_relative']:.2e}, found "
                f"{kind['relative']:.2e}; revived zeros {kind['revived_zeros']:.0f}; pack {kind['pack_seconds']:.1f}"
                f" s, unpack {kind['unpack_seconds']:.1f} s, peak {kind['peak_over_largest']:.1f} x the largest tensor",
                flush=True,
            )
    results = {
        **{f"{values}_megabytes": kind["megabytes"] for values, kind in kinds.items()},
        "plain_megabytes": plain,
        "zstd_alone_megabytes": alone,
        "exact": kinds["fp32"]["exact"],
        "relative_rounding": {values: kind["stated_relative"] for values, kind in kinds.items()},
        "whole_run_seconds": save_seconds + kinds["fp16"]["pack_seconds"] + kinds["fp16"]["unpack_seconds"],
        "peak_over_largest": max(kind["peak_over_largest"] for kind in kinds.values()),
        "kinds": kinds,
        "environment": facts,
    }
    print()
    for values, aim in AIMS.items():
        print(f"{values}_megabytes {results[f'{values}_megabytes']:.2f}  (aim: at most {aim})")
    print(f"exact {results['exact']}")
    print(f"whole_run_seconds {results['whole_run_seconds']:.1f}")
    print(f"peak_over_largest {results['peak_over_largest']:.1f}")
    finish(results, arguments.json)


if __name__ == "__main__":
    main()
