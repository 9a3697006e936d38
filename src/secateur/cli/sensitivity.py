"""`secateur sensitivity`."""

from __future__ import annotations

from typing import Annotated

import typer

from secateur.cli.options import Device, Json, Model, Set, Threads, choice, parse_shares, stop_on_interrupt, use_threads
from secateur.recipe import names


def sensitivity(
    model: Model,
    out: Annotated[str, typer.Option(help="Its folder; a measurement that was stopped is gone on with.")],
    sparsities: Annotated[str, typer.Option(help="Shares of a group's weights that go.")] = "0.3,0.5,0.6,0.7,0.8,0.9",
    score: Annotated[str, typer.Option(help="What decides which weights go.")] = "magnitude",
    scope: Annotated[str, typer.Option(help="One threshold a group (global), matrix (tensor) or row.")] = "global",
    tie: Annotated[str, typer.Option(help="view, both or untie, for a head that shares the embedding.")] = "view",
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Every layer for itself.")] = False,
    quality: Annotated[bool, typer.Option("--quality", help="Measure the recipe's metrics too.")] = False,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the split on which all is measured.")] = 512,
    recipe: Annotated[str | None, typer.Option(help="Task and data; by default those of the model's run.")] = None,
    split: Annotated[str | None, typer.Option(help="By default the recipe's: validation.")] = None,
    overrides: Set = None,
    as_json: Json = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Prune each role of each stack alone, without retraining, and tell what each costs at each sparsity.

    Writes sensitivity.json, sensitivity.md, sensitivity.png, and a file for each cell. `secateur search` spends a
    budget along these curves.

    Example: `secateur sensitivity runs/g2p-dense --score obs --out runs/sensitivity`
    """
    shares = parse_shares("--sparsities", sparsities)
    chosen = {"scope": choice("--scope", scope, names.Scope), "tie": choice("--tie", tie, names.Tie)}
    use_threads(threads)
    from secateur import console, sensing
    from secateur.cli.progress import cell_progress, print_found

    with cell_progress("sensitivity", quiet=as_json) as progress:
        found = sensing.sensitivity(
            model,
            recipe,
            out=out,
            sparsities=shares,
            score=score,
            **chosen,
            per_layer=per_layer,
            quality=quality,
            rows=rows,
            overrides=overrides or [],
            split=split,
            device=device,
            on_cell=progress.on_cell,
            should_stop=stop_on_interrupt("the cell at work"),
        )
    print_found(found, out, as_json=as_json, show=console.print_sensitivity)
