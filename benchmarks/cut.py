"""Cut T5-small's shape and run it: milliseconds and megabytes of every cut beside every dense engine, in one run.

    python benchmarks/cut.py [--quick] [--json FILE]

Random weights of T5-small's shape (fixed seed); nothing is downloaded. 256 source tokens, 64 new tokens (no text ends
earlier: the end token's row is 0), greedy, batch 1 (and 8 without --quick), one thread unless --threads says otherwise.
All engines answer in turn, round after round, so that a busy machine slows all of them alike; medians are told.

Cuts: half of the heads, half of the feed-forward neurons, 2 of 6 decoder layers, 8,000 of 32,128 rows of the table, and
all four together, each exported to CTranslate2 with int8. Dense: transformers fp32 and bf16, CTranslate2 and ONNX
Runtime, fp32 and int8.

- times_faster_than_dense_ct2_int8_b1: all four against dense CTranslate2 int8, batch 1. Aim: at least 5.
- times_faster_than_fastest_dense_b1: all four against the fastest dense engine of this run. Aim: at least 4.
- cut_megabytes: weight files of all four, 10^6 bytes. Aim: at most 19.
- max_logit_difference_relative: the cut model against the masked one, fp32, largest difference of logits over the
  largest logit; at most 1e-5.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig

from common import environment, finish, median, parse_arguments, seconds, t5_small
from secateur.anatomy.check import anatomy_of
from secateur.anatomy.units import places
from secateur.artifacts.checkpoint import save_plain
from secateur.artifacts.loading import load_model
from secateur.exports.engines import export_model, open_engine
from secateur.masks.hold import attach
from secateur.masks.mask import MaskSet
from secateur.masks.structure import prune_units
from secateur.masks.unit_scores import Evidence
from secateur.recipe.names import Unit
from secateur.surgery.cut import cut
from secateur.surgery.slices import remainder
from secateur.surgery.verify import verify
from secateur.tasks.precision import computes_bf16

TOKENIZER = Path(__file__).parents[1] / "recipes" / "tiny" / "start"
SOURCE, NEW = 256, 64
CUTS: dict[str, dict[Unit, float]] = {
    "heads": {"head": 0.5},
    "neurons": {"ffn_neuron": 0.5},
    "decoder layers": {"layer": 4 / 6},
    "rows": {"vocab_row": 1 - 8000 / 32128},
    "all four": {"layer": 4 / 6, "head": 0.5, "ffn_neuron": 0.5, "vocab_row": 1 - 8000 / 32128},
}
END = 1


def dense_model() -> Any:
    """T5-small's shape; its outputs never end, so that every engine writes as many tokens."""
    model = t5_small()
    with torch.no_grad():
        model.shared.weight[END] = 0.0
    return model.eval()


def masks_of(model: Any, amounts: dict[Unit, float]) -> MaskSet:
    """Masks that remove units at random scores; layers of the decoder only, at even distances."""
    anatomy = anatomy_of(model)
    masks: dict[str, torch.Tensor] = {}
    for unit, sparsity in amounts.items():
        score = {"layer": "spacing", "vocab_row": "frequency"}.get(unit, "random")
        counts = torch.arange(model.config.vocab_size).flip(0)
        found = prune_units(
            model,
            anatomy,
            places(anatomy, unit, stack="decoder" if unit == "layer" else None),
            already=MaskSet(masks, dict.fromkeys(masks, "hold"), anatomy.fingerprint()),
            sparsity=sparsity,
            score=score,
            evidence=Evidence(counts=counts, floor=frozenset({0, END})),
        )
        masks |= found
    return MaskSet(masks, dict.fromkeys(masks, "hold"), anatomy.fingerprint())


def make_cut(model: Any, amounts: dict[Unit, float], place: Path, tokenizer: Any, rows: list[list[int]]) -> Any:
    """Cut, prove, and export; give the export's facts and the proof."""
    masks = masks_of(model, amounts)
    rest = remainder(anatomy_of(model), masks)
    found = cut(model, masks, rest)
    with attach(model, masks):
        proof = verify(model, found.model, rest, rows, [row[:16] for row in rows], max_new_tokens=8)
    save_plain(found.model, tokenizer, place / "plain", masks=found.masks)
    return export_model(place / "plain", place / "int8", target="ctranslate2", int8=True), proof


def transformers_writer(model: Any) -> Callable[[list[list[int]]], object]:
    """Write NEW tokens with transformers."""
    settings = GenerationConfig(
        max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, eos_token_id=END, pad_token_id=0,
        decoder_start_token_id=0,
    )  # fmt: skip

    @torch.inference_mode()
    def write(rows: list[list[int]]) -> object:
        return model.generate(input_ids=torch.tensor(rows), generation_config=settings)

    return write


def engine_writer(folder: Path, threads: int) -> Callable[[list[list[int]]], object]:
    """Write NEW tokens with an export."""
    engine = open_engine(folder, threads)

    def write(rows: list[list[int]]) -> object:
        found = engine.generate(rows, max_new_tokens=NEW)
        assert all(len(row.tokens) == NEW for row in found), "a text ended early"
        return found

    return write


def main() -> None:
    arguments = parse_arguments(__doc__ or "")
    threads = arguments.threads if "--threads" in sys.argv else 1
    torch.set_num_threads(threads)
    results: dict[str, Any] = {"environment": environment(), "quick": arguments.quick, "rows": {}}
    drawn = torch.Generator().manual_seed(1)
    rows = torch.randint(2, 7900, (8, SOURCE), generator=drawn).tolist()
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        model = dense_model()
        writers: dict[str, Callable[[list[list[int]]], object]] = {}
        sizes: dict[str, float] = {}
        save_plain(model, tokenizer, place / "dense", masks=MaskSet.empty())
        writers["dense transformers fp32"] = transformers_writer(load_model(str(place / "dense")))
        sizes["dense transformers fp32"] = (place / "dense" / "model.safetensors").stat().st_size / 1e6
        if computes_bf16("cpu"):
            small_floats: Any = load_model(str(place / "dense"))
            small_floats.to(torch.bfloat16)
            writers["dense transformers bf16"] = transformers_writer(small_floats)
            sizes["dense transformers bf16"] = sizes["dense transformers fp32"] / 2
        for target in ("ctranslate2", "onnx"):
            for int8 in (False, True):
                name = f"dense {target} {'int8' if int8 else 'fp32'}"
                facts = export_model(place / "dense", place / name, target=target, int8=int8)
                writers[name], sizes[name] = engine_writer(place / name, threads), facts.num_bytes / 1e6
        largest = 0.0
        for name, amounts in CUTS.items():
            facts, proof = make_cut(model, amounts, place / name, tokenizer, rows[:4])
            largest = max(largest, proof.relative_difference)
            key = f"{name} ctranslate2 int8"
            writers[key] = engine_writer(place / name / "int8", threads)
            sizes[key] = facts.num_bytes / 1e6
        batches = (1,) if arguments.quick else (1, 8)
        times = measure(writers, rows, batches, rounds=3 if arguments.quick else 7)
    report(results, times, sizes, batches, largest)
    finish(results, arguments.json)


def measure(
    writers: dict[str, Callable[[list[list[int]]], object]],
    rows: list[list[int]],
    batches: tuple[int, ...],
    rounds: int,
) -> dict[str, dict[int, float]]:
    """Median milliseconds per call of every writer at every batch size, taken in turn; the first round warms up."""
    taken: dict[str, dict[int, list[float]]] = {name: {size: [] for size in batches} for name in writers}
    for done in range(rounds + 1):
        for name, write in writers.items():
            for size in batches:
                spent, _ = seconds(lambda write=write, size=size: write(rows[:size]))
                if done:
                    taken[name][size].append(1000 * spent)
    return {name: {size: median(values) for size, values in found.items()} for name, found in taken.items()}


def report(
    results: dict[str, Any],
    times: dict[str, dict[int, float]],
    sizes: dict[str, float],
    batches: tuple[int, ...],
    difference: float,
) -> None:
    """Print the table, and put the figures under their names."""
    int8, cut_all = "dense ctranslate2 int8", "all four ctranslate2 int8"
    fastest = {
        size: min((found[size], name) for name, found in times.items() if name.startswith("dense")) for size in batches
    }
    print(f"{'':32}{'MB':>8}" + "".join(f"{f'ms, batch {size}':>14}{'times':>8}" for size in batches))
    for name, found in times.items():
        cells = "".join(f"{found[size]:>14.1f}{fastest[size][0] / found[size]:>8.2f}" for size in batches)
        print(f"{name:32}{sizes[name]:>8.1f}{cells}")
        results["rows"][name] = {"megabytes": sizes[name], "milliseconds": {str(s): found[s] for s in batches}}
    print(
        "times: faster than the fastest dense engine ("
        + ", ".join(f"batch {s}: {fastest[s][1]}" for s in batches)
        + ")"
    )
    results["times_faster_than_dense_ct2_int8_b1"] = times[int8][1] / times[cut_all][1]
    results["times_faster_than_fastest_dense_b1"] = fastest[1][0] / times[cut_all][1]
    results["cut_megabytes"] = sizes[cut_all]
    results["max_logit_difference_relative"] = difference
    for name, aim in (
        ("times_faster_than_dense_ct2_int8_b1", "at least 5"),
        ("times_faster_than_fastest_dense_b1", "at least 4"),
        ("cut_megabytes", "at most 19"),
        ("max_logit_difference_relative", "at most 1e-5"),
    ):
        print(f"{name}: {results[name]:.3g} (aim: {aim})")


if __name__ == "__main__":
    main()
