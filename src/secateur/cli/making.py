"""`secateur cut`, `export`, `pack` and `unpack`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from secateur.cli.options import Json, Model, Set, Threads, choice, use_threads
from secateur.recipe import names

Out = Annotated[str, typer.Option(help="Where to write; a folder must be new or empty.")]
Recipe = Annotated[
    str | None, typer.Option(help="The task whose texts the comparison is made on; by default that of the model's run.")
]


def cut(
    model: Model,
    out: Out,
    masks: Annotated[str | None, typer.Option(help="A mask file; by default the one beside the model.")] = None,
    width: Annotated[str, typer.Option(help="uniform (plain transformers loads it) or ragged.")] = "uniform",
    recipe: Recipe = None,
    overrides: Set = None,
    as_json: Json = False,
    threads: Threads = None,
) -> None:
    """Make a model smaller by what its masks name whole, and prove that nothing else changed.

    Example: `secateur cut runs/mine --out small`, of a run that pruned whole units
    """
    use_threads(threads)
    chosen = choice("--width", width, names.Width)
    from secateur import making

    found = making.cut(model, out, masks=masks, width=chosen, recipe=recipe, overrides=overrides or [])
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    left, proof = found["left"], found["proof"]
    typer.echo(f"layers   {', '.join(f'{stack} {len(kept)}' for stack, kept in left['layers'].items())}")
    typer.echo(f"heads    {_counts(left['heads'])}")
    typer.echo(f"neurons  {_counts(left['neurons'])}")
    typer.echo(f"rows     {left['rows']:,}, hidden dimensions {left['dims']:,}")
    typer.echo(
        f"proof    {proof['rows']} rows: largest difference of logits {proof['largest_difference']:.2g} "
        f"(relative {proof['relative_difference']:.1g}, at most {proof['tolerance']:.0g}); {_choices(proof)}"
    )
    for unit, number in left["padding"].items():
        typer.echo(
            f"stays    {number} dead {unit}s: one width serves all layers. --width ragged removes them, for "
            "secateur.load and ONNX alone."
        )
    if not found["plain"]:
        typer.echo(
            "loads    with secateur.load alone: the configuration of transformers has no words for these widths. It "
            "wants layers alike, and in BERT's and BART's families heads of d_model / number of heads."
        )
    typer.echo(f"written  {out}")


def _choices(proof: dict[str, Any]) -> str:
    """Tell what both models chose; one that writes nothing chooses classes."""
    alike, kinds = f"{proof['same_choices']:.0%}", proof["distinct_choices"]
    if not proof["distinct_tokens"]:
        return f"the same class in {alike} ({kinds} different ones)"
    return (
        f"given the targets, the same token is the likeliest in {alike} ({kinds} different ones); written greedily, "
        f"{proof['same_tokens']:.0%} are the same ({proof['distinct_tokens']} different tokens)"
    )


def _counts(found: dict[str, list[int]]) -> str:
    """Tell how many stay in each layer; one number where all keep as many.

    >>> _counts({"encoder": [4, 4], "decoder": [4, 1, 4]})
    'encoder 4, decoder 4/1/4'
    """
    alike = {name: counts[:1] if len(set(counts)) == 1 else counts for name, counts in found.items()}
    return ", ".join(f"{name} {'/'.join(map(str, counts))}" for name, counts in alike.items())


def export(
    model: Model,
    to: Annotated[str, typer.Option(help="ctranslate2 or onnx.")],
    out: Out,
    int8: Annotated[bool, typer.Option("--int8/--fp32", help="Matrices of one byte a value, or of four.")] = True,
    recipe: Recipe = None,
    overrides: Set = None,
    as_json: Json = False,
    threads: Threads = None,
) -> None:
    """Write a model for another engine, and compare the two on texts of the task (random tokens where none is known).

    Example: `secateur export runs/g2p-fast --to ctranslate2 --out g2p-int8`
    """
    use_threads(threads)
    target = choice("--to", to, names.Target)
    from secateur import making

    facts, found = making.export(model, out, to=target, int8=int8, recipe=recipe, overrides=overrides or [])
    if as_json:
        typer.echo(json.dumps({"to": facts.target, "num_bytes": facts.num_bytes, "parity": asdict(found)}, indent=2))
        return
    typer.echo(
        f"{out}: {facts.num_bytes / 1e6:.1f} MB; {found.num_rows} rows: same tokens {found.same_tokens:.0%}, log "
        f"probability per token within {found.largest_difference:.2g} nats, on average {found.mean_difference:.2g}"
    )


def pack(
    model: Model,
    out: Annotated[str, typer.Option(help="The file to write.")],
    values: Annotated[str, typer.Option(help="fp32 (exact), fp16, bf16 or int8.")] = "fp32",
    as_json: Json = False,
) -> None:
    """Write a model into one file in which zeros take no room.

    Example: `secateur pack runs/g2p-report --values fp16 --out g2p.packed`
    """
    chosen = choice("--values", values, names.PackedValues)
    from secateur import making
    from secateur.cli.progress import cell_progress

    with cell_progress("pack", quiet=as_json) as progress:
        found = making.pack(model, out, values=chosen, on_bytes=progress.on_bytes)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2, default=str))
        return
    copied = f"; made from the table when unpacked: {', '.join(found.copies)}" if found.copies else ""
    typer.echo(f"{out}: {found.num_bytes / 1e6:.2f} MB, {found.num_nonzero:,} values that are not zero{copied}")


def unpack(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What `secateur pack` wrote.")],
    out: Out,
) -> None:
    """Restore the folder that a packed file holds; says what was rounded.

    Example: `secateur unpack g2p.packed --out g2p`
    """
    from secateur import making
    from secateur.cli.progress import cell_progress

    with cell_progress("unpack", quiet=False) as progress:
        found = making.unpack(file, out, on_bytes=progress.on_bytes)
    rounding = found.rounding
    told = "exactly" if rounding is None else f"rounded: at most {rounding.relative:.2g} of a tensor's largest value"
    typer.echo(f"{out}: {found.num_files} files, {told}")
