"""A head that shares the embedding table: what its mask is laid on, and how to give it a table of its own.

Three policies: `view` masks the shared table in the head's forward pass only, `both` masks the table itself (the
embedding loses those entries too), `untie` first gives the head a copy (the model grows).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from secateur.anatomy.families import FAMILIES
from secateur.errors import MaskError
from secateur.masks.mask import MaskSet

HEAD = "lm_head.weight"
SCALES_WHILE_TIED = ("umt5",)  # families whose forward pass reads config.tie_word_embeddings to decide about the scale

POLICIES = (
    "tie: view (masks the shared table in the head only; the embedding stays whole), tie: both (masks the table "
    "itself, the embedding loses those entries too) or tie: untie (gives the head its own copy; the model grows)"
)


def table_of(model: nn.Module) -> str:
    """Name a model's table of words.

    Args:
        model: of one of our families.

    Returns:
        The name of the parameter.
    """
    config: Any = model.config
    return FAMILIES[config.model_type].table


def is_tied(model: nn.Module) -> bool:
    """Say whether the model's head is its embedding table.

    Args:
        model: of one of our families.

    Returns:
        True when the two names are one tensor; False also when the model has no head.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    return HEAD in named and named[HEAD] is named.get(table_of(model))


def counted_removed(masks: MaskSet, *, shared: str | None) -> dict[str, int]:
    """Count what masks remove of a dense model's parameters: what the counted ratio is made of.

    A head that shares the table, in the dense model, has no parameters of its own. Its mask (of a view, or of the copy
    that it became) counts as if the table had lost those entries, and an entry that both masks remove is one entry.

    Args:
        masks: the masks.
        shared: the name of the dense model's table, where its head was that table; else None.

    Returns:
        Parameter name -> entries removed; with a shared head what the head loses counts under the table's name.

    >>> import torch
    >>> head, table = torch.tensor([[True, False], [False, False]]), torch.tensor([[True, True], [False, False]])
    >>> both = MaskSet({HEAD: head, "shared.weight": table}, {HEAD: "view", "shared.weight": "hold"}, "")
    >>> counted_removed(both, shared="shared.weight"), counted_removed(both, shared=None)
    ({'shared.weight': 3}, {'lm_head.weight': 3, 'shared.weight': 2})
    """
    removed = {path: masks.removed(path) for path in masks.masks}
    if shared is None or HEAD not in masks:
        return removed
    head = removed.pop(HEAD)
    if shared not in masks:
        return removed | {shared: head}
    both = masks.masks[HEAD].cpu() & masks.masks[shared].cpu()
    return removed | {shared: both.numel() - int(both.count_nonzero())}


def untie(model: nn.Module) -> None:
    """Give the head its own copy of the table, and see to it that nothing ties the two again.

    `tie_weights()` (also called by `resize_token_embeddings` and while loading) and `save_pretrained` then treat the
    two as separate. The logits do not change: whatever scales the head goes on scaling it. A model whose head is its
    own already, for example one loaded from a folder with two tables, is only protected from being tied again.

    Args:
        model: a Hugging Face encoder-decoder with a table and an `lm_head`; changed in place.

    Raises:
        MaskError: the model has no such head.
    """
    head = getattr(model, "lm_head", None)
    if not isinstance(head, nn.Linear):
        raise MaskError(f"{type(model).__name__} has no lm_head that could be untied.")
    if is_tied(model):
        own = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        head.weight = own
    for name in ("_tied_weights_keys", "all_tied_weights_keys"):
        keys = getattr(model, name, None) or {}
        # On the instance: the class's own table is shared by every model of the family.
        setattr(model, name, {target: source for target, source in keys.items() if target != HEAD})
    config = getattr(model, "config", None)
    family = FAMILIES.get(getattr(config, "model_type", ""))
    if config is None or (family is not None and family.tie_covers_stacks):
        return
    if config.model_type not in SCALES_WHILE_TIED:
        config.tie_word_embeddings = False
