"""Cut: a model and what stays of it become a smaller model; the model that is cut is left as it was."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from secateur.anatomy.check import anatomy_of, family_of
from secateur.anatomy.family import REMOVED_ROWS, WIDTHS
from secateur.anatomy.ragged import shape_ragged
from secateur.anatomy.roles import Anatomy, Weight
from secateur.anatomy.units import own_biases
from secateur.errors import MaskError
from secateur.masks.mask import MaskSet, Mode
from secateur.masks.tie import is_tied, untie
from secateur.recipe.names import Stack
from secateur.surgery.slices import Indexes, Remainder, widths_of

TOKEN_IDS = ("pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id", "forced_bos_token_id",
             "forced_eos_token_id")  # fmt: skip
TOKEN_LISTS = ("suppress_tokens", "begin_suppress_tokens")


@dataclass(frozen=True)
class CutModel:
    """A smaller model.

    Attributes:
        model: the model, in evaluation mode, fp32; masks that are still needed are not attached.
        masks: what other masks still remove from it.
        rest: what it is made of.
    """

    model: Any
    masks: MaskSet
    rest: Remainder


def cut(model: nn.Module, masks: MaskSet, rest: Remainder) -> CutModel:
    """Build the smaller model.

    Heads, neurons and layers that go add nothing to what is left, so nothing else changes. A hidden dimension that is
    0 everywhere still counts in T5's norms, whose mean is over all D of them: with d left every norm's weight is
    multiplied by sqrt(D / d) and its epsilon by D / d, which is exact; where the head is scaled by D^-0.5, the last
    norm takes sqrt(d / D) as well. Rows of the table that go take their tokens out of the softmax.

    Args:
        model: a T5, mT5 or UMT5 with the masks attached or not; it is read only.
        masks: of that model.
        rest: what stays, from `surgery.slices.remainder` on the same masks.

    Returns:
        The smaller model, and what the masks say of it.

    Raises:
        MaskError: a token that the configuration names would go, or the model is ragged already.
    """
    source: Any = model
    anatomy = anatomy_of(source)
    if getattr(source.config, WIDTHS, None) is not None:
        raise MaskError("This model is ragged already: cut it once, from the masks of all its stages together.")
    columns = _bias_columns(anatomy, rest)
    config = _config(source, anatomy, rest, columns)
    with torch.random.fork_rng(), torch.device("cpu"):
        small: Any = getattr(transformers, family_of(config).model_class)(config).to(torch.float32).eval()
    shape_ragged(small)
    if not is_tied(source):
        untie(small)
        if "scale_decoder_outputs" in vars(source.config):
            small.config.scale_decoder_outputs = source.config.scale_decoder_outputs
    small.generation_config = _generation_config(source, rest)
    after = anatomy_of(small)
    wanted = {weight.path: weight for weight in anatomy.weights}
    left: dict[str, Tensor] = {}
    with torch.no_grad():
        for weight in after.unique():
            old = wanted[_old_name(weight, rest, columns)]
            tensor = source.get_parameter(old.path).detach().to("cpu", torch.float32)
            if old.path in masks and masks.modes[old.path] == "hold":
                tensor = tensor * masks.masks[old.path].cpu()
            small.get_parameter(weight.path).copy_(_taken(tensor, old, rest, columns))
        _mend_norms(small, anatomy, after, rest)
    for weight in after.weights:
        old = wanted[_old_name(weight, rest, columns)]
        if old.path in masks:
            mask = _taken(masks.masks[old.path].cpu(), old, rest, columns)
            if not bool(mask.all()):
                left[weight.path] = mask
    modes: dict[str, Mode] = {path: masks.modes[_old_name(after[path], rest, columns)] for path in left}
    return CutModel(small, MaskSet(left, modes, after.fingerprint()), rest)


def _old_name(weight: Weight, rest: Remainder, columns: dict[Stack, Indexes]) -> str:
    """Name the parameter that one of the smaller model comes from."""
    if weight.stack is None or weight.layer is None:
        return weight.path
    layer = rest.layers[weight.stack][weight.layer]
    if weight.role == "position_bias" and columns:
        return weight.path  # where a stack shares one, its first layer makes it, whichever layer that is
    return weight.path.replace(f".{weight.layer}.", f".{layer}.", 1)


def _bias_columns(anatomy: Anatomy, rest: Remainder) -> dict[Stack, Indexes]:
    """The columns of each stack's shared position bias that some layer uses."""
    if own_biases(anatomy):
        return {}
    return {stack: tuple(sorted({head for layer in rest.heads[f"{stack}.self_attention"] for head in layer}))
            for stack in rest.layers}  # fmt: skip


def _taken(tensor: Tensor, old: Weight, rest: Remainder, columns: dict[Stack, Indexes]) -> Tensor:
    """Take from a parameter what stays of it."""
    for index, dim in enumerate(old.dims):
        kept = _kept(old, dim.unit, rest, columns)
        if kept is None or len(kept) * dim.size == tensor.shape[index]:
            continue
        units = torch.tensor(kept)
        elements = (units[:, None] * dim.size + torch.arange(dim.size)).flatten()
        tensor = tensor.index_select(index, elements)
    return tensor.contiguous()


def _kept(old: Weight, unit: str | None, rest: Remainder, columns: dict[Stack, Indexes]) -> Indexes | None:
    if unit == "vocab_row":
        return rest.rows
    if unit == "hidden_dim":
        return rest.dims
    if unit is None or old.stack is None or old.layer is None:
        return None
    if unit == "head" and old.role == "position_bias" and old.stack in columns:
        return columns[old.stack]
    place = rest.layers[old.stack].index(old.layer)
    if unit == "head":
        role = "self_attention" if old.role == "position_bias" else old.role
        return rest.heads[f"{old.stack}.{role}"][place]
    return rest.neurons[old.stack][place] if unit == "ffn_neuron" else None


def _config(source: Any, anatomy: Anatomy, rest: Remainder, columns: dict[Stack, Indexes]) -> Any:
    config = copy.deepcopy(source.config)
    config.tie_word_embeddings = True  # else the stacks get tables of their own; an own head is untied afterwards
    if hasattr(config, REMOVED_ROWS):
        delattr(config, REMOVED_ROWS)
    config.num_layers, config.num_decoder_layers = len(rest.layers["encoder"]), len(rest.layers["decoder"])
    config.num_heads = max(
        [len(kept) for layers in rest.heads.values() for kept in layers] + [len(kept) for kept in columns.values()]
    )
    config.d_ff = max(len(kept) for layers in rest.neurons.values() for kept in layers)
    dense = config.d_model
    config.d_model = len(rest.dims)
    config.layer_norm_epsilon = config.layer_norm_epsilon * dense / config.d_model
    if len(rest.rows) != config.vocab_size:
        _remap_ids(config, rest)
        config.vocab_size = len(rest.rows)
    if rest.ragged:
        setattr(config, WIDTHS, widths_of(anatomy, rest, columns).as_json())
    return config


def _generation_config(source: Any, rest: Remainder) -> Any:
    settings = copy.deepcopy(source.generation_config)
    if len(rest.rows) != source.config.vocab_size:
        _remap_ids(settings, rest)
        new = {old: index for index, old in enumerate(rest.rows)}
        for name in TOKEN_LISTS:  # what is suppressed is gone now, or gets its new number
            ids = getattr(settings, name, None)
            if ids:
                kept = [new[token] for token in ids if token in new]
                setattr(settings, name, kept or None)
        if words := getattr(settings, "bad_words_ids", None):  # a word whose tokens are not all there is never written
            there = [[new[token] for token in word] for word in words if all(token in new for token in word)]
            settings.bad_words_ids = there or None
    return settings


def named_tokens(model: Any) -> frozenset[int]:
    """List the tokens that a model's configurations name: it cannot do without them."""
    found: set[int] = set()
    for holder in (model.config, getattr(model, "generation_config", None)):
        for name in TOKEN_IDS:
            value = getattr(holder, name, None)
            found.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(found)


def _remap_ids(holder: Any, rest: Remainder) -> None:
    """Give the special tokens their new numbers."""
    new = {old: index for index, old in enumerate(rest.rows)}
    for name in TOKEN_IDS:
        value = getattr(holder, name, None)
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        gone = [token for token in ids if token not in new]
        if gone:
            raise MaskError(
                f"{name}: token {gone[0]} would go, and the model needs it. Keep its row: prune unit vocab_row with "
                "score frequency, which keeps the special tokens."
            )
        setattr(holder, name, [new[token] for token in ids] if isinstance(value, list) else new[value])


def _mend_norms(small: Any, before: Anatomy, after: Anatomy, rest: Remainder) -> None:
    """Make up for dimensions that norms no longer count; see `cut`."""
    dense, left = before["shared.weight"].shape[1], len(rest.dims)
    if dense == left:
        return
    factor = (dense / left) ** 0.5
    for weight in after.weights:
        if weight.role == "norm":
            small.get_parameter(weight.path).mul_(factor)
    last = small.get_parameter("decoder.final_layer_norm.weight")
    last.mul_(before.head_scale / after.head_scale)


__all__ = ["CutModel", "cut", "named_tokens"]
