"""`secateur prune`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from secateur.cli.options import Json, Set
from secateur.errors import SecateurError

Folder = Annotated[
    str, typer.Argument(metavar="MODEL", help="A Hugging Face folder, a run or a stage; it is only read.")
]


def prune(
    model: Folder,
    out: Annotated[str, typer.Option(help="Where to write; a folder must be new or empty.")],
    groups: Annotated[
        list[str] | None,
        typer.Option("--group", metavar="KEY=VALUE,...", help="Keys as in a recipe's groups; may be repeated."),
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Instead of groups: its prune stages are done.")] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Prune a model of any size by magnitude, tensor by tensor: its shards are never in memory together.

    What goes is what `secateur run` would remove at once, to the element. The result loads in plain transformers.

    Examples: `secateur prune t5-3b --group role=feed_forward,sparsity=0.7 --group role=lm_head,sparsity=0.8,tie=both
    --out pruned`; `secateur prune t5-3b --recipe groups.yaml --out pruned`
    """
    if bool(groups) == bool(recipe):
        raise SecateurError("Give either --recipe, or --group once or more: --group role=self_attention,sparsity=0.9.")
    if overrides and not recipe:
        raise SecateurError("--set cannot act: it changes a recipe, and none is given. Change the --group instead.")
    from secateur import folder_pruning
    from secateur.cli.progress import cell_progress
    from secateur.shard_recipe import parse_group

    chosen = [parse_group(text) for text in groups or []]
    with cell_progress("prune", quiet=as_json) as progress:
        found = folder_pruning.prune(
            model, out, recipe=recipe, groups=chosen, overrides=overrides or [], on_bytes=progress.on_bytes
        )
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for group in found["groups"]:
        tie = f" (tie: {group['tie']})" if group["tie"] else ""
        typer.echo(f"{group['role']:16} {group['num_removed']:>14,} of {group['num_elements']:,} removed{tie}")
    counts, peak = found["counts"], found["peak_memory_bytes"]
    memory = "" if peak is None else f", peak memory {peak / 1e6:.0f} MB"
    typer.echo(
        f"counted {counts['counted_ratio']:.7f}, stored {counts['stored_ratio']:.4f}, "
        f"{counts['num_bytes'] / 1e6:.1f} MB, {found['seconds']:.1f} s{memory}"
    )
    typer.echo(f"written  {out}")
