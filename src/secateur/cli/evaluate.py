"""`secateur evaluate`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from secateur.cli.options import Device, Json, Model, Set, Threads, use_threads


def evaluate(
    model: Model,
    recipe: Annotated[
        str | None, typer.Option(help="Task, data and metrics; by default those of the model's run.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="train, validation, test, or a split's own name.")] = None,
    overrides: Set = None,
    predictions: Annotated[str | None, typer.Option(help="A file for the outputs, one JSON object a line.")] = None,
    as_json: Json = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Measure a checkpoint's quality, with 95 % intervals.

    Examples: `secateur evaluate runs/g2p-report --split test`;
    `secateur evaluate my-t5 --recipe recipes/report/t5-small-billsum.yaml --set evaluation.num_beams=1`
    """
    use_threads(threads)
    from secateur import console, measure

    reporter = console.ConsoleReporter()
    if not as_json:
        reporter.stage_started(1, 1, model, "evaluate")
    try:
        found = measure.evaluate(
            model,
            recipe,
            overrides=overrides or [],
            split=split,
            device=device,
            predictions=predictions,
            on_batch=None if as_json else reporter.evaluating,
        )
    finally:
        reporter.close()
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
        return
    for name, value in found.result.figures.items():
        typer.echo(f"{name:>20}  {console.figure(vars(value))}")
    signs = found.result.collapse
    told = f"; {signs.empty} empty, {signs.repeated} repeated, {signs.truncated} truncated" if signs else ""
    typer.echo(f"{len(found.pairs)} rows of {found.split}{told}")
