"""Arguments and options that several verbs share."""

from __future__ import annotations

import os
from typing import Annotated

import typer

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
