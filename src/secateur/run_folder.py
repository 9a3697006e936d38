"""The folder of a run: whose it is, where its stages stand, and what an earlier process finished in it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.artefact import PACKED
from secateur.artifacts.checkpoint import load_live
from secateur.artifacts.manifest import (
    MANIFEST,
    STAGE,
    is_run,
    read_manifest,
    resolve_model,
    stage_folder_name,
)
from secateur.errors import CheckpointError, SecateurError
from secateur.files import PARTIAL, read_json
from secateur.masks.mask import MaskSet
from secateur.recipe.load import load_recipe
from secateur.recipe.names import LEAVES_MODEL
from secateur.recipe.open import RECIPE
from secateur.recipe.schema import Recipe

WORK = ".work"
IMPORT = "import"  # the kind of a stage whose weights another tool made
MASKS = "masks.safetensors"
LIVE = "live.json"  # stands in a stage whose weights are on disk, though it is not evaluated yet


def choose_folder(recipe: Recipe | str | Path, out: str | Path | None) -> Path:
    """Say which folder a run goes to.

    Args:
        recipe: a Recipe, its file, or a run folder.
        out: what the caller chose, if anything.

    Returns:
        The whole path; by default runs/NAME, NAME being the recipe's file name, or the run folder itself.

    Raises:
        SecateurError: a recipe made in Python, and no folder chosen.
    """
    if out is not None:
        return Path(out).expanduser().resolve()
    if isinstance(recipe, Recipe):
        raise SecateurError("out: a recipe made in Python has no file name; say which folder the run goes to.")
    path = Path(recipe)
    return (path if path.is_dir() else Path("runs") / path.stem).resolve()


def prepare_folder(folder: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Refuse every folder that is not ours to write into, before anything is written; make one that is missing.

    Args:
        folder: the run folder.
        recipe: what is to run there.
        resume: a run of the same recipe may stand there.
        overwrite: any run of ours may stand there.

    Raises:
        CheckpointError: the folder is foreign, holds another run, or cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file. Choose another --out.")
    ours = is_run(folder)
    items = folder.iterdir() if folder.is_dir() else ()
    # What a kill within the very first write leaves is a lock and an unfinished file.
    content = [item.name for item in items if item.name != ".lock" and not (resume and item.name.startswith(PARTIAL))]
    if content and not ours and not (resume and set(content) <= {RECIPE}):
        raise CheckpointError(f"{folder}: exists and holds no run of Secateur; it is left alone. Choose another --out.")
    if ours and not (resume or overwrite):
        raise CheckpointError(
            f"{folder}: holds a run already. Go on with --resume, replace it with --overwrite (for one whose recipe "
            "was wrong), or choose another --out."
        )
    if ours and resume:
        saved = load_recipe(folder / RECIPE)
        if saved != recipe:
            raise CheckpointError(
                f"{folder / RECIPE}: the run was started with another recipe. Resume it as it is with "
                f"`secateur run {folder} --resume`, or choose another --out."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be made: {error.strerror or error}. Choose another --out.") from error


def empty_folder(folder: Path) -> None:
    """Remove a run of ours from its folder, which is locked: first what it resumes by, last what makes it ours.

    Args:
        folder: one that `prepare_folder` let pass.
    """
    (folder / RECIPE).unlink(missing_ok=True)
    for item in folder.iterdir():
        if item.name not in (".lock", MANIFEST):
            shutil.rmtree(item) if item.is_dir() else item.unlink()
    (folder / MANIFEST).unlink(missing_ok=True)


def stage_of(model: str | Path) -> Path | None:
    """Find the stage whose live model a recipe or a command line means by a run or a stage folder.

    Args:
        model: what `resolve_model` takes.

    Returns:
        The stage's folder, which holds masks.safetensors and what loads its model exactly; None for anything else, the
        plain `model/` of a run or a stage included.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return None
    if (folder / LIVE).is_file():
        return folder
    entries = read_manifest(folder)["stages"] if is_run(folder) else []
    changed = [folder / entry["folder"] for entry in entries if entry["kind"] not in LEAVES_MODEL]
    return changed[-1] if changed and (changed[-1] / LIVE).is_file() else None


def dense_model(model: str) -> str:
    """Find a dense model, from which what pruning costs is measured; one that masks lie on is refused.

    Args:
        model: what `resolve_model` takes; the plain `model/` of a run or a stage counts as pruned as its masks say.

    Returns:
        Its whole path, for recipes that stand elsewhere; a hub id as it is.

    Raises:
        CheckpointError: it is pruned, or there is no such model.
    """
    folder = Path(model).expanduser()
    place = stage_of(folder) or (stage_of(folder.parent) if folder.name == "model" else None)
    if place is not None and len(MaskSet.load(place / MASKS)):
        raise CheckpointError(
            f"{model}: is pruned already, and what each group costs is measured on a dense model. Give the one that "
            f"the run began with, or a stage before the first pruning, with --recipe {place.parent / RECIPE}."
        )
    path = resolve_model(model)
    return str(Path(path).resolve()) if Path(path).exists() else path


def load_masked(model: str | Path, *, trust_remote_code: bool = False) -> tuple[Any, MaskSet, str] | None:
    """Load a model together with the masks that its run left on it.

    Args:
        model: a run or a stage folder.
        trust_remote_code: whether code that comes with the model may run.

    Returns:
        The model as it was in memory, masks not yet attached; the masks; how its head stands to the table. None where
        no masks hold, or it is another kind of model: then the plain folder is all there is.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    place = stage_of(model)
    if place is None or not len(MaskSet.load(place / MASKS)):
        return None
    facts = read_json(place / LIVE)
    return *load_live(place, facts["live"], trust_remote_code=trust_remote_code), facts["head"]


@dataclass(frozen=True)
class RunFolder:
    """Where the parts of a run stand.

    Args:
        path: the run folder.
        recipe: what runs there.
    """

    path: Path
    recipe: Recipe

    def stage(self, index: int) -> Path:
        """Name the folder of a stage; 0 is the given model."""
        return self.path / stage_folder_name(index, self.recipe.stages[index - 1].name if index else "given")

    def done_stages(self) -> dict[int, dict[str, Any]]:
        """Read the stages that an earlier process finished: those from the first on without a gap."""
        done: dict[int, dict[str, Any]] = {}
        for index in range(1, len(self.recipe.stages) + 1):
            file = self.stage(index) / STAGE
            if not file.exists():
                break
            done[index] = read_json(file)
        return done

    def forget_after(self, index: int) -> None:
        """Remove the stages after one: they were made from a stage that is done anew."""
        for later in range(index + 1, len(self.recipe.stages) + 1):
            shutil.rmtree(self.stage(later), ignore_errors=True)

    def newest_model(self, index: int) -> Path:
        """Find the folder that holds the weights at a stage: its own, or that of the last stage that changed them."""
        for earlier in range(index, 0, -1):
            if self.recipe.stages[earlier - 1].changes_model:
                return self.stage(earlier) / "model"
        return Path(resolve_model(self.recipe.model))

    def teacher(self, name: str) -> str:
        """Find the model that a train stage's `teacher` stands for: a stage's, the given one, or any other."""
        for index, stage in enumerate(self.recipe.stages, start=1):
            if stage.name == name:
                return str(self.stage(index) / "model")
        return self.recipe.model if name == "given" else name

    def newest_artefact(self, index: int) -> Path:
        """Find what a stage measures: what it made itself; for an evaluation, what the last stage before it made."""
        for earlier in range(index, 0, -1):
            stage = self.recipe.stages[earlier - 1]
            if stage.changes_model:
                break
            if stage.export:
                return self.stage(earlier) / stage.export.to
            if stage.pack:
                return self.stage(earlier) / PACKED
        return self.newest_model(index)

    def tidy(self, index: int) -> None:
        """Remove what a finished stage makes needless; when a run is gone on from, also what a kill left of that."""
        shutil.rmtree(self.stage(index) / WORK, ignore_errors=True)
        if self.recipe.keep == "all" or not self.recipe.stages[index - 1].changes_model:
            return
        trainings = [stage.training for stage in self.recipe.stages[index:]]
        needed = {name for training in trainings if training for name in (training.teacher, training.rewind)}
        for earlier in range(1, index):
            if self.recipe.stages[earlier - 1].name in needed:
                continue  # a later stage learns from it, or goes back to it
            place = self.stage(earlier)
            for name in ("model", "head.safetensors"):
                target = place / name
                shutil.rmtree(target, ignore_errors=True) if target.is_dir() else target.unlink(missing_ok=True)
