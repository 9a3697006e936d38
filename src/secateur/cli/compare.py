"""`secateur compare`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from secateur.cli.options import Device, Json, Set, Threads, use_threads


def compare(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Two or more: runs, stages, predictions.jsonl files, models."),
    ],
    recipe: Annotated[
        str | None,
        typer.Option(help="Task and data of models without a run, metrics, seed; by default the first run's."),
    ] = None,
    overrides: Set = None,
    split: Annotated[str | None, typer.Option(help="By default that of the first run's last stage.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="Instead of the recipe's; may be repeated.")] = None,
    as_json: Json = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Compare runs or models with the first of them, on the same rows: better, worse, or cannot tell.

    Runs are compared by the outputs that they stored, other models write anew. Each difference has a 95 % interval from
    a paired bootstrap.

    Examples: `secateur compare runs/dense runs/pruned`;
    `secateur compare runs/a/01-dense runs/a --metric rouge --metric bleu`;
    `secateur compare t5-small my-t5 --recipe my.yaml --split test`
    """
    use_threads(threads)
    from secateur import comparison, console

    reporter = console.ConsoleReporter()
    try:
        found = comparison.compare(
            models,
            recipe,
            overrides=overrides or [],
            split=split,
            metrics=metric or [],
            device=device,
            on_batch=None if as_json else reporter.predicting,
        )
    finally:
        reporter.close()
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
    else:
        console.print_comparison(found)
