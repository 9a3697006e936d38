"""`secateur search`."""

from __future__ import annotations

from typing import Annotated, Any

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
from secateur.search.curves import Measure

SPARSITIES = "0.3,0.5,0.6,0.7,0.8,0.9,0.95"


def search(
    model: Model,
    out: Annotated[str, typer.Option(help="The search's folder; one that was stopped is gone on with.")],
    counted: Annotated[float | None, typer.Option(help="Share of the dense parameters that no mask removes.")] = None,
    stored: Annotated[float | None, typer.Option(help="Share of the dense parameters that is really stored.")] = None,
    num_bytes: Annotated[
        int | None, typer.Option("--bytes", help="Bytes of the packed file (fp32) before it is compressed.")
    ] = None,
    latency_ms: Annotated[float | None, typer.Option(help="Milliseconds a text, at batch 1: whole units go.")] = None,
    keep_roles: Annotated[
        bool, typer.Option("--keep-roles", help="Each role loses what the recipe takes of it; its stacks share that.")
    ] = False,
    engine: Annotated[str | None, typer.Option(help="What --latency-ms is measured in; by default ct2-int8.")] = None,
    score: Annotated[str | None, typer.Option(help="What decides; lamp for weights, taylor for units.")] = None,
    scope: Annotated[str | None, typer.Option(help="One threshold a group (global), matrix (tensor) or row.")] = None,
    tie: Annotated[
        str | None,
        typer.Option(help="view, both or untie, for a head that shares the embedding; a view frees no stored byte."),
    ] = None,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Every layer for itself.")] = False,
    by: Annotated[
        str | None, typer.Option(help="What is to be least: divergence from the dense outputs, or the loss.")
    ] = None,
    sparsities: Annotated[str | None, typer.Option(help=f"Of the curves; by default {SPARSITIES}.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the split for the curves.")] = 512,
    trials: Annotated[int, typer.Option(min=0, help="Short real runs that refine the sparsities.")] = 0,
    trial_epochs: Annotated[float, typer.Option(help="Of retraining in each.")] = 0.25,
    ray: Annotated[bool, typer.Option("--ray", help="Ray Tune runs the trials, here or at RAY_ADDRESS.")] = False,
    epochs: Annotated[float, typer.Option(help="Of retraining in the recipe that is written.")] = 4.0,
    recipe: Annotated[str | None, typer.Option(help="Task and retraining; by default the model's run's.")] = None,
    overrides: Set = None,
    as_json: Json = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Choose how much of each group goes for a budget, and write a recipe that is ready to run.

    Measures curves (as `secateur sensitivity` does), spends the budget where it costs least, and with --trials refines
    that by short real runs. Several processes with the same --out share the trials. For --latency-ms whole units go:
    shapes are timed, with --threads (1 by default), and the cheapest one that is fast enough is taken. --keep-roles
    leaves each role the number of weights that the recipe does, and shares it out anew between its stacks.

    Example: `secateur search runs/g2p-dense --counted 0.26 --trials 20 --out runs/search`
    """
    budgets: dict[Kind, float | None] = {"counted": counted, "stored": stored, "bytes": num_bytes}
    given: list[tuple[Kind, float]] = [(kind, value) for kind, value in budgets.items() if value is not None]
    if len(given) + (latency_ms is not None) + keep_roles != 1:
        raise SecateurError("Give exactly one budget: --counted, --stored, --bytes, --keep-roles or --latency-ms.")
    if ray and not trials:
        raise SecateurError("--ray cannot act: it runs the trials, and --trials is 0.")
    of_weights = {"--scope": scope, "--tie": tie, "--per-layer": per_layer, "--by": by, "--sparsities": sparsities}
    idle = {"--engine": engine} if latency_ms is None else of_weights
    if wrong := [option for option, value in idle.items() if value]:
        what = "weights go one by one" if latency_ms is None else "whole units go"
        raise SecateurError(f"{wrong[0]} cannot act: {what} for this budget. Leave it out.")
    use_threads(threads)
    from secateur import console, latency, searching
    from secateur.cli.progress import cell_progress, print_found

    options: dict[str, Any] = {
        "out": out,
        "rows": rows,
        "trials": trials,
        "trial_epochs": trial_epochs,
        "epochs": epochs,
        "overrides": overrides or [],
        "device": device,
        "ray_threads": (threads or 1) if ray else None,
        "should_stop": stop_on_interrupt("the cell or the training step at work"),
    }
    with cell_progress("search", quiet=as_json) as progress:
        options |= {"on_cell": progress.on_cell, "on_trial": progress.on_trial}
        if latency_ms is not None:
            options |= {"score": choice("--score", score or "taylor", latency.LatencyScore)}
            found = latency.search_latency(
                model, recipe, latency_ms=latency_ms, engine=engine or "ct2-int8", threads=threads or 1, **options
            )
        else:
            found = searching.search(
                model,
                recipe,
                budget=None if keep_roles else given[0],
                score=score or "lamp",
                scope=choice("--scope", scope or "global", names.Scope),
                tie=choice("--tie", tie or "view", names.Tie),
                per_layer=per_layer,
                by=choice("--by", by or "divergence", Measure),
                sparsities=parse_shares("--sparsities", sparsities or SPARSITIES),
                **options,
            )
    print_found(found, out, as_json=as_json, show=console.print_search)
