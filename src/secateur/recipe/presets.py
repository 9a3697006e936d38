"""Ready-made groups of a prune stage, by name; the resolved recipe writes them out."""

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
    if not isinstance(prune, dict) or "groups" in prune or prune.get("preset") not in PRESETS:
        return prune
    return {**prune, "preset": None, "groups": PRESETS[prune["preset"]]}
