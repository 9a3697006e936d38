"""`secateur ls`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.errors import SecateurError


def recipes_folder() -> Path:
    """Find the recipes that come with Secateur: in the installed package, or beside the sources."""
    packaged = Path(__file__).parents[1] / "_recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "recipes"


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
