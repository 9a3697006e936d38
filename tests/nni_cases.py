"""Nets, config_lists and trainings on which NNI's masks and ours are compared; `benchmarks/nni_parity.py` runs both."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nets import make
from secateur.interop.nni import from_nni, read_targets
from secateur.interop.nni_modules import ops_of
from secateur.interop.nni_pruners import PRUNERS, SCHEDULES
from secateur.masks.hold import attach
from secateur.masks.mask import MaskSet
from secateur.masks.targets import prune_targets
from secateur.retrain.schedule import CountedSteps

LINEAR = ["Linear"]
ATTENTION = [r".*Attention\.[qkvo]$"]
FFN = [r".*DenseReluDense\.w.*"]
INTERVAL, TIMES = 2, 4  # of the gradual cases
COLLECTED = 3  # batches that Taylor sees


@dataclass(frozen=True)
class Case:
    """One comparison."""

    net: str
    pruner: str
    config_list: list[dict[str, Any]]
    tie: Any = None
    schedule: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def _entry(ratio: float, **more: Any) -> dict[str, Any]:
    return {"op_types": LINEAR, "sparse_ratio": ratio, **more}


BUNDLES = [
    {"op_names": ["0", "2"], "sparse_ratio": 0.45, "dependency_group_id": "a"},
    {"op_names": ["4"], "sparse_ratio": 0.3},
]
POOLS = [
    {"op_names_re": ATTENTION, "op_types": LINEAR, "sparse_ratio": 0.61, "global_group_id": "attention"},
    {"op_names_re": FFN, "op_types": LINEAR, "sparse_ratio": 0.37, "global_group_id": 2},
]
BLOCKS = [
    {
        "op_names_re": ATTENTION,
        "op_types": LINEAR,
        "sparse_ratio": 0.55,
        "granularity": [5, 4],
        "exclude_op_names_re": [r".*\.o$"],
    },
    {"op_names_re": FFN, "op_types": LINEAR, "sparse_ratio": 0.55, "granularity": [-1, 2]},
]
OWN_BIAS = [
    _entry(0.5, target_names=["weight"]),
    {"op_types": LINEAR, "target_names": ["bias"], "target_settings": {"bias": {"sparse_ratio": 0.25}}},
]
FOLLOWING = [
    {"op_names": ["0"], "sparse_ratio": 0.5},
    {
        "op_names": ["2"],
        "target_names": ["weight"],
        "granularity": "in_channel",
        "target_settings": {"weight": {"align": {"module_name": "0", "target_name": "weight", "dims": [0]}}},
    },
]
EXCLUDED = [
    {
        "op_names_re": [r"encoder\."],
        "op_types": LINEAR,
        "exclude_op_names": ["encoder.block.0.layer.0.SelfAttention.q"],
        "exclude_op_names_re": [r".*\.wo"],
        "exclude_op_types": ["Embedding"],
        "sparse_ratio": 0.7,
    }
]

CASES: dict[str, Case] = {
    "level": Case("mlp", "level", [_entry(0.53)]),
    "level by columns": Case("mlp", "level", [_entry(0.53, granularity="in_channel")]),
    "level by threshold": Case("mlp", "level", [{"op_types": LINEAR, "sparse_threshold": 0.4}]),
    "level by threshold, at least": Case(
        "mlp", "level", [{"op_types": LINEAR, "sparse_threshold": 0.01, "min_sparse_ratio": 0.3}]
    ),
    "level by threshold, at most": Case(
        "mlp", "level", [{"op_types": LINEAR, "sparse_threshold": 2.0, "max_sparse_ratio": 0.7}]
    ),
    "level, globally": Case("mlp", "level", [_entry(0.47, global_group_id=1)]),
    "level, globally, all at most": Case("mlp", "level", [_entry(0.9, global_group_id=1, max_sparse_ratio=0.6)]),
    "level, globally, all at least": Case("mlp", "level", [_entry(0.1, global_group_id=1, min_sparse_ratio=0.2)]),
    "level, a bias of its own": Case("mlp", "level", OWN_BIAS),
    "l1_norm": Case("mlp", "l1_norm", [_entry(0.53)]),
    "l1_norm together": Case("mlp", "l1_norm", BUNDLES),
    "l1_norm in parts": Case(
        "mlp", "l1_norm", [dict(BUNDLES[0], internal_metric_block=4), dict(BUNDLES[1])]
    ),
    "l1_norm, globally": Case("mlp", "l1_norm", [_entry(0.5, global_group_id=1, op_names_re=["[24]"])]),
    "l1_norm, following": Case("mlp", "l1_norm", FOLLOWING),
    "l2_norm": Case("mlp", "l2_norm", [_entry(0.53)]),
    "l2_norm, globally": Case("mlp", "l2_norm", [_entry(0.5, global_group_id=1, op_names_re=["[24]"])]),
    "l2_norm by blocks": Case("mlp", "l2_norm", [_entry(0.4, granularity=[4, 4], exclude_op_names=["4"])]),
    "fpgm": Case("mlp", "fpgm", [_entry(0.53)]),
    "fpgm by columns": Case("mlp", "fpgm", [_entry(0.53, granularity="in_channel")]),
    "taylor": Case("mlp", "taylor", [_entry(0.53)]),
    "taylor, globally": Case("mlp", "taylor", [_entry(0.4, global_group_id="all", op_names_re=["[24]"])]),
    "slim": Case("mlp", "slim", [_entry(0.5)], settings={"training_steps": 6, "regular_scale": 0.5}),
    "movement": Case("mlp", "movement", [_entry(0.5)], settings={"warmup_step": 1, "cooldown_begin_step": 7}),
    "movement by blocks": Case(
        "mlp", "movement", [_entry(0.5, granularity=[4, 4], exclude_op_names=["4"])],
        settings={"warmup_step": 1, "cooldown_begin_step": 7},
    ),
    "movement by weights": Case(
        "mlp", "movement", [_entry(0.2, granularity=[1, 1])], settings={"warmup_step": 1, "cooldown_begin_step": 5}
    ),
    "linear": Case("mlp", "level", [_entry(0.6)], schedule="linear"),
    "agp": Case("mlp", "level", [_entry(0.6)], schedule="agp"),
    "agp of l2_norm": Case("mlp", "l2_norm", [_entry(0.6)], schedule="agp"),
    "agp, globally": Case("mlp", "level", [_entry(0.6, global_group_id=1)], schedule="agp"),
    "batch norm": Case(
        "normed", "level", [{"op_types": ["BatchNorm1d"], "target_names": ["weight"], "sparse_ratio": 0.4}]
    ),
    "t5 level": Case("t5", "level", [_entry(0.53, exclude_op_names=["lm_head"])]),
    "t5 level, the head untied": Case("t5", "level", [{"op_names": ["lm_head"], "sparse_ratio": 0.8}], tie="untie"),
    "t5 level, globally": Case("t5", "level", POOLS),
    "t5 l1_norm": Case("t5", "l1_norm", [_entry(0.53, exclude_op_names=["lm_head"])]),
    "t5 l2_norm by blocks": Case("t5", "l2_norm", BLOCKS),
    "t5 fpgm": Case("t5", "fpgm", [{"op_names_re": FFN, "op_types": LINEAR, "sparse_ratio": 0.4}]),
    "t5 excluded": Case("t5", "level", EXCLUDED),
    "bert level": Case("bert", "level", [_entry(0.53, exclude_op_names_re=["cls"])]),
    "bert l1_norm by blocks": Case(
        "bert", "l1_norm", [{"op_names_re": [r".*attention\.self"], "op_types": LINEAR, "sparse_ratio": 0.5,
                             "granularity": [8, 16]}],
    ),
}  # fmt: skip


def _mlp(*, norm: bool = False) -> nn.Module:
    layers = [
        nn.Linear(12, 16),
        nn.BatchNorm1d(16) if norm else nn.ReLU(),
        nn.Linear(16, 16),
        nn.ReLU(),
        nn.Linear(16, 6),
    ]
    return nn.Sequential(*layers)


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertForSequenceClassification(BertConfig(**sizes, intermediate_size=48, max_position_embeddings=16))


NETS: dict[str, Callable[[], Any]] = {
    "mlp": _mlp,
    "normed": lambda: _mlp(norm=True),
    "t5": lambda: make("t5-v1.0"),
    "bert": _bert,
}


def net_of(case: Case) -> Any:
    """Build a case's net; its weights are the same on every machine and in every version of torch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = NETS[case.net]()
    drawn = np.random.default_rng(7)
    with torch.no_grad():
        for parameter in net.parameters():
            values = drawn.standard_normal(parameter.shape) * 0.5
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))
    return net.eval()


def batches(number: int) -> list[tuple[Tensor, Tensor]]:
    """Rows and labels for the MLP."""
    drawn = np.random.default_rng(11)
    rows = drawn.standard_normal((number, 20, 12)).astype(np.float32)
    labels = drawn.integers(0, 6, (number, 20))
    return [(torch.from_numpy(row), torch.from_numpy(label)) for row, label in zip(rows, labels, strict=True)]


def loss_of(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of a batch."""
    return nn.functional.cross_entropy(net(batch[0]), batch[1])


def num_steps(case: Case) -> int:
    """Steps of a case's training."""
    if case.schedule:
        return INTERVAL * TIMES
    return case.settings.get("cooldown_begin_step") or case.settings.get("training_steps") or COLLECTED


def our_masks(case: Case) -> dict[str, Tensor]:
    """Choose a case's masks ourselves: parameter name -> bool."""
    net = net_of(case)
    if case.schedule:
        return _gradual(case, net)
    if case.pruner in ("movement", "slim"):
        from nni_learning import learn

        return learn(case, net)
    statistics = _gradients(net) if case.pruner == "taylor" else None
    found = from_nni(net, case.config_list, case.pruner, tie=case.tie, statistics=statistics)  # pyright: ignore
    return dict(found.masks)


def _gradients(net: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The mean of the squared gradients, the weights still."""
    sums: dict[str, Tensor] = {}
    for batch in batches(COLLECTED):
        net.zero_grad()
        loss_of(net, batch).backward()
        for path, parameter in net.named_parameters():
            assert parameter.grad is not None
            sums[path] = sums.get(path, torch.zeros_like(parameter)) + parameter.grad.square()
    return {path: {"squared_gradient": total.detach() / COLLECTED} for path, total in sums.items()}


def _gradual(case: Case, net: nn.Module) -> dict[str, Tensor]:
    """Train and prune; what went may come back, as NNI has it."""
    preset = PRUNERS[case.pruner]
    targets = read_targets(case.config_list, ops_of(net), granularity=preset.granularity).targets
    assert case.schedule is not None
    shares = CountedSteps(SCHEDULES[case.schedule], 0, INTERVAL * TIMES, INTERVAL).shares(INTERVAL * TIMES + 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    masks: dict[str, Tensor] = {}
    for step, batch in enumerate(batches(num_steps(case)), start=1):
        with attach(net, _views(masks)):
            optimizer.zero_grad()
            loss_of(net, batch).backward()
            for path, mask in masks.items():
                if path.endswith("bias"):
                    net.get_parameter(path).grad.mul_(mask)  # pyright: ignore[reportOptionalMemberAccess]
        optimizer.step()
        if step in shares:
            now = [target.scaled(shares[step]) for target in targets]
            weights = {target.path: net.get_parameter(target.path) for target in targets}
            masks = prune_targets(now, weights, score=preset.score, norm=preset.norm)
    return masks


def _views(masks: Mapping[str, Tensor]) -> MaskSet:
    return MaskSet(masks, {path: "view" if path.endswith("weight") else "hold" for path in masks}, "")


def digest(masks: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    """Write masks down in brief: name -> elements removed, and a hash of which."""
    found = {}
    for path in sorted(masks):
        bits = np.packbits(masks[path].cpu().numpy().ravel())
        found[path] = [int((~masks[path]).sum()), hashlib.sha256(bits.tobytes()).hexdigest()[:16]]
    return found
