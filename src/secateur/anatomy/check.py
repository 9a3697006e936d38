"""Compare a model with its family: every parameter claimed once, every shape as configured, ties as they really are."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from secateur.anatomy.families import FAMILIES
from secateur.anatomy.family import Expected, Family, expected
from secateur.anatomy.fit import misfits, unknown_family
from secateur.anatomy.ragged import shape_ragged
from secateur.anatomy.roles import Anatomy, Weight
from secateur.anatomy.stored import read_config
from secateur.errors import AnatomyError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["anatomy_of", "anatomy_within", "family_of", "head_scale", "meta_model", "read_config"]


def family_of(config: Any, *, where: str = "config") -> Family:
    """Find a configuration's family.

    Args:
        config: a configuration, or anything with a `model_type`.
        where: what the configuration belongs to, for the message.

    Returns:
        The family.

    Raises:
        AnatomyError: we do not know it (the message lists those we know), or it says what our rules do not understand.
    """
    model_type = getattr(config, "model_type", None)
    if model_type not in FAMILIES:
        raise unknown_family(model_type, FAMILIES, where=where)
    family = FAMILIES[model_type]
    if faults := misfits(family, config):
        raise AnatomyError(faults, f"{where}: no {model_type} model that is understood here:")
    return family


def head_scale(family: Family, config: Any) -> float:
    """Tell what a model multiplies the decoder's output by before lm_head: d_model**-0.5, or 1.0."""
    attribute = family.head_scaled_when
    return config.d_model**-0.5 if attribute is not None and getattr(config, attribute) else 1.0


def _faults(wanted: dict[str, Expected], found: dict[str, nn.Parameter]) -> list[str]:
    """List every difference between the parameters that should be there and those that are."""
    faults = []
    for path, item in wanted.items():
        sizes = " x ".join(item.sizes)
        if path not in found:
            faults.append(f"{path}: missing. The configuration calls for {list(item.shape)} ({sizes}), {item.role}.")
        elif tuple(found[path].shape) != item.shape:
            shape = list(found[path].shape)
            faults.append(f"{path}: has shape {shape}, the configuration says {list(item.shape)} ({sizes}).")
    faults += [
        f"{path}: unknown, shape {list(parameter.shape)}. No rule of the family claims it."
        for path, parameter in found.items()
        if path not in wanted
    ]
    return faults


def _map(family: Family, config: Any, wanted: dict[str, Expected], found: dict[str, nn.Parameter]) -> Anatomy:
    first_names: dict[int, str] = {}
    weights = []
    for path, parameter in found.items():
        storage = first_names.setdefault(id(parameter), path)
        item = wanted[path]
        weights.append(Weight(path, item.role, item.stack, item.layer, item.shape, storage, item.part, item.dims))
    return Anatomy(family.model_type, tuple(weights), head_scale(family, config))


def anatomy_within(model: nn.Module) -> Anatomy:
    """Map what a module holds of a model of our families, and nothing of what it holds beside it.

    Args:
        model: a model, perhaps with something that is only trained along with it.

    Returns:
        The model's anatomy; it is not checked.

    Raises:
        AnatomyError: the family is unknown.
    """
    config: Any = getattr(model, "config", None)
    family = family_of(config, where=type(model).__name__)
    wanted = expected(family, config)
    named = model.named_parameters(remove_duplicate=False)
    return _map(family, config, wanted, {name: parameter for name, parameter in named if name in wanted})


def anatomy_of(model: nn.Module) -> Anatomy:
    """Map a model's parameters.

    Args:
        model: a model of transformers of one of our families, live or on the meta device. Buffers are not looked at.

    Returns:
        Its anatomy. Names are tied when they are the same Parameter object, whatever the configuration says; equal
        values in two tensors are not a tie.

    Raises:
        AnatomyError: the family is unknown, or a parameter is missing, unknown, or of another shape than configured;
            all faults at once.
    """
    config = getattr(model, "config", None)
    kind = type(model).__name__
    family = family_of(config, where=kind)
    wanted = expected(family, config)
    found = dict(model.named_parameters(remove_duplicate=False))
    if faults := _faults(wanted, found):
        other = "" if kind == family.model_class else f" (the family's rules are for {family.model_class})"
        raise AnatomyError(
            faults, f"{kind} is not the {family.model_type} model that its configuration describes{other}:"
        )
    return _map(family, config, wanted, found)


def meta_model(config: PretrainedConfig, raw: dict[str, Any]) -> nn.Module:
    """Build a model without any memory for its weights.

    The configuration classes of transformers 5 force `tie_word_embeddings` to true, so the file's own word is needed:
    with `tie_word_embeddings: false` there (T5 v1.1, mT5, heads we saved untied) the head is a tensor of its own.

    Args:
        config: the configuration; it is not changed.
        raw: the content of its config.json; `{}` for a model that is initialised at random, whose head is always tied.

    Returns:
        The family's model on the meta device, in evaluation mode.

    Raises:
        AnatomyError: the family is unknown.
    """
    import transformers

    family = family_of(config)
    config = copy.deepcopy(config)
    if "scale_decoder_outputs" in raw:
        config.scale_decoder_outputs = raw["scale_decoder_outputs"]
    with torch.device("meta"):
        model: nn.Module = getattr(transformers, family.model_class)(config)
    if raw.get("tie_word_embeddings") is False and family.has_head:
        head = model.get_submodule("lm_head")
        head.register_parameter("weight", nn.Parameter(torch.empty_like(model.get_parameter("lm_head.weight"))))
    shape_ragged(model)
    return model.eval()
