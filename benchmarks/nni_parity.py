"""The same masks as NNI 3.0: every case of tests/nni_cases.py through both, tensor by tensor.

pip install nni==3.0 && python benchmarks/nni_parity.py                # a table, and the environment
python benchmarks/nni_parity.py --write tests/interop/nni_masks.json   # records NNI's masks, for tests without NNI
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import environment

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from nni_cases import (  # pyright: ignore[reportMissingImports]
    CASES,
    INTERVAL,
    TIMES,
    Case,
    batches,
    digest,
    loss_of,
    net_of,
    num_steps,
    our_masks,
)

NAMES = {
    "level": "LevelPruner", "l1_norm": "L1NormPruner", "l2_norm": "L2NormPruner", "fpgm": "FPGMPruner",
    "taylor": "TaylorPruner", "slim": "SlimPruner", "movement": "MovementPruner",
    "linear": "LinearPruner", "agp": "AGPPruner",
}  # fmt: skip


def their_masks(case: Case) -> dict[str, Tensor]:
    """Let NNI choose a case's masks.

    Args:
        case: the comparison.

    Returns:
        Parameter name -> bool, True = keep.
    """
    # A peer, for this comparison only: it is no dependency of the project.
    import nni.compression.pruning as pruning  # pyright: ignore[reportMissingImports]

    net = net_of(case)
    steps = num_steps(case)
    make = getattr(pruning, NAMES[case.pruner])
    if case.schedule:
        schedule = getattr(pruning, NAMES[case.schedule])
        pruner = schedule(make(net, case.config_list, _evaluator(net, 0.1)), interval_steps=INTERVAL, total_times=TIMES)
        _, found = pruner.compress(max_steps=steps, max_epochs=None)
    elif case.pruner == "movement":
        pruner = make(net, case.config_list, _evaluator(net, 0.1), **case.settings)
        _, found = pruner.compress(max_steps=steps, max_epochs=None)
    elif case.pruner == "slim":
        _, found = make(net, case.config_list, _evaluator(net, 0.1), **case.settings).compress()
    elif case.pruner == "taylor":
        _, found = make(net, case.config_list, _evaluator(net, 0.0), training_steps=steps).compress()
    else:
        _, found = make(net, case.config_list).compress()
    return _by_parameter(found)


def _by_parameter(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    return {
        f"{module}.{target}": mask.bool()
        for module, targets in found.items()
        for target, mask in targets.items()
        if mask is not None
    }


def _evaluator(net: nn.Module, rate: float) -> Any:
    import nni  # pyright: ignore[reportMissingImports]
    from nni.compression import TorchEvaluator  # pyright: ignore[reportMissingImports]

    def step(batch: tuple[Tensor, Tensor], model: nn.Module, *_: Any, **__: Any) -> Tensor:
        return loss_of(model, batch)

    def train(model: Any, optimizer: Any, step: Any, scheduler: Any, max_steps: int, *_: Any, **__: Any) -> None:
        for batch in batches(max_steps):
            optimizer.zero_grad()
            step(batch, model).backward()
            optimizer.step()

    optimizer = nni.trace(torch.optim.SGD)(net.parameters(), lr=rate)
    return TorchEvaluator(train, optimizer, step)


def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="record NNI's masks there")
    parser.add_argument("--only", help="cases whose name begins so")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recorded, same = {}, 0
    chosen = {name: case for name, case in CASES.items() if name.startswith(arguments.only or "")}
    for name, case in chosen.items():
        theirs, ours = digest(their_masks(case)), digest(our_masks(case))
        equal = theirs == ours
        same += equal
        recorded[name] = theirs
        removed = sum(count for count, _ in theirs.values())
        print(f"{'same' if equal else 'OTHER':6}{len(theirs):4} tensors {removed:7,} removed  {name}", flush=True)
        for path in theirs.keys() | ours.keys() if not equal else ():
            if theirs.get(path) != ours.get(path):
                print(f"       {path}: NNI {theirs.get(path)}, here {ours.get(path)}")
    print(f"{same} of {len(chosen)} cases: the same masks")
    about = environment()
    print({key: about[key] for key in ("python", "torch", "transformers", "processor", "threads")})
    if arguments.write:
        command = "python benchmarks/nni_parity.py --write tests/interop/nni_masks.json"
        kept = {key: about[key] for key in ("python", "torch", "transformers")}
        facts = {"command": command, "nni": "3.0", **kept, "masks": recorded}
        arguments.write.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if same != len(chosen):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
