"""Arguments and options that several verbs share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Annotated, Any

import typer

from secateur.errors import SecateurError
from secateur.recipe.names import words

RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or a run folder.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A run, a stage, a Hugging Face folder, or a hub id.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Change one value; may be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; by default all cores.")]


def is_first_process() -> bool:
    """Tell whether this is the process that speaks, of those that a launcher started; also true without one."""
    return os.environ.get("RANK", "0") == "0"


def use_threads(threads: int | None) -> None:
    """Limit torch to so many CPU threads; None leaves it alone, and unloaded."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def choice(option: str, value: str, literal: object) -> Any:
    """Give a value the literal type that it belongs to, or refuse it; the option's name is for the message."""
    if value not in words(literal):
        raise SecateurError(f"{option}: no {value!r}. There are: {', '.join(words(literal))}.")
    return value


def parse_shares(option: str, text: str) -> list[float]:
    """Read shares with commas between them, such as 0.5,0.7; the option's name is for the message."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        told = f"{option}: must be shares with commas between them, such as 0.5,0.7, and is {text!r}."
        raise SecateurError(told) from error


def stop_on_interrupt(after: str = "this step") -> Callable[[], bool]:
    """Turn the first Ctrl-C (or TERM) into a wish to stop, granted after a step; the second is final."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        if is_first_process():
            typer.echo(f"\nStopping after {after}; once more stops at once.", err=True)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    return lambda: bool(asked)
