"""What the names in a checkpoint stand for: a weight, what a weight was before its mask, or the mask."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from secateur.anatomy.families import FAMILIES
from secateur.anatomy.roles import Anatomy
from secateur.registry import suggest

_PREFIXES = ("module.", "_orig_mod.", "model.")  # of DistributedDataParallel, torch.compile, Lightning
_ORIGINAL, _MASK = "_orig", "_mask"  # how torch.nn.utils.prune calls the two
_PARAMETRIZED = re.compile(r"(?:(?P<module>.+)\.)?parametrizations\.(?P<name>[^.]+)\.(?P<rest>.+)")
_SUGGESTIONS = 5  # a checkpoint of another model has hundreds of foreign names, and a search for each takes a while
_ACTIVATIONS = re.compile(r"\._(?:in|out)put_\w+$")  # how NNI 3 calls masks of what a module reads and writes
# What old versions of T5 learned and no version uses.
_NEEDLESS = ("EncDecAttention.relative_attention_bias.weight", "embeddings.position_ids")


@dataclass
class Sorted:
    """The tensors of a checkpoint by what they are.

    Attributes:
        weights: parameter -> its values; where a mask goes with it, what torch calls the original.
        masks: parameter -> its mask, as the file holds it.
        masked: parameters whose weights stood under a name that asks for a mask.
        faults: names that stand for nothing in the model, or for what has no masks here; whole sentences.
        needless: what was left out without harm; whole sentences.
        buffers: what belongs to the model beside its parameters and is saved with them.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    masked: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    needless: list[str] = field(default_factory=list)
    buffers: dict[str, Tensor] = field(default_factory=dict)


def sort_tensors(tensors: Mapping[str, Tensor], anatomy: Anatomy) -> Sorted:
    """Sort a state dict by the model's names.

    Understood are plain names, `NAME_orig` with `NAME_mask` (torch.nn.utils.prune), and
    `parametrizations.NAME.original` with `parametrizations.NAME.0.mask` (torch.ao.pruning), all of them also behind
    `module.`, `_orig_mod.` or `model.`.

    Args:
        tensors: name -> tensor.
        anatomy: of the model that they belong to.

    Returns:
        Every tensor, or a fault for it.
    """
    found = Sorted()
    for name, tensor in _without_prefixes(tensors, anatomy).items():
        if name in anatomy:
            _put(found, found.weights, name, tensor)
        elif (parametrized := _PARAMETRIZED.fullmatch(name)) is not None:
            _sort_parametrized(found, parametrized, tensor, name, anatomy)
        elif name.endswith(_MASK) and name.removesuffix(_MASK) in anatomy:
            _put(found, found.masks, name.removesuffix(_MASK), tensor)
        elif name.endswith(_ORIGINAL) and name.removesuffix(_ORIGINAL) in anatomy:
            _put(found, found.weights, name.removesuffix(_ORIGINAL), tensor)
            found.masked.append(name.removesuffix(_ORIGINAL))
        elif name in FAMILIES[anatomy.family].row_buffers:
            _put(found, found.buffers, name, tensor)
        elif name.endswith(_NEEDLESS):
            found.needless.append(f"{name}: left out; no version of the model uses it.")
        elif _ACTIVATIONS.search(name):
            _sort_activations(found, name, tensor)
        else:
            near = _near(name, anatomy) if len(found.faults) < _SUGGESTIONS else ""
            found.faults.append(f"{name}: the model has no such parameter. {near}".strip())
    return found


def _put(found: Sorted, table: dict[str, Tensor], path: str, tensor: Tensor) -> None:
    if path in table:
        found.faults.append(f"{path}: stands in the file twice, as it is and pruned. Save the model again.")
    table[path] = tensor


def _sort_parametrized(found: Sorted, match: re.Match[str], tensor: Tensor, name: str, anatomy: Anatomy) -> None:
    """Take a weight or a mask out of torch's parametrizations, or say which other parametrization stands there."""
    module, own, rest = match["module"], match["name"], match["rest"]
    path = f"{module}.{own}" if module else own
    if path not in anatomy:
        found.faults.append(f"{name}: the model has no parameter {path}. {_near(path, anatomy)}".strip())
    elif rest == "original":
        _put(found, found.weights, path, tensor)
        found.masked.append(path)
    elif rest == "0.mask":
        _put(found, found.masks, path, tensor)
    else:
        found.faults.append(
            f"{name}: a parametrization that is no mask, which is not understood. Fold it in before saving: "
            f'torch.nn.utils.parametrize.remove_parametrizations(module, "{own}").'
        )


def _sort_activations(found: Sorted, name: str, mask: Tensor) -> None:
    """Leave out a mask of activations that keeps all of them; refuse one that does not."""
    if bool((mask == 1).all()):
        found.needless.append(f"{name}: left out; it keeps every activation.")
    else:
        found.faults.append(
            f"{name}: masks activations, which has no place here. Prune the weights that make them: rows of this "
            "module's weight, or heads and neurons as whole units."
        )


def _without_prefixes(tensors: Mapping[str, Tensor], anatomy: Anatomy) -> dict[str, Tensor]:
    """Take off what wrappers put before every name, as long as no name is the model's own."""
    known = {first for weight in anatomy.weights for first in _spellings(weight.path)}
    names = {name: name for name in tensors}
    while prefix := _common_prefix(names.values(), known):
        names = {name: short.removeprefix(prefix) for name, short in names.items()}
    return {short: tensors[name] for name, short in names.items()}


def _spellings(path: str) -> tuple[str, ...]:
    module, _, name = path.rpartition(".")
    return path, f"{path}{_ORIGINAL}", f"{path}{_MASK}", f"{module}.parametrizations.{name}.original"


def _common_prefix(names: Iterable[str], known: Collection[str]) -> str | None:
    listed = list(names)
    if any(name in known for name in listed):
        return None
    return next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in listed)), None)


def _near(name: str, anatomy: Anatomy) -> str:
    return suggest(name, {weight.path: weight for weight in anatomy.weights})


__all__ = ["Sorted", "sort_tensors"]
