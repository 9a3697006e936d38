"""Cut: a model and what stays of it become a smaller model; the model that is cut is left as it was."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from secateur.anatomy.check import anatomy_of, family_of
from secateur.anatomy.family import REMOVED_ROWS, WIDTHS, Family, Widths, expected, value
from secateur.anatomy.gaps import GAPS
from secateur.anatomy.ragged import shape_ragged
from secateur.anatomy.roles import Anatomy, Weight
from secateur.anatomy.units import own_biases, places
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
    norm takes sqrt(d / D) as well. LayerNorms stay as they are: a model that masks took hidden dimensions from norms
    only those that stay (see `anatomy.gaps`). Rows of the table that go take their tokens out of the softmax.

    Args:
        model: of one of our families, with the masks attached or not; it is read only.
        masks: of that model.
        rest: what stays, from `surgery.slices.remainder` on the same masks.

    Returns:
        The smaller model, and what the masks say of it.

    Raises:
        MaskError: a token that the configuration names would go, or the model is ragged already and has position
            biases.
    """
    source: Any = model
    anatomy, family = anatomy_of(source), family_of(source.config)
    if getattr(source.config, WIDTHS, None) is not None and not family.layer_norm:
        raise MaskError("This model is ragged already: cut it once, from the masks of all its stages together.")
    columns = _bias_columns(anatomy, rest)
    config = _config(source, anatomy, rest, columns)
    with torch.random.fork_rng(), torch.device("cpu"):
        small: Any = getattr(transformers, family.model_class)(config).to(torch.float32).eval()
    shape_ragged(small)
    if family.has_head and not is_tied(source):
        untie(small)
        if "scale_decoder_outputs" in vars(source.config):
            small.config.scale_decoder_outputs = source.config.scale_decoder_outputs
    if family.generates:
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
        for name in family.row_buffers:
            small.get_buffer(name).copy_(source.get_buffer(name)[..., list(rest.rows)])
        if not family.layer_norm:
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
    """Describe the smaller model, in the words of transformers as far as they go."""
    family = family_of(source.config)
    config = copy.deepcopy(source.config)
    if family.has_head:
        config.tie_word_embeddings = True  # else the stacks get tables of their own; an own head is untied afterwards
    for key in (REMOVED_ROWS, GAPS, WIDTHS):
        if hasattr(config, key):
            delattr(config, key)
    for stack, kept in rest.layers.items():
        setattr(config, family.num_layers[stack], len(kept))
    dense = value(config, family.sizes["d_model"][0], None)
    setattr(config, family.sizes["d_model"][0], len(rest.dims))
    for attribute, count in _widest(family, rest, columns).items():
        setattr(config, attribute, count)
    if not family.layer_norm:
        config.layer_norm_epsilon = config.layer_norm_epsilon * dense / len(rest.dims)
    if len(rest.rows) != anatomy.table.shape[0]:
        _remap_ids(config, rest, family)
        config.vocab_size = len(rest.rows)
    for attribute, other in family.mirrors.items():
        setattr(config, attribute, getattr(config, other))
    widths = widths_of(anatomy, rest, columns)
    if family.layer_norm:
        widths = replace(widths, head_sizes=_head_sizes(anatomy), embed_scale=_embed_scale(source))
    if rest.ragged or not _is_plain(family, config, widths):
        setattr(config, WIDTHS, widths.as_json())
    return config


def _widest(family: Family, rest: Remainder, columns: dict[Stack, Indexes]) -> dict[str, int]:
    """How many heads and neurons a configuration names that has one number for all of some layers."""
    widest: dict[str, int] = {}

    def widen(size: str, stack: str, count: int) -> None:
        attribute = family.sizes[size][0].format(stack=stack)
        widest[attribute] = max(widest.get(attribute, 0), count)

    for key, layers in rest.heads.items():
        widen("num_heads", key.partition(".")[0], max(map(len, layers)))
    for stack, kept in columns.items():
        widen("num_heads", stack, len(kept))
    for stack, layers in rest.neurons.items():
        widen("d_ff", stack, max(map(len, layers)))
    if family.layer_norm:  # transformers divides d_model by the number of heads, and refuses what does not divide
        for stack in rest.layers:
            attribute = family.sizes["num_heads"][0].format(stack=stack)
            if len(rest.dims) % widest[attribute]:
                widest[attribute] = 1
    return widest


def _head_sizes(anatomy: Anatomy) -> dict[str, int]:
    """Elements of one head, by stack."""
    return {str(place.stack): place.slices[0].size for place in places(anatomy, "head")}


def _embed_scale(source: Any) -> float | None:
    """What a model multiplies its embeddings by; None where it does not know such a scale."""
    return next((float(module.embed_scale) for module in source.modules() if hasattr(module, "embed_scale")), None)


def _is_plain(family: Family, config: Any, widths: Widths) -> bool:
    """Tell whether a configuration without widths of its own describes the same model."""
    own = copy.deepcopy(config)
    setattr(own, WIDTHS, widths.as_json())
    plain, ragged = expected(family, config), expected(family, own)
    scale = math.sqrt(value(config, family.sizes["d_model"][0], None)) if _scales(config) else 1.0
    same_scale = widths.embed_scale is None or math.isclose(widths.embed_scale, scale, rel_tol=1e-12)
    return same_scale and all((item.shape, item.dims) == (ragged[path].shape, ragged[path].dims)
                              for path, item in plain.items())  # fmt: skip


def _scales(config: Any) -> bool:
    return bool(getattr(config, "scale_embedding", False))


def _generation_config(source: Any, rest: Remainder) -> Any:
    settings = copy.deepcopy(source.generation_config)
    if len(rest.rows) != source.config.vocab_size:
        _remap_ids(settings, rest, family_of(source.config))
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
            known = getattr(holder, name, None)
            found.update(known if isinstance(known, list) else [] if known is None else [known])
    return frozenset(found)


def _remap_ids(holder: Any, rest: Remainder, family: Family) -> None:
    """Give the special tokens their new numbers."""
    new = {old: index for index, old in enumerate(rest.rows)}
    for name in TOKEN_IDS:
        known = getattr(holder, name, None)
        if known is None:
            continue
        ids = known if isinstance(known, list) else [known]
        gone = [token for token in ids if token not in new]
        if gone:
            raise MaskError(
                f"{name}: token {gone[0]} would go, and the model needs it. Keep its row: prune unit vocab_row with "
                "score frequency, which keeps the special tokens."
            )
        if name == "pad_token_id" and family.pad_shifts_positions and new[ids[0]] != ids[0]:
            raise MaskError(
                f"{name}: the padding token would get number {new[ids[0]]} instead of {ids[0]}, and positions are "
                "counted from it. Keep the rows before it."
            )
        setattr(holder, name, [new[token] for token in ids] if isinstance(known, list) else new[known])


def _mend_norms(small: Any, before: Anatomy, after: Anatomy, rest: Remainder) -> None:
    """Make up for dimensions that norms no longer count; see `cut`."""
    dense, left = before.table.shape[1], len(rest.dims)
    if dense == left:
        return
    factor = (dense / left) ** 0.5
    for weight in after.weights:
        if weight.role == "norm":
            small.get_parameter(weight.path).mul_(factor)
    last = small.get_parameter("decoder.final_layer_norm.weight")
    last.mul_(before.head_scale / after.head_scale)


__all__ = ["CutModel", "cut", "named_tokens"]
