"""`secateur search`."""

from __future__ import annotations

from typing import Annotated

import typer

from secateur.cli.options import (
    Device,
    Json,
    Model,
    Set,
    Threads,
    choice,
    parse_shares,
    stop_on_interrupt,
    use_threads,
)
from secateur.errors import SecateurError
from secateur.recipe import names
from secateur.search.budget import Kind


def search(
    model: Model,
    out: Annotated[str, typer.Option(help="The search's folder; one that was stopped is gone on with.")],
    counted: Annotated[float | None, typer.Option(help="Share of the dense parameters that no mask removes.")] = None,
    stored: Annotated[float | None, typer.Option(help="Share of the dense parameters that is really stored.")] = None,
    num_bytes: Annotated[int | None, typer.Option("--bytes", help="Bytes of the packed file, fp32 values.")] = None,
    score: Annotated[str, typer.Option(help="What decides which weights go.")] = "lamp",
    scope: Annotated[str, typer.Option(help="global: one threshold a group; tensor: one a matrix.")] = "global",
    tie: Annotated[str, typer.Option(help="view, both or untie, for a head that shares the embedding.")] = "view",
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Every layer for itself.")] = False,
    sparsities: Annotated[str, typer.Option(help="At which the curves are measured.")] = "0.3,0.5,0.6,0.7,0.8,0.9,0.95",
    rows: Annotated[int, typer.Option(min=1, help="Rows of the split for the curves.")] = 512,
    trials: Annotated[int, typer.Option(min=0, help="Short real runs that refine the sparsities.")] = 0,
    trial_epochs: Annotated[float, typer.Option(help="Of retraining in each.")] = 0.25,
    epochs: Annotated[float, typer.Option(help="Of retraining in the recipe that is written.")] = 4.0,
    recipe: Annotated[str | None, typer.Option(help="Task and retraining; by default the model's run's.")] = None,
    overrides: Set = None,
    as_json: Json = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Choose how much of each group goes for a budget, and write a recipe that is ready to run.

    Measures curves (as `secateur sensitivity` does), spends the budget where it costs least, and with --trials refines
    that by short real runs. Several processes with the same --out share the trials.

    Example: `secateur search runs/g2p-dense --counted 0.26 --trials 20 --out runs/search`
    """
    budgets: dict[Kind, float | None] = {"counted": counted, "stored": stored, "bytes": num_bytes}
    given: list[tuple[Kind, float]] = [(kind, value) for kind, value in budgets.items() if value is not None]
    if len(given) != 1:
        raise SecateurError("Give exactly one budget: --counted, --stored or --bytes.")
    shares = parse_shares("--sparsities", sparsities)
    chosen = {"scope": choice("--scope", scope, names.Scope), "tie": choice("--tie", tie, names.Tie)}
    use_threads(threads)
    from secateur import console, searching
    from secateur.cli.progress import cell_progress, print_found

    with cell_progress("sensitivity", quiet=as_json) as progress:
        found = searching.search(
            model,
            recipe,
            out=out,
            budget=given[0],
            score=score,
            **chosen,
            per_layer=per_layer,
            sparsities=shares,
            rows=rows,
            trials=trials,
            trial_epochs=trial_epochs,
            epochs=epochs,
            overrides=overrides or [],
            device=device,
            on_cell=progress.on_cell,
            on_trial=progress.on_trial,
            should_stop=stop_on_interrupt(),
        )
    print_found(found, out, as_json=as_json, show=console.print_search)
