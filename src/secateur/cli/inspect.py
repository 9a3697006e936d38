"""`secateur inspect`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from secateur.cli.options import Json, Model


def inspect(
    model: Model,
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
