"""The command line: it parses, calls one function of the Python API, and prints; errors are sentences."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.errors import SecateurError
from secateur.recipe.names import RESERVED_VERBS

INTERNAL = 70  # exit code of a fault of ours (sysexits.h: EX_SOFTWARE)
DEMO = "g2p/demo.yaml"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Prune, retrain and ship encoder-decoder transformers (T5 first), and prove what was done.",
    epilog="Begin with `secateur demo`, or copy a recipe that `secateur ls` lists. Exit codes: 0 done, 1 a problem "
    "that the message tells how to mend, 2 a wrong recipe or command line, 70 a fault of ours, 130 stopped, resumable.",
)

RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or a run folder.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Change one value; may be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; by default all cores.")]


def _threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


@app.command()
def validate(recipe: RecipeFile, overrides: Set = None) -> None:
    """Check a recipe's text: every fault at once, with file and line. Needs neither torch nor the model.

    Example: `secateur validate recipes/g2p/report.yaml --set stages.dense.train.epochs=3`
    """
    from secateur.recipe.load import load_recipe

    file = Path(recipe) / "recipe.yaml" if (Path(recipe) / "manifest.json").exists() else Path(recipe)
    checked = load_recipe(file, overrides or [])
    typer.echo(f"{file}: valid, {len(checked.stages)} stages: {', '.join(stage.name for stage in checked.stages)}")


@app.command()
def plan(recipe: RecipeFile, overrides: Set = None, as_json: Json = False) -> None:
    """Tell what a recipe would do, from its model's config.json alone: what goes, counts, steps, disk, memory.

    Example: `secateur plan recipes/report/t5-small-billsum.yaml --set model=path/to/t5-small`
    """
    from dataclasses import asdict

    from secateur import console, measure

    found = measure.plan(recipe, overrides=overrides or [])
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        console.print_plan(found)


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a stage, a Hugging Face folder, or a hub id.")],
    as_json: Json = False,
    source_tokens: Annotated[int, typer.Option(min=1, help="Source length that the costs are for.")] = 256,
    new_tokens: Annotated[int, typer.Option(min=1, help="Output length that the costs are for.")] = 64,
    config_only: Annotated[bool, typer.Option("--config-only", help="Read config.json, not the weights.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let the model's own code run.")
    ] = False,
) -> None:
    """Show a model: its parameters by stack, layer and role, ties, sparsity, costs and counts.

    Example: `secateur inspect runs/g2p-report --json`
    """
    from secateur import console, measure

    found = measure.inspect(
        model,
        source_tokens=source_tokens,
        new_tokens=new_tokens,
        weights=not config_only,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        console.print_model(found)


@app.command()
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

    Examples: `secateur run recipes/g2p/report.yaml --out runs/report`; `secateur run runs/report --resume`
    """
    _run(recipe, out, overrides or [], resume=resume, overwrite=overwrite, device=device, threads=threads)


def _run(recipe: str, out: str | None, overrides: list[str], *, threads: int | None, **options: Any) -> None:
    _threads(threads)
    from secateur import console, pipeline

    reporter = console.ConsoleReporter()
    try:
        pipeline.run(recipe, out, overrides=overrides, reporter=reporter, should_stop=_stop_on_interrupt(), **options)
    finally:
        reporter.close()


def _stop_on_interrupt() -> Callable[[], bool]:
    """Turn the first Ctrl-C (or TERM) into a wish to stop, granted at the next step; the second is final."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        typer.echo("\nStopping after this step; once more stops at once.", err=True)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    return lambda: bool(asked)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a stage, a Hugging Face folder, or a hub id.")],
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
    _threads(threads)
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
    told = f"{signs.empty} empty, {signs.repeated} repeated, {signs.truncated} truncated"
    typer.echo(f"{len(found.pairs)} rows of {found.split}; {told}")


def recipes_folder() -> Path:
    """Find the recipes that come with Secateur: in the installed package, or beside the sources."""
    packaged = Path(__file__).parent / "_recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "recipes"


@app.command()
def ls(
    folder: Annotated[
        str | None, typer.Argument(help="A folder of runs; by default the recipes that come along.")
    ] = None,
) -> None:
    """List the recipes that come with Secateur, or the runs in a folder.

    Examples: `secateur ls`; `secateur ls runs`
    """
    if folder is None:
        home = recipes_folder()
        for file in sorted(home.rglob("*.yaml")):
            first = file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
            typer.echo(f"{file.relative_to(home).as_posix():32}  {first}")
        typer.echo(f"\nThey stand in {home}")
        return
    if not Path(folder).is_dir():
        raise SecateurError(f"{folder}: no such folder.")
    _list_runs(Path(folder))


def _list_runs(folder: Path) -> None:
    from secateur.artifacts.manifest import MANIFEST, read_manifest

    found = 0
    for file in sorted(folder.glob(f"*/{MANIFEST}")):
        try:
            manifest = read_manifest(file.parent)
        except SecateurError:
            continue
        found += 1
        stages = manifest.get("stages", [])
        last = stages[-1] if stages else None
        counted = f"counted {last['counts']['counted_ratio']:.4f}" if last else "nothing done yet"
        typer.echo(f"{file.parent.name:28}  {manifest['status']:12} {len(stages)} stages, {counted}")
    if not found:
        typer.echo(f"{folder}: holds no runs.")


@app.command()
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


def _reserve(verb: str) -> None:
    """Answer to a verb of the design that this version does not have yet."""

    @app.command(verb, hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def reserved() -> None:
        typer.echo(
            f"secateur {verb}: is reserved for a later version. `secateur --help` lists what there is.", err=True
        )
        raise typer.Exit(2)


for _verb in RESERVED_VERBS:
    _reserve(_verb)


def main() -> None:
    """Run the command line and leave with its exit code; a traceback goes to a file, never to the screen."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its notes on untied heads would read like ours
    try:
        app(standalone_mode=True)
    except SecateurError as error:
        typer.echo(f"secateur: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("secateur: stopped.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:  # the last net: whatever it is, the user gets a sentence
        with tempfile.NamedTemporaryFile("w", prefix="secateur-", suffix=".txt", delete=False) as stream:
            traceback.print_exc(file=stream)
        typer.echo(
            f"secateur: {type(error).__name__}: {error}\nThis is a fault of ours. Details: {stream.name}", err=True
        )
        sys.exit(INTERNAL)


if __name__ == "__main__":
    main()
