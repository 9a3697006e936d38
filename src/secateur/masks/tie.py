"""A head that shares the embedding table: what its mask is laid on, and how to give it a table of its own.

Three policies: `view` masks the shared table in the head's forward pass only, `both` masks the table itself (the
embedding loses those entries too), `untie` first gives the head a copy (the model grows).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from secateur.anatomy.roles import Weight
from secateur.errors import MaskError
from secateur.masks.mask import Mode
from secateur.recipe.names import Tie

HEAD = "lm_head.weight"
TABLE = "shared.weight"
SCALES_WHILE_TIED = ("umt5",)  # families whose forward pass reads config.tie_word_embeddings to decide about the scale

POLICIES = (
    "tie: view (masks the shared table in the head only; the embedding stays whole), tie: both (masks the table "
    "itself, the embedding loses those entries too) or tie: untie (gives the head its own copy; the model grows)"
)


def is_tied(model: nn.Module) -> bool:
    """Say whether the model's head is its embedding table.

    Args:
        model: a model with `lm_head.weight` and `shared.weight`.

    Returns:
        True when the two names are one tensor; False also when the model has no head.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    return HEAD in named and named[HEAD] is named.get(TABLE)


def masked_path(weight: Weight, tie: Tie | None) -> str:
    """Name the parameter that a weight's mask is laid on.

    Args:
        weight: a weight of a group.
        tie: the group's policy.

    Returns:
        The weight's own name; for a tied head under "both", the name of the table.
    """
    return weight.storage if tie == "both" else weight.path


def settle(model: nn.Module, weights: Sequence[Weight], tie: Tie | None) -> dict[str, Mode]:
    """Apply a group's tie policy: untie if asked, and say what is masked and how.

    Args:
        model: the model; changed only by "untie".
        weights: the group, from `Anatomy.select`.
        tie: the policy; needed when the group holds a tied head, refused when it does not.

    Returns:
        Name to mask -> mode, in the order of the weights.

    Raises:
        MaskError: a tied head without a policy, or a policy where nothing is tied.
    """
    tied = [weight for weight in weights if weight.path != weight.storage]
    if tied and tie is None:
        raise MaskError(f"{tied[0].path} is {tied[0].storage} (tied). Say what its mask is laid on: {POLICIES}.")
    if tie is not None and not tied:
        raise MaskError(f"tie: {tie} cannot act: no weight of this group is tied. Leave it out.")
    if tie == "untie" and is_tied(model):
        untie(model)
    view = {weight.path for weight in tied} if tie == "view" else set()
    return {masked_path(weight, tie): "view" if weight.path in view else "hold" for weight in weights}


def untie(model: nn.Module) -> None:
    """Give the head its own copy of the table, and see to it that nothing ties the two again.

    `tie_weights()` (also called by `resize_token_embeddings` and while loading) and `save_pretrained` then treat the
    two as separate. The logits do not change: whatever scales the head goes on scaling it. A model whose head is its
    own already, for example one loaded from a folder with two tables, is only protected from being tied again.

    Args:
        model: a Hugging Face encoder-decoder with `shared` and `lm_head`; changed in place.

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
    if config is not None and config.model_type not in SCALES_WHILE_TIED:
        config.tie_word_embeddings = False
