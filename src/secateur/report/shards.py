"""The card of a folder that was pruned by shards, from its stage.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.report.sections import cell, environment_line, markdown_table, matrices_table


def shards_card(entry: Mapping[str, Any]) -> str:
    """Write the card's Markdown.

    Args:
        entry: what stage.json holds.

    Returns:
        The whole file.
    """
    counts, groups = entry["counts"], entry["groups"]
    policies = "".join(
        f"\n\n`tie: {group['tie']}`: {_TIES[group['tie']]}" for group in groups if group["tie"] is not None
    )
    rows = [
        [
            cell(group["role"]),
            group["scope"],
            f"{group['sparsity']:g}",
            f"{group['num_removed']:,} of {group['num_elements']:,}",
            str(group["num_weights"]),
        ]
        for group in groups
    ]
    peak = entry["peak_memory_bytes"]
    memory = "peak memory not measured" if peak is None else f"peak memory {peak / 1e9:.2f} GB"
    return (
        "\n\n".join(
            [
                f"# {cell(entry['name'])}",
                "Pruned by magnitude, tensor by tensor, and not retrained: expect the quality to be far below the "
                "dense model's until it is. `AutoModelForSeq2SeqLM.from_pretrained` loads `model/`; "
                f"`masks.safetensors` says what went.{policies}",
                markdown_table(["group", "scope", "sparsity", "removed", "tensors"], rows),
                f"Counted ratio {counts['counted_ratio']:.7f}, stored ratio {counts['stored_ratio']:.4f}, "
                f"{counts['num_parameters']:,} values in {counts['num_bytes'] / 1e6:.1f} MB, of "
                f"{entry['dense_parameters']:,} dense parameters. Zeros take as much room as other values; `secateur "
                "pack` makes them small.",
                matrices_table(entry["sparsity"]),
                f"{entry['seconds']:.1f} s, {memory}, largest weight file {entry['largest_shard_bytes'] / 1e9:.2f} GB. "
                f"Weights `{entry['hash'][:12]}`. {environment_line(entry['environment'])}",
            ]
        )
        + "\n"
    )


_TIES = {
    "view": "the head is stored as a table of its own, the embedding is whole.",
    "both": "the embedding lost what the head lost.",
    "untie": "the head is a table of its own.",
}
