"""`secateur sweep`."""

from __future__ import annotations

from typing import Annotated

import typer

from secateur.cli.options import Device, Json, Model, Set, Threads, use_threads
from secateur.errors import SecateurError


def sweep(
    model: Model,
    out: Annotated[str, typer.Option(help="The sweep's folder; one that was stopped is gone on with.")],
    tokens: Annotated[str, typer.Option(help="Limits of new tokens, the start token not counted.")] = "19,63,127",
    beams: Annotated[str, typer.Option(help="Numbers of beams; 1 is greedy.")] = "1,5",
    recipe: Annotated[
        str | None, typer.Option(help="Task, data and metrics; by default those of the model's run.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="By default the recipe's: validation.")] = None,
    overrides: Set = None,
    as_json: Json = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Measure quality against milliseconds at every pair of a generation length and a number of beams.

    Writes sweep.json, sweep.md, sweep.png, and a folder for each cell. (What other tools call max_length 20, 64, 128
    counts the start token: 19, 63, 127 here.)

    Example: `secateur sweep runs/debian-report --tokens 19,63,127 --beams 1,5 --out runs/sweep`
    """
    lengths, numbers = _numbers("--tokens", tokens), _numbers("--beams", beams)
    use_threads(threads)
    from secateur import console, sweeping
    from secateur.cli.progress import cell_progress, print_found

    with cell_progress("sweep", quiet=as_json) as progress:
        found = sweeping.sweep(
            model,
            recipe,
            out=out,
            max_new_tokens=lengths,
            num_beams=numbers,
            overrides=overrides or [],
            split=split,
            device=device,
            on_cell=progress.on_cell,
            on_batch=progress.on_batch,
        )
    print_found(found, out, as_json=as_json, show=console.print_sweep)


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise SecateurError(f"{option}: must be whole numbers with commas between them, and is {text!r}.") from error
