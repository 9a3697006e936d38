"""What every benchmark here shares: arguments, the environment it ran in, memory, and one JSON file of results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import torch
import transformers
from transformers import T5Config, T5ForConditionalGeneration

from secateur.recipe.names import Role
from secateur.retrain.memory import give_back

Result = TypeVar("Result")

REPORT_GROUPS: dict[Role, float] = {"self_attention": 0.9, "cross_attention": 0.4, "feed_forward": 0.7, "lm_head": 0.8}


def parse_arguments(description: str) -> argparse.Namespace:
    """Read --quick, --json FILE and --threads N."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute on two free cores; figures are rougher")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as JSON")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads for torch (default: all)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return arguments


def environment() -> dict[str, Any]:
    """Describe the machine and the software, and how busy the machine was."""
    return {
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def t5_small() -> T5ForConditionalGeneration:
    """Make a T5 of T5-small's shape (60,506,624 parameters), initialised at random; nothing is downloaded."""
    torch.manual_seed(0)
    config = T5Config()
    config.decoder_start_token_id = 0
    return T5ForConditionalGeneration(config)


def seconds(call: Callable[[], Result]) -> tuple[float, Result]:
    """Time one call; give its result too."""
    start = perf_counter()
    result = call()
    return perf_counter() - start, result


def median(values: Sequence[float]) -> float:
    """Middle value; with few repeats on a busy machine a mean would be its worst moment's."""
    return statistics.median(values)


def peak_bytes(call: Callable[[], Result]) -> tuple[int, Result]:
    """Measure by how much a call raises the process's resident memory at its peak, exactly, by the kernel's own mark.

    Freed memory is handed back to the system first, so that the call cannot use it up unseen; then the mark (VmHWM) is
    reset through /proc/self/clear_refs. Linux only.

    Returns:
        Bytes, and what the call returned.
    """
    give_back()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    result = call()
    return max(0, _status("VmHWM") - before), result


def resident_bytes() -> int:
    """Read how much memory this process holds now. Linux only."""
    return _status("VmRSS")


def finish(results: dict[str, Any], file: Path | None) -> None:
    """Print the environment and the results, and write both as JSON if asked."""
    print("\nEnvironment: " + ", ".join(f"{key} {value}" for key, value in results["environment"].items()))
    if results["environment"]["load_before"] > 0.5:
        print("Other processes were running: times, and their ratios, are provisional.")
    if file is not None:
        file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        print(f"Written: {file}")


def _status(field: str) -> int:
    """Read one field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _processor() -> str:
    """Name the processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
