"""NNI 3.0's config_list: which tensors of a model it names, and what is to go of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur.errors import RecipeError
from secateur.interop.nni_checks import Fault, Found, check_follows, check_groups
from secateur.interop.nni_modules import Op, ops_of
from secateur.interop.nni_pruners import preset_of
from secateur.interop.nni_select import read_target, select, settle
from secateur.masks.mask import MaskSet, Mode
from secateur.masks.statistics import Statistics
from secateur.masks.targets import Target, prune_targets
from secateur.masks.tie import is_tied, untie
from secateur.nni_keys import OF_OUTPUTS, findings, output_findings, settings_of
from secateur.recipe.names import NniPruner, Tie

HEADING = "This config_list cannot be used:"


def from_nni(
    model: nn.Module,
    config_list: Sequence[Mapping[str, Any]],
    pruner: NniPruner = "level",
    *,
    tie: Tie | None = None,
    already: MaskSet | None = None,
    statistics: Mapping[str, Statistics] | None = None,
    seed: int = 0,
) -> MaskSet:
    """Choose the masks that NNI 3.0 would choose, by the config_list that it takes.

    Args:
        model: any PyTorch model, without masks that are held; only `tie: untie` changes it.
        config_list: as NNI takes it; docs/from-nni.md tells what each key does.
        pruner: see `secateur.interop.nni_pruners.PRUNERS`; those that are schedules have nothing to do at once.
        tie: what to do with a tensor that several modules share; needed where one is selected.
        already: masks that hold; what they removed stays removed and counts.
        statistics: parameter name -> what a pruner needs beside the weights: `squared_gradient` for taylor, `learned`
            for movement and slim, of the weight's shape; `output_active` for activation_apoz_rank, `output_mean` for
            activation_mean_rank, (out_features,). `masks.statistics` says what each is.
        seed: of scores that draw numbers.

    Returns:
        Masks for `attach` and `keep`: bool, True = keep.

    Raises:
        RecipeError: faults in the config_list, or it does not fit the model; all at once, each with its entry's index.
        MaskError: statistics are missing, or the bounds leave too little to remove.

    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False))
    >>> _ = net[0].weight.data.copy_(__import__("torch").tensor([[1.0, 2.0], [0.0, 0.5]]))
    >>> masks = from_nni(net, [{"op_types": ["Linear"], "sparse_ratio": 0.5}], "l1_norm")
    >>> masks.masks["0.weight"].tolist()
    [[True, True], [False, False]]
    """
    preset = preset_of(pruner)
    _check_granularity(config_list, pruner)
    chosen = read_targets(config_list, ops_of(model), granularity=preset.granularity, tie=tie)
    if tie == "untie" and is_tied(model):
        untie(model)
    held = already or MaskSet.empty()
    masks = prune_targets(
        chosen.targets,
        {target.path: model.get_parameter(target.path) for target in chosen.targets},
        score=preset.score,
        norm=preset.norm,
        already=held.masks,
        statistics=statistics,
        seed=seed,
    )
    views = chosen.tied if tie == "view" else frozenset()
    modes: dict[str, Mode] = {path: "view" if path in views else "hold" for path in masks}
    return MaskSet({**held.masks, **masks}, {**held.modes, **modes}, held.owner)


def _check_granularity(config_list: Sequence[Any], pruner: str) -> None:
    """Refuse blocks that a pruner cannot judge; a recipe's rules do so before the model is known."""
    if pruner not in OF_OUTPUTS or next(findings(config_list), None) is not None:
        return
    told = [(index, *fault) for index, entry in enumerate(config_list) for fault in output_findings(entry)]
    found = [_line((index, *where), text) for index, where, text in told]
    if found:
        raise RecipeError(found, HEADING)


@dataclass(frozen=True)
class Chosen:
    """What a config_list selects.

    Attributes:
        targets: one for each tensor, in the model's order.
        tied: names of those that the tie policy decided about.
    """

    targets: tuple[Target, ...]
    tied: frozenset[str]


def read_targets(config_list: Any, ops: Mapping[str, Op], *, granularity: str | None, tie: Tie | None = None) -> Chosen:
    """Turn a config_list into what goes of each tensor.

    Args:
        config_list: as NNI takes it.
        ops: the model's modules.
        granularity: what "default" stands for: the pruner's own.
        tie: the policy for a tensor that a linear layer shares with a table.

    Returns:
        The targets.

    Raises:
        RecipeError: all faults, each with its entry's index.
    """
    if faults := list(findings(config_list)):
        raise RecipeError([_line(*fault) for fault in faults], HEADING)
    found: Found = {}
    tied: set[str] = set()
    for index, entry in enumerate(config_list):
        chosen, wrong = select(entry, ops)
        for name in chosen:
            wrong += _read_op(name, ops, entry, index, found, tied, granularity=granularity, tie=tie)
        faults += [((index, *path), text) for path, text in wrong]
    faults += check_groups(found) + check_follows(found)
    if tie is not None and not tied and not faults:
        faults.append(((), f"tie: {tie} cannot act: no tensor that is selected is shared by a layer and a table."))
    if faults:
        raise RecipeError(list(dict.fromkeys(_line(*fault) for fault in faults)), HEADING)
    order = {path: place for place, path in enumerate(path for op in ops.values() for path, _ in op.tensors.values())}
    targets = sorted((target for _, target in found.values()), key=lambda target: order[target.path])
    return Chosen(tuple(targets), frozenset(tied))


def _line(path: Sequence[str | int], text: str) -> str:
    where = f"config_list[{path[0]}]" if path else "config_list"
    rest = ".".join(map(str, path[1:]))
    return f"{where}{' ' if rest else ''}{rest}: {text}"


def _read_op(
    name: str,
    ops: Mapping[str, Op],
    entry: Mapping[str, Any],
    index: int,
    found: Found,
    tied: set[str],
    *,
    granularity: str | None,
    tie: Tie | None,
) -> list[Fault]:
    """Add what an entry asks of one module's tensors to what was found; give the faults."""
    faults: list[Fault] = []
    op = ops[name]
    for target_name, settings in settings_of(entry).items():
        if target_name not in op.tensors or (op.kind == "Embedding" and target_name == "bias"):
            continue
        path, by_policy, wrong = settle(name, target_name, ops, tie)
        if wrong:
            faults += wrong
        elif path in found:
            if found[path][0] != index:
                faults.append(((), _twice(name, target_name, found[path][0])))
        elif op.kind.startswith("BatchNorm") and target_name == "bias" and "target_names" not in entry:
            faults.append((("target_names",), _NORM_BIAS.format(name=name, kind=op.kind)))
        else:
            target, wrong = read_target(path, op.tensors[target_name][1], name, settings, granularity)
            faults += wrong
            if target is not None:
                found[path] = (index, target)
                tied |= {path} if by_policy else set()
    return faults


_NORM_BIAS = (
    "{name} is a {kind}: by NNI's documents its bias goes with its weight, by its code it stays whole. Write "
    'target_names: ["weight"].'
)


def _twice(name: str, target_name: str, earlier: int) -> str:
    return (
        f"{name}.{target_name} is pruned by config_list[{earlier}] already. NNI's documents let the last entry win, "
        "its code the first. Narrow one of the two with exclude_op_names."
    )


__all__ = ["HEADING", "Chosen", "from_nni", "read_targets"]
