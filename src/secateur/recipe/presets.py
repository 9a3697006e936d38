"""Ready-made parts of a stage, by name: what is pruned, what is learned; the resolved recipe writes them out."""

from __future__ import annotations

from typing import Any

# Ko et al. 2023, arXiv:2310.10054 (NASH): the decoder's depth decides the speed of generation, the encoder's width
# costs least quality. The shares are ours.
ASYMMETRIC = (
    {"unit": "layer", "stack": "decoder", "sparsity": 0.67, "score": "spacing"},
    {
        "unit": "head",
        "role": "self_attention",
        "stack": "encoder",
        "sparsity": 0.5,
        "score": "taylor",
        "width": "ragged",
    },
    {"unit": "ffn_neuron", "stack": "encoder", "sparsity": 0.5, "score": "taylor", "width": "ragged"},
)

PRESETS: dict[str, tuple[dict[str, Any], ...]] = {"asymmetric": ASYMMETRIC}


def expand(prune: Any) -> Any:
    """Write a preset's groups out.

    Args:
        prune: what stands under `prune`, of any type.

    Returns:
        The same, with groups in the place of a preset that is known and stands alone.

    >>> [group["unit"] for group in expand({"preset": "asymmetric"})["groups"]]
    ['layer', 'head', 'ffn_neuron']
    """
    if not isinstance(prune, dict) or "groups" in prune or not isinstance(prune.get("preset"), str):
        return prune
    if prune["preset"] not in PRESETS:
        return prune
    return {**prune, "preset": None, "groups": PRESETS[prune["preset"]]}


AUTO = "height"  # NNI's link of this name is the module of the same name: the layer at the same height
DISTILLERS: dict[str, str] = {"dynamic_layerwise": "nearest", "adaptive_1d_layerwise": "height"}  # -> map without link
NNI_TEMPERATURE = 2.0  # fixed in NNI


def lessons_of(name: str, *, weight: float, origin_loss_lambda: float, apply_method: str) -> dict[str, Any]:
    """Write one of NNI's distillers out as distillation.

    Args:
        name: one of DISTILLERS.
        weight: NNI's lambda, of what is learned from the teacher; 0 or more.
        origin_loss_lambda: of the data's targets; 0 or more.
        apply_method: mse for hidden states, kl for logits.

    Returns:
        Keys and values of `distillation`, without those that a link decides.

    >>> lessons_of("dynamic_layerwise", weight=0.5, origin_loss_lambda=1.0, apply_method="mse")
    {'labels': 1.0, 'logits': 0.0, 'hidden': 0.5, 'map': 'nearest'}
    """
    if apply_method == "kl":
        return {"labels": origin_loss_lambda, "logits": weight, "temperature": NNI_TEMPERATURE}
    return {"labels": origin_loss_lambda, "logits": 0.0, "hidden": weight, "map": DISTILLERS[name]}
