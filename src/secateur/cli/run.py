"""`secateur run`, and `secateur demo`, which runs one recipe that comes along."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from secateur.cli.ls import recipes_folder
from secateur.cli.options import Device, RecipeFile, Set, Threads, stop_on_interrupt, use_threads

DEMO = "g2p/demo.yaml"


def run(
    recipe: RecipeFile,
    out: Annotated[str | None, typer.Option(help="The run folder; by default runs/NAME of the recipe's file.")] = None,
    overrides: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped or killed.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that stands there.")] = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Run a recipe: prune, retrain, evaluate, and leave a folder with a model, a card and a manifest.

    Ctrl-C stops it at the next step; `secateur run FOLDER --resume` goes on and ends with the weights of an unbroken
    run.

    Several processes share one run: `torchrun --nproc-per-node 2 -m secateur run RECIPE --threads 4`.

    Examples: `secateur run recipes/g2p/report.yaml --out runs/report`; `secateur run runs/report --resume`
    """
    _run(recipe, out, overrides or [], resume=resume, overwrite=overwrite, device=device, threads=threads)


def demo(
    out: Annotated[str, typer.Option(help="The run folder; it is replaced if it holds a run.")] = "runs/demo",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a demo that was stopped.")] = False,
    overrides: Set = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Prune and retrain the model that comes along (English spelling to phonemes), in a few minutes on two cores.

    Example: `secateur demo --out runs/demo`
    """
    recipe = str(recipes_folder() / DEMO)
    _run(recipe, out, overrides or [], resume=resume, overwrite=not resume, device=device, threads=threads)


def _run(recipe: str, out: str | None, overrides: list[str], *, threads: int | None, **options: Any) -> None:
    use_threads(threads)
    from secateur import console, pipeline

    reporter = console.ConsoleReporter()
    try:
        pipeline.run(recipe, out, overrides=overrides, reporter=reporter, should_stop=stop_on_interrupt(), **options)
    finally:
        reporter.close()
