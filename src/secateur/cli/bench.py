"""`secateur bench`."""

from __future__ import annotations

import json
import signal
from typing import Annotated

import typer

from secateur.cli.options import Json, Set
from secateur.errors import RunInterrupted, SecateurError


def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models, exports or packed files.")],
    out: Annotated[
        str | None,
        typer.Option(help="A folder for bench.json, bench.md, bench.png; one that was stopped is gone on with."),
    ] = None,
    engines: Annotated[
        str | None,
        typer.Option(
            help="With commas between them, of hf-fp32,hf-bf16,ct2-fp32,ct2-int8,onnx-fp32,onnx-int8; by default all, "
            "but hf-bf16 where the processor has no instructions for it."
        ),
    ] = None,
    dense: Annotated[str | None, typer.Option(help="The baseline among the models; by default the first.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Task and data; by default those of the first model's run.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="By default the recipe's: validation.")] = None,
    batches: Annotated[str, typer.Option(help="Texts at once.")] = "1,8",
    threads: Annotated[str, typer.Option(help="Numbers of CPU threads, or all.")] = "1,all",
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 5,
    num_texts: Annotated[int, typer.Option(min=1, help="Texts of the split.")] = 8,
    source_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of random sources, where no recipe is known; by default 256.")
    ] = None,
    new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of an output; by default the recipe's limit, or 64.")
    ] = None,
    exactly: Annotated[
        bool,
        typer.Option("--exactly/--as-they-come", help="Every output has so many tokens, or ends where its model does."),
    ] = True,
    quality: Annotated[
        bool, typer.Option("--quality", help="Also evaluate each artefact in its engine, greedily.")
    ] = False,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, in a fresh process for each row.")] = True,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Time models in Hugging Face, CTranslate2 and ONNX Runtime, in turns, against the fastest dense engine.

    Every engine writes the same number of tokens. What is done is saved: the same command goes on where it was stopped.

    Example: `secateur bench runs/dense runs/fast --quality --out runs/bench`
    """
    sizes = [_whole("--batches", part) for part in batches.split(",")]
    numbers = [None if part.strip() == "all" else _whole("--threads", part) for part in threads.split(",")]
    from secateur import benching
    from secateur.report.bench import text

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that TERM too leaves no temporary folder
    try:
        found = benching.bench(
            models,
            recipe,
            out=out,
            engines=[name.strip() for name in engines.split(",")] if engines is not None else None,
            dense=dense,
            batches=sizes,
            threads=numbers,
            repeats=repeats,
            num_texts=num_texts,
            source_tokens=source_tokens,
            new_tokens=new_tokens,
            exactly=exactly,
            overrides=overrides or [],
            split=split,
            quality=quality,
            memory=memory,
            on_turn=None if as_json else lambda told: typer.echo(told, err=True),
        )
    except KeyboardInterrupt as error:
        rest = f"{out} holds what is done; the same command goes on." if out else "Without --out nothing is kept."
        raise RunInterrupted(f"stopped. {rest}") from error
    finally:
        signal.signal(signal.SIGTERM, before)
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else text(found))


def _whole(option: str, part: str) -> int:
    try:
        return int(part)
    except ValueError as error:
        raise SecateurError(f"{option}: must be whole numbers with commas between them, and has {part!r}.") from error
