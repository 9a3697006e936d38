"""What a command line calls MODEL, opened to write with: a model folder, an export of one, or a packed file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from secateur.anatomy.stored import config_file
from secateur.artifacts.counts import weight_files
from secateur.artifacts.loading import TOKENIZER_FILES, load_model, load_tokenizer
from secateur.artifacts.manifest import STAGE, artefact_hash, resolve_model
from secateur.artifacts.pack import read_packed_facts, unpack_file
from secateur.errors import CheckpointError, SecateurError
from secateur.exports.engines import open_engine
from secateur.exports.folder import is_export, read_facts
from secateur.files import read_json, sha256_file
from secateur.processes import pick_device
from secateur.recipe.names import Target, words

PACKED = "packed.safetensors"
Kind = Literal["transformers", "ctranslate2", "onnx", "packed"]


@dataclass(frozen=True)
class Artefact:
    """One thing on disk that writes texts.

    Attributes:
        path: where it is: a folder, a packed file, or a hub id.
        kind: what opens it.
        hash: of its weights; None for a hub id.
        num_bytes: of its weight files; None for a hub id.
    """

    path: str
    kind: Kind
    hash: str | None
    num_bytes: int | None

    def device(self, wanted: str) -> str:
        """Say where it will run.

        Args:
            wanted: auto, cpu, cuda or mps.

        Returns:
            cpu, cuda or mps. The engines of exports run on the CPU.

        Raises:
            SecateurError: that device is not there, or this artefact cannot run on it.
        """
        if self.kind not in words(Target):
            return pick_device(wanted)
        if wanted not in ("auto", "cpu"):
            raise SecateurError(f"--device {wanted}: {self.kind} exports run on the CPU here. Leave it out.")
        return "cpu"

    @contextmanager
    def opened(self, *, threads: int | None = None, trust_remote_code: bool = False) -> Iterator[tuple[Any, Any]]:
        """Load it.

        Args:
            threads: for engines other than transformers, which has torch's number; None: all.
            trust_remote_code: whether code that comes with a model may run.

        Yields:
            What writes (a model of transformers, or an engine of `secateur.exports`), and the tokenizer.

        Raises:
            CheckpointError: a file is missing or damaged.
            ExportError: the engine is not installed.
        """
        if self.kind == "packed":
            with tempfile.TemporaryDirectory(prefix="secateur-") as place:
                folder = Path(place) / "model"
                unpack_file(Path(self.path), folder)
                yield _load(str(folder), trust_remote_code)
        elif self.kind == "transformers":
            yield _load(self.path, trust_remote_code)
        else:
            tokenizer = load_tokenizer(self.path, trust_remote_code=trust_remote_code)
            yield open_engine(Path(self.path), threads), tokenizer


def _load(path: str, trust_remote_code: bool) -> tuple[Any, Any]:
    model = load_model(path, trust_remote_code=trust_remote_code)
    return model, load_tokenizer(path, trust_remote_code=trust_remote_code)


def find_artefact(model: str) -> Artefact:
    """Tell what a name stands for.

    Args:
        model: a run folder (its final model), a stage folder (what the stage wrote), a Hugging Face folder, an export,
            a packed file, or a hub id.

    Returns:
        What it is.

    Raises:
        CheckpointError: there is no such thing, or its weights are not those that its run wrote.
    """
    path = Path(model).expanduser()
    if (path / STAGE).is_file():
        entry = read_json(path / STAGE)
        path = next((place for place in _written(path) if place.exists()), path)
        if path.name == PACKED or path.name in words(Target):
            found = find_artefact(str(path))
            _check(found, entry.get("hash"))
            return found
    if is_export(path):
        facts = read_facts(path)
        return Artefact(str(path), facts.target, facts.hash, facts.num_bytes)
    if path.is_file():  # a file that is damaged or none of ours is told by name
        return Artefact(str(path), "packed", sha256_file(path), read_packed_facts(path).num_bytes)
    folder = resolve_model(model)
    size = None
    if Path(folder).is_dir() and any(Path(folder).glob("*.safetensors")):
        size = sum(file.stat().st_size for file in weight_files(Path(folder)))
    return Artefact(folder, "transformers", artefact_hash(folder), size)


def identity(model: Artefact) -> dict[str, Any]:
    """Tell one model from another: by its weights, and by the files that decide how it reads and writes.

    Args:
        model: any.

    Returns:
        JSON-ready; equal for equal models, wherever they stand. Of a hub id it names the revision.
    """
    found: dict[str, Any] = {"hash": model.hash or model.path}
    folder = Path(model.path)
    if model.kind == "packed":  # the file's hash is of all that is in it
        return found
    if not folder.is_dir():
        return found | {"revision": config_file(model.path).parent.name}  # the hub's cache has a folder a commit
    patterns = ("config.json", "generation_config.json", *TOKENIZER_FILES)
    files = {file for pattern in patterns for file in folder.glob(pattern)}
    return found | {file.name: sha256_file(file) for file in sorted(files)}


def _written(stage: Path) -> list[Path]:
    """What an export or pack stage may have written, in its folder."""
    return [stage / PACKED, *(stage / target for target in words(Target))]


def _check(found: Artefact, recorded: str | None) -> None:
    if recorded is not None and found.hash != recorded:
        raise CheckpointError(
            f"{found.path}: damaged or changed: its weights are not those that its stage says were measured. Make it "
            "again."
        )


__all__ = ["PACKED", "Artefact", "find_artefact", "identity"]
