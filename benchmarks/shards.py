"""Prune and pack a model that is larger than memory allows elsewhere: T5-3B's shape, 11.4 GB, shard by shard.

    python benchmarks/shards.py [--quick] [--json FILE] [--work FOLDER] [--keep]

A random checkpoint of t5-3b's configuration is written in shards of 2 GB (never in memory as a whole), at all, a
quarter and half of its layers. Each is pruned by the report's four groups (self-attention 0.9, cross-attention 0.4,
feed-forward 0.7, lm_head 0.8 under tie: view), by one threshold a group and by one a tensor, and what the first left is
packed; every step is a process of its own. `torch.nn.utils.prune.global_unstructured` gets a model of a quarter of the
layers (an eighth where that does not fit), random in memory, and the same groups; its need for the whole is put on the
line through that and a process that only imports the libraries. Weights are read, not mapped, so that resident memory
means something.

- peak_bytes: the process's largest resident memory (the kernel's own mark), libraries and all. peak_over_shard: the
  same over the bytes of the largest weight file (aim: at most 2).
- cpu_seconds_per_gigabyte of the checkpoint, and seconds by the clock, at each size. linear: the largest over the
  smallest, in CPU seconds, which other processes do not change much (aim: at most 1.3).
- torch_needs_bytes: measured, and computed for the whole.

The folders take up to three times the checkpoint's bytes, and are removed at the end unless --keep is given.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from torch.nn.utils import prune as torch_prune
from transformers import T5Config, T5ForConditionalGeneration

from common import REPORT_GROUPS, environment, finish
from secateur import folder_pruning, making
from secateur.anatomy.check import anatomy_of, meta_model
from secateur.anatomy.roles import Weight
from secateur.artifacts.manifest import peak_memory_bytes
from secateur.artifacts.shards import INDEX, open_shards
from secateur.files import safetensors_head, write_json
from secateur.recipe.names import Scope

T5_3B: dict[str, Any] = {"d_model": 1024, "d_ff": 16384, "d_kv": 128, "num_heads": 32, "vocab_size": 32128}
LAYERS = {"whole": 24, "quarter": 6, "half": 12}
QUICK_LAYERS = {"whole": 2, "half": 1}
TORCH_LAYERS, QUICK_TORCH = (6, 3), (1,)  # the first that fits is measured
TORCH_NEEDS = 8  # times the bytes of the weights, about
SHARD_BYTES, QUICK_SHARD_BYTES = 2_000_000_000, 300_000_000
SCOPES: tuple[Scope, ...] = ("global", "tensor")
SPARE_BYTES = 2_000_000_000  # of memory that is left to others


def config_of(layers: int) -> T5Config:
    config = T5Config(**T5_3B, num_layers=layers, num_decoder_layers=layers)
    config.decoder_start_token_id = 0
    return config


def weights_of(layers: int) -> tuple[Weight, ...]:
    return anatomy_of(meta_model(config_of(layers), {})).unique()


def write_checkpoint(folder: Path, layers: int, shard_bytes: int) -> int:
    """Write random weights of T5's initial sizes, tensor by tensor; give their bytes."""
    config_of(layers).save_pretrained(folder)
    files: list[list[Weight]] = [[]]
    for weight in weights_of(layers):
        if files[-1] and 4 * (sum(item.numel for item in files[-1]) + weight.numel) > shard_bytes:
            files.append([])
        files[-1].append(weight)
    names = [f"model-{index + 1:05}-of-{len(files):05}.safetensors" for index in range(len(files))]
    generator = np.random.default_rng(0)
    for name, weights in zip(names, files, strict=True):
        _write_shard(folder / name, weights, generator)
    total = 4 * sum(weight.numel for weights in files for weight in weights)
    places = {weight.path: name for name, weights in zip(names, files, strict=True) for weight in weights}
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    return total


def _write_shard(file: Path, weights: list[Weight], generator: np.random.Generator) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for weight in weights:
        end = begin + 4 * weight.numel
        header[weight.path] = {"dtype": "F32", "shape": list(weight.shape), "data_offsets": [begin, end]}
        begin = end
    with file.open("wb") as stream:
        stream.write(safetensors_head(header))
        for weight in weights:
            # T5's q starts d_kv**-0.5 times smaller than k and v; embeddings at 1; norms are not random, and few.
            scale = {"table": 1.0, "q": (1024 * 128) ** -0.5, "wo": 16384**-0.5, "norm": 1.0}.get(weight.part, 1 / 32)
            for start in range(0, weight.numel, 1 << 22):
                count = min(1 << 22, weight.numel - start)
                stream.write((generator.standard_normal(count, np.float32) * np.float32(scale)).data)
        stream.flush()
        os.fsync(stream.fileno())


def prune_folder(folder: str, out: str, scope: Scope) -> dict[str, Any]:
    """Prune a checkpoint by the report's groups."""
    groups = [
        {"role": role, "sparsity": sparsity, "scope": scope} | ({"tie": "view"} if role == "lm_head" else {})
        for role, sparsity in REPORT_GROUPS.items()
    ]
    found = folder_pruning.prune(folder, out, groups=groups)
    return {"counts": found["counts"], "hash": found["hash"]}


def pack_folder(folder: str, out: str) -> dict[str, Any]:
    """Pack a pruned folder, exactly."""
    return {"num_bytes": making.pack(folder, out).num_bytes}


def prune_with_torch(layers: int) -> dict[str, Any]:
    """Prune a random model by torch, group after group, as its tutorial does."""
    model = T5ForConditionalGeneration(config_of(layers))
    anatomy = anatomy_of(model)
    made, start = peak_memory_bytes(), perf_counter()
    for role, sparsity in REPORT_GROUPS.items():
        places = [weight.path.rpartition(".") for weight in anatomy.select(role=role)]
        parameters = [(model.get_submodule(module), name) for module, _, name in places]
        torch_prune.global_unstructured(parameters, pruning_method=torch_prune.L1Unstructured, amount=sparsity)
    return {"model_bytes": made, "pruning_seconds": perf_counter() - start}


WORK = {"prune": prune_folder, "pack": pack_folder, "torch": prune_with_torch, "imports": dict}


def in_process(kind: str, *arguments: Any, threads: int) -> dict[str, Any]:
    """Do one step in a fresh process; give its seconds, its peak memory and what it found."""
    asked = json.dumps([kind, list(arguments), threads])
    done = subprocess.run([sys.executable, __file__, "--step", asked], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{kind}: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def do_step(asked: str) -> None:
    """Do one step here, and print what it took."""
    kind, arguments, threads = json.loads(asked)
    torch.set_num_threads(threads)
    start, cpu = perf_counter(), process_time()
    found = WORK[kind](*arguments)
    took = {"seconds": perf_counter() - start, "cpu_seconds": process_time() - cpu}
    print(json.dumps({**took, "peak_bytes": peak_memory_bytes(), **found}))


def measure_size(place: Path, layers: int, shard_bytes: int, *, threads: int) -> dict[str, Any]:
    """Write and prune a checkpoint of so many layers a stack; what the first scope left stays for the packing."""
    total = 4 * sum(weight.numel for weight in weights_of(layers))
    if (free := shutil.disk_usage(place).free) < 3 * total:
        raise SystemExit(
            f"{place}: {free / 1e9:.0f} GB are free, {3 * total / 1e9:.0f} are needed. Give another --work."
        )
    model = place / f"{layers}-layers"
    begun = perf_counter()
    write_checkpoint(model, layers, shard_bytes)
    shard = open_shards(model).largest_bytes
    size: dict[str, Any] = {"layers": layers, "num_bytes": total, "largest_shard_bytes": shard, "steps": {}}
    print(f"{layers} layers a stack: {total / 1e9:.2f} GB, written in {perf_counter() - begun:.0f} s", flush=True)
    for scope in SCOPES:
        out = place / f"{layers}-{scope}"
        step(size, f"prune {scope}", "prune", str(model), str(out), scope, threads=threads)
        if scope != SCOPES[0]:
            shutil.rmtree(out)
    shutil.rmtree(model)
    return size


def step(size: dict[str, Any], name: str, kind: str, *arguments: Any, threads: int) -> None:
    """Do one step of a size, and print its figures."""
    found = size["steps"][name] = in_process(kind, *arguments, threads=threads)
    found["peak_over_shard"] = found["peak_bytes"] / size["largest_shard_bytes"]
    found["cpu_seconds_per_gigabyte"] = found["cpu_seconds"] / (size["num_bytes"] / 1e9)
    print(
        f"  {size['layers']} layers, {name:13} {found['seconds']:7.1f} s, on the CPU {found['cpu_seconds']:.1f} "
        f"({found['cpu_seconds_per_gigabyte']:.2f} a GB), peak {found['peak_bytes'] / 1e9:.2f} GB "
        f"({found['peak_over_shard']:.2f} of the largest shard)",
        flush=True,
    )


def measure_torch(choices: Sequence[int], *, threads: int) -> dict[str, Any] | None:
    """Measure torch's need at the first number of layers that fits; None if none does."""
    for layers in choices:
        total = 4 * sum(weight.numel for weight in weights_of(layers))
        guess, free = TORCH_NEEDS * total, available_bytes() - SPARE_BYTES
        if guess > free:
            print(f"  {layers} layers, torch: about {guess / 1e9:.0f} GB are needed, {free / 1e9:.0f} GB are free")
            continue
        found = in_process("torch", layers, threads=threads) | {"layers": layers, "num_bytes": total}
        took, peak = found["pruning_seconds"], found["peak_bytes"]
        print(f"  {layers} layers, torch: {took:.1f} s of pruning, peak {peak / 1e9:.2f} GB", flush=True)
        return found
    return None


def available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one and two layers a stack, about a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as JSON")
    parser.add_argument("--threads", type=int, default=1, help="threads for torch (default: 1)")
    parser.add_argument("--work", type=Path, default=Path("runs"), help="where the folders go (default: runs)")
    parser.add_argument("--keep", action="store_true", help="leave the folders there")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure, print, and write the JSON file."""
    arguments = parse_arguments()
    if arguments.step:
        do_step(arguments.step)
        return
    torch.set_num_threads(arguments.threads)
    facts = environment()
    arguments.work.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="shards-", dir=arguments.work))
    layers = QUICK_LAYERS if arguments.quick else LAYERS
    shard_bytes = QUICK_SHARD_BYTES if arguments.quick else SHARD_BYTES
    try:
        imports = in_process("imports", threads=arguments.threads)["peak_bytes"]
        print(f"imports alone: {imports / 1e9:.2f} GB", flush=True)
        sizes: dict[str, dict[str, Any]] = {}
        for name, number in layers.items():
            sizes[name] = measure_size(place, number, shard_bytes, threads=arguments.threads)
        torchs = measure_torch(QUICK_TORCH if arguments.quick else TORCH_LAYERS, threads=arguments.threads)
        for size in sizes.values():
            pruned, packed = place / f"{size['layers']}-{SCOPES[0]}", place / f"{size['layers']}.packed"
            step(size, "pack", "pack", str(pruned), str(packed), threads=arguments.threads)
    finally:
        if not arguments.keep:
            shutil.rmtree(place, ignore_errors=True)
    results: dict[str, Any] = compare(sizes, torchs, imports) | {"environment": facts}
    print(f"\npeak_over_shard {results['peak_over_shard']:.2f}  (aim: at most 2)")
    linear = ", ".join(f"{name} {value:.2f}" for name, value in results["linear"].items())
    print(f"linear {linear}  (aim: at most 1.3)")
    if torchs:
        print(
            f"torch_needs_bytes: {torchs['peak_bytes'] / 1e9:.1f} GB measured for {torchs['num_bytes'] / 1e9:.2f} GB "
            f"of weights, {results['torch_needs_bytes'] / 1e9:.1f} GB computed for the whole: "
            f"{results['torch_over_ours']:.0f} times ours"
        )
    finish(results, arguments.json)


def compare(sizes: dict[str, dict[str, Any]], torchs: dict[str, Any] | None, imports: int) -> dict[str, Any]:
    """Set the sizes against each other, and torch's need against ours."""
    whole = sizes["whole"]
    paces = {
        name: [size["steps"][name]["cpu_seconds_per_gigabyte"] for size in sizes.values()] for name in whole["steps"]
    }
    ours = max(found["peak_bytes"] for name, found in whole["steps"].items() if name != "pack")
    needed = None
    if torchs:
        needed = imports + (torchs["peak_bytes"] - imports) * whole["num_bytes"] / torchs["num_bytes"]
    return {
        "peak_over_shard": max(found["peak_over_shard"] for found in whole["steps"].values()),
        "linear": {name: max(pace) / min(pace) for name, pace in paces.items()},
        "torch_needs_bytes": needed,
        "torch_over_ours": needed and needed / ours,
        "torch_measured": torchs,
        "imports_bytes": imports,
        "sizes": sizes,
    }


if __name__ == "__main__":
    main()
