"""What a token costs, in multiply-accumulate operations (MACs)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from secateur.anatomy.roles import Anatomy, Weight
from secateur.errors import SecateurError

MULTIPLIED = ("self_attention", "cross_attention", "feed_forward", "lm_head", "classifier")


@dataclass(frozen=True)
class Macs:
    """MACs of one row (batch 1, one beam).

    Attributes:
        per_source_token: mean over the source's tokens.
        per_generated_token: mean over the generated tokens.
        total: of the whole row; what classifies runs once for all of its tokens.
    """

    per_source_token: float
    per_generated_token: float
    total: float


def _runs_per_source_token(weight: Weight) -> bool:
    """Tell whether a matrix is multiplied once per source token; the others: once per generated token."""
    # The decoder's cross-attention makes its keys and values from the encoder's output, once, and caches them.
    return weight.stack == "encoder" or (weight.role == "cross_attention" and weight.part in ("k", "v"))


def macs(anatomy: Anatomy, *, source_tokens: int, new_tokens: int, zeros: Mapping[str, int] | None = None) -> Macs:
    """Count the MACs of one row: its source is encoded once, then every new token is decoded with a cache.

    With S source tokens, T new tokens and A = num_heads x d_kv of a layer:

        per source token    = sum of the encoder's matrices + sum of the cross-attentions' k and v
                              + 2 x S x sum of A over the encoder's layers           (queries x keys, weights x values)
        per generated token = sum of the decoder's other matrices + lm_head
                              + 2 x (T + 1) / 2 x sum of A over the self-attentions  (the cache holds 1 ... T tokens)
                              + 2 x S x sum of A over the cross-attentions
        total               = S x per source token + T x per generated token + the classifier's matrices

    A model without a decoder generates nothing: T does not count. A matrix counts its number of elements. Table
    look-ups, position biases, the biases of matrices, norms, softmax and activations are left out: they are not matrix
    products.

    Args:
        anatomy: the model. Tied matrices count in each of their uses, the biases of matrices in none.
        source_tokens: S, at least 1.
        new_tokens: T, at least 1.
        zeros: parameter name -> removed entries, which are not counted: what an ideal sparse engine would do.

    Returns:
        The MACs.

    Raises:
        SecateurError: a length is below 1.
    """
    for name, length in (("source_tokens", source_tokens), ("new_tokens", new_tokens)):
        if length < 1:
            raise SecateurError(f"{name}: {length} is not a length. Give at least 1.")
    zeros = zeros or {}
    source = generated = once = 0.0
    for weight in anatomy.weights:
        if weight.role not in MULTIPLIED or weight.is_addend:
            continue
        products = weight.numel - zeros.get(weight.path, 0)
        if weight.role == "classifier":
            once += products
        elif _runs_per_source_token(weight):
            source += products
        else:
            generated += products
        if weight.part != "q":
            continue
        width = weight.shape[0]
        if weight.stack == "encoder":
            source += 2 * source_tokens * width
        else:
            length = source_tokens if weight.role == "cross_attention" else (new_tokens + 1) / 2
            generated += 2 * length * width
    return Macs(source, generated, source_tokens * source + new_tokens * generated + once)
