"""A small T5 with a tokenizer, pruned with torch.nn.utils.prune exactly as the report does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune
from transformers import T5Config, T5ForConditionalGeneration

from secateur.quiet import quiet_transformers
from toy import ROOT, VOCABULARY

AMOUNTS = {"self_attention": 0.9, "cross_attention": 0.4, "feed_forward": 0.7, "lm_head": 0.8}
_KINDS = {
    "T5LayerSelfAttention": "self_attention",
    "T5LayerCrossAttention": "cross_attention",
    "T5LayerFF": "feed_forward",
}


def make_dense(*, tied: bool = True) -> Any:
    """A T5 of 2 + 2 layers, d_model 16."""
    sizes = {"d_model": 16, "d_kv": 4, "num_heads": 2, "d_ff": 24, "num_layers": 2, "decoder_start_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, **sizes))
        if not tied:
            model.lm_head.weight = nn.Parameter(torch.randn(VOCABULARY, 16))
    return model.eval()


def save_dense(folder: Path, **options: Any) -> Path:
    """A folder of it, with the tokenizer of recipes/tiny."""
    with quiet_transformers():
        make_dense(**options).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "recipes" / "tiny" / "start" / name, folder / name)
    return folder


def report_groups(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """The report's four groups, found as it finds them."""
    groups: dict[str, list[tuple[nn.Module, str]]] = {role: [] for role in AMOUNTS}
    for name, module in model.named_modules():
        role = _KINDS.get(type(module).__name__)
        if role:
            groups[role] += [(item, "weight") for item in module.modules() if isinstance(item, nn.Linear)]
        if name == "lm_head":
            groups["lm_head"].append((module, "weight"))
    return groups


def prune_as_report(model: Any) -> Any:
    """Prune the four groups; the masks stay attached."""
    for role, layers in report_groups(model).items():
        prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=AMOUNTS[role])
    return model


def masks_in(model: nn.Module) -> dict[str, torch.Tensor]:
    """The masks that torch attached: parameter -> bool."""
    return {name.removesuffix("_mask"): mask.bool() for name, mask in model.named_buffers() if name.endswith("_mask")}


def logits_of(model: Any) -> torch.Tensor:
    """Logits of a few fixed rows."""
    tokens = torch.arange(2, 2 + 24).reshape(3, 8)
    with torch.no_grad():
        return model.eval()(input_ids=tokens, decoder_input_ids=tokens.flip(1)).logits
