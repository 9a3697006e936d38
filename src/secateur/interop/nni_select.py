"""Which modules an entry of an NNI config_list selects, under which name a tensor is masked, and what is to go."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from secateur.interop.nni_checks import Fault
from secateur.interop.nni_modules import PRUNABLE, Op
from secateur.masks.targets import Follow, Target
from secateur.masks.tie import HEAD, POLICIES
from secateur.nni_keys import SELECTION, block_of, rank_of
from secateur.recipe.names import Tie
from secateur.registry import suggest


def select(entry: Mapping[str, Any], ops: Mapping[str, Op]) -> tuple[list[str], list[Fault]]:
    """List the modules that an entry names: (op_names and op_names_re) of op_types, without what is excluded."""
    faults: list[Fault] = []
    for name in entry.get("op_names", ()):
        if name not in ops:
            told = (
                f"no module {name!r}. {suggest(name, ops)}NNI stops at such a name, or passes over it where op_types "
                "stand beside it. Correct it, or remove it."
            )
            faults.append((("op_names",), told))
    named = {name for name in entry.get("op_names", ()) if name in ops}
    named |= {name for text in entry.get("op_names_re", ()) for name in ops if re.match(text, name)}
    kinds = set(entry.get("op_types", ()))
    typed = {name for name, op in ops.items() if op.kind in kinds}
    by_name = "op_names" in entry or "op_names_re" in entry
    chosen = (named & typed if by_name else typed) if kinds else named
    chosen -= set(entry.get("exclude_op_names", ()))
    chosen -= {name for text in entry.get("exclude_op_names_re", ()) for name in ops if re.match(text, name)}
    chosen -= {name for name, op in ops.items() if op.kind in set(entry.get("exclude_op_types", ()))}
    if not chosen and not faults:
        there = ", ".join(dict.fromkeys(op.kind for op in ops.values() if op.kind in PRUNABLE))
        keys = ", ".join(key for key in SELECTION if key in entry)
        faults.append(((), f"selects no module ({keys}). Types here that can be pruned: {there or 'none'}."))
    odd = [name for name in ops if name in chosen and ops[name].kind not in PRUNABLE]
    if odd:
        kind = ops[odd[0]].kind or "a module that only holds others"
        told = (
            f"selects {len(odd)} modules that have no weights to prune, {odd[0] or 'the model itself'} ({kind}) first. "
            f'Add op_types: ["Linear"], or exclude them. NNI stops at them too; it prunes {", ".join(PRUNABLE[:2])}, '
            "convolutions and batch norms."
        )
        faults.append(((), told))
    return [name for name in ops if name in chosen and name not in odd], faults


def settle(name: str, target_name: str, ops: Mapping[str, Op], tie: Tie | None) -> tuple[str, bool, list[Fault]]:
    """Say under which name a tensor is masked.

    Args:
        name: of the module.
        target_name: weight or bias.
        ops: all modules.
        tie: the policy for a tensor that a linear layer shares with a table.

    Returns:
        The name; whether the policy decided it; faults.
    """
    op = ops[name]
    path, storage = op.tensors[target_name][0], op.storage[target_name]
    sharing = {other.kind for other in ops.values() if storage in other.storage.values()}
    if len(sharing) == 1:
        return storage, False, []  # one tensor under several names of one kind, such as encoder.embed_tokens
    if tie is None:
        told = (
            f"{path} is one tensor with others (tied), and NNI would give {name} a copy of its own. Choose {POLICIES}."
        )
        return path, True, [((), told)]
    if tie == "both":
        return storage, True, []
    if op.kind == "Embedding":
        told = f"{path}: tie: view masks the head alone. For the embedding choose both or untie."
        return storage, True, [((), told)] if tie == "view" else []
    told = f"{path}: only {HEAD} can be untied. Choose view or both."
    return path, True, [((), told)] if tie == "untie" and path != HEAD else []


def read_target(
    path: str, shape: tuple[int, ...], name: str, settings: Mapping[str, Any], default: str | None
) -> tuple[Target | None, list[Fault]]:
    """Read the settings of one tensor."""
    scored = settings.get("sparse_ratio") is not None or settings.get("sparse_threshold") is not None
    align = settings.get("align") if not (settings.get("sparse_ratio") is not None) else None
    if not scored and align is None:
        return None, []
    wanted = settings.get("granularity")
    if wanted == "default" or ("granularity" not in settings and path.endswith("weight")):
        wanted = default
    if rank_of(wanted) > len(shape):
        return None, [(("granularity",), f"{wanted} needs {rank_of(wanted)} dimensions, and {path} has {len(shape)}.")]
    block = block_of(wanted, shape)
    if block is not None and any(whole % size for whole, size in zip(shape, block, strict=True)):
        sizes, whole = " x ".join(map(str, block)), " x ".join(map(str, shape))
        return None, [(("granularity",), f"{path}: shape {whole} does not divide into blocks of {sizes}.")]
    follow = None
    if align is not None:
        module = name if align["module_name"] is None else align["module_name"]
        follow = Follow(f"{module}.{align['target_name']}", tuple(align["dims"]))
    target = Target(
        path,
        shape,
        block,
        sparsity=settings.get("sparse_ratio"),
        threshold=settings.get("sparse_threshold"),
        min_sparsity=settings.get("min_sparse_ratio"),
        max_sparsity=settings.get("max_sparse_ratio"),
        pool=settings.get("global_group_id") if scored else None,
        bundle=settings.get("dependency_group_id") if scored else None,
        parts=settings.get("internal_metric_block") or 1,
        follow=follow,
    )
    return target, []
