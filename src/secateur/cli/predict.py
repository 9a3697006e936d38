"""`secateur predict`."""

from __future__ import annotations

from typing import Annotated

import typer

from secateur.cli.options import Device, Model, Set, Threads, use_threads


def predict(
    model: Model,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Texts: .jsonl(.gz), .csv, .parquet, or .txt with a text a line.")
    ],
    recipe: Annotated[
        str | None, typer.Option(help="Source column, prefix, lengths, beams; by default those of the model's run.")
    ] = None,
    overrides: Set = None,
    out: Annotated[str | None, typer.Option(help="A file to write; by default standard output.")] = None,
    format: Annotated[
        str | None, typer.Option(help="jsonl, csv or course; by default csv where --out ends in .csv, else jsonl.")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Let a model write for texts that have no references.

    `--format course` writes the two columns that the report's course takes: ID and Predict.

    Examples: `secateur predict runs/g2p words.txt --set evaluation.num_beams=5`;
    `secateur predict runs/billsum test.jsonl --format course --out submission.csv`
    """
    use_threads(threads)
    from secateur import console, prediction

    form = prediction.choose_format(format, out)
    reporter = console.ConsoleReporter()
    if out is not None:
        reporter.stage_started(1, 1, model, "predict")
    try:
        found = prediction.predict(
            model,
            file,
            recipe,
            overrides=overrides or [],
            device=device,
            out=out,
            format=form,
            on_batch=reporter.predicting if out is not None else None,
        )
    finally:
        reporter.close()
    if out is None:
        typer.echo(found.as_text(form).encode(), nl=False)  # bytes: a terminal's own encoding may lack a character
    else:
        typer.echo(f"{len(found.predictions)} texts: {out}")
