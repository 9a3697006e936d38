"""`secateur import`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from secateur.cli.options import Device, Json, Set, Threads, use_threads


def import_(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A file of torch.save, a safetensors file, or a model folder.")
    ],
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="The dense model: a run, a Hugging Face folder, or a hub id.")
    ],
    out: Annotated[str, typer.Option(metavar="RUN", help="The run folder to write; new or empty.")],
    recipe: Annotated[
        str | None, typer.Option(help="Task, data and metrics: both models are then measured. Without it nothing is.")
    ] = None,
    overrides: Set = None,
    masks_from_zeros: Annotated[
        bool, typer.Option("--masks-from-zeros", help="Take zeros in plain weights for masks, as prune.remove() does.")
    ] = False,
    as_json: Json = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Take over what torch.nn.utils.prune or NNI pruned: a run folder comes out that the other verbs go on from.

    Example: `secateur import pruned.pt --model google-t5/t5-small --out runs/mine`; a recipe with `model: runs/mine`
    then goes on training with these masks.

    CHECKPOINT holds `weight_orig` and `weight_mask` (saved while torch.nn.utils.prune was attached), masks by
    parameter, or NNI's masks.pth. It is read as tensors alone; no code of it is run.
    """
    use_threads(threads)
    from secateur import console, importing

    reporter = None if as_json or recipe is None else console.ConsoleReporter()
    try:
        done = importing.import_checkpoint(
            checkpoint,
            out,
            model=model,
            recipe=recipe,
            overrides=overrides or [],
            masks_from_zeros=masks_from_zeros,
            device=device,
            reporter=reporter,
        )
    finally:
        if reporter:
            reporter.close()
    if as_json:
        typer.echo(json.dumps(done.manifest, indent=2, ensure_ascii=False))
        return
    entry = done.manifest["stages"][0]
    typer.echo(f"read     {entry['import']['checkpoint']}: {entry['import']['form']}")
    for group in entry["groups"]:
        typer.echo(f"{'masks' if group is entry['groups'][0] else '':<8} {_told(group)}")
    counts = entry["counts"]
    typer.echo(
        f"counts   counted {counts['counted_ratio']:.7f}, stored {counts['stored_ratio']:.4f}, "
        f"{counts['num_parameters']:,} parameters, {console.megabytes(counts['num_bytes'])}"
    )
    for note in entry["import"]["notes"]:
        typer.echo(f"note     {note}")
    typer.echo(f"written  {out}: card.md, model/. A recipe with `model: {out}` goes on with these masks.")


def _told(group: dict[str, Any]) -> str:
    """Say how much one role has lost.

    >>> counts = {"num_weights": 1, "num_removed": 8, "num_elements": 10}
    >>> _told({"role": "lm_head", "sparsity": 0.8, "tie": "view", **counts})
    'lm_head: 8 of 10 in 1 matrices, sparsity 0.8 (view)'
    """
    tie = f" ({group['tie']})" if group["tie"] else ""
    told = f"{group['num_removed']:,} of {group['num_elements']:,} in {group['num_weights']} matrices"
    return f"{group['role']}: {told}, sparsity {group['sparsity']:.6g}{tie}"


import_.__name__ = "import"  # the verb; as a name of Python's own it cannot be the function's
