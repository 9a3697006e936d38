"""The record of a run: which stages it did, with which figures, on which machine."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from secateur.errors import CheckpointError
from secateur.files import read_json, sha256_folder, write_json
from secateur.recipe.names import LEAVES_MODEL

FORMAT = "secateur-run"
VERSION = 1
MANIFEST = "manifest.json"
STAGE = "stage.json"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment(device: str) -> dict[str, Any]:
    """Say what a figure was measured on.

    Args:
        device: cpu, cuda or mps.

    Returns:
        JSON-ready facts: versions, processor, threads, device, the command without the folders before its name.
    """
    packages = {}
    for name in ("torch", "transformers", "secateur"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv else ""
    name = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else _processor()
    return {
        "python": platform.python_version(),
        **packages,
        "platform": platform.platform(),
        "processor": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "command": command,
    }


def peak_memory_bytes() -> int | None:
    """Tell the largest resident memory that this process has had, libraries and all.

    Returns:
        Bytes; None where the system does not tell.
    """
    # Not getrusage: its maximum is inherited from the process that started this one.
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a run's manifest.

    Args:
        folder: a run folder.

    Returns:
        Its content.

    Raises:
        CheckpointError: there is none, or it is not ours.
    """
    content = read_json(folder / MANIFEST)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{folder / MANIFEST}: is not the manifest of a Secateur run.")
    if content.get("version") != VERSION:
        found = content.get("version")
        raise CheckpointError(f"{folder / MANIFEST}: has version {found}; this Secateur reads {VERSION}.")
    return content


def is_run(folder: Path) -> bool:
    """Whether a folder is a run of ours."""
    try:
        read_manifest(folder)
    except CheckpointError:
        return False
    return True


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Replace a run's manifest in one step."""
    write_json(folder / MANIFEST, {"format": FORMAT, "version": VERSION, **content})


def stage_folder_name(index: int, name: str) -> str:
    """Name a stage's folder; the first stage has index 1 (0 is the given model).

    >>> stage_folder_name(2, "self-attention")
    '02-self-attention'
    """
    return f"{index:02d}-{name}"


def resolve_model(path: str) -> str:
    """Turn what a command line calls MODEL into what transformers loads.

    Args:
        path: a run folder (its final model), a stage folder, a Hugging Face folder, or a hub id.

    Returns:
        A folder, or the hub id as it is.

    Raises:
        CheckpointError: it looks like a path and is not there, or it is a run or stage without a model yet.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        looks_like_path = path.startswith((".", "/", "~")) or path.count("/") > 1 or path.endswith("/")
        if looks_like_path or ("/" in path and folder.parent.is_dir()):
            raise CheckpointError(f"{path}: no such folder.")
        return path
    if not folder.is_dir():
        raise CheckpointError(
            f"{path}: is a file. Give the folder that holds config.json (a packed file: `secateur unpack`)."
        )
    if (folder / MANIFEST).exists() or (folder / STAGE).exists():
        if (folder / "model" / "config.json").exists():
            return str(folder / "model")
        raise CheckpointError(
            f"{path}: this run or stage holds no model. It is not finished, or a later stage replaced it (keep: all "
            "keeps every one)."
        )
    if not (folder / "config.json").exists():
        raise CheckpointError(f"{path}: holds no config.json, so it is no model folder.")
    return str(folder)


def artefact_hash(path: str) -> str | None:
    """Hash a model's weights: what figures of quality, bytes and milliseconds are said of.

    Args:
        path: what `resolve_model` returned.

    Returns:
        64 hexadecimal digits; None for a hub id, and for a folder without weights in a file that is known.

    Raises:
        CheckpointError: the folder belongs to a run, and its weights are not those that the run wrote.
    """
    folder = Path(path)
    if not folder.is_dir():
        return None
    pattern = next((pattern for pattern in ("*.safetensors", "*.bin") if any(folder.glob(pattern))), None)
    if pattern is None:
        return None
    found, recorded = sha256_folder(folder, pattern), _recorded_hash(folder)
    if recorded is not None and found != recorded:
        raise CheckpointError(
            f"{folder}: damaged or changed: its weights are not those that {folder.parent} says were measured. Copy a "
            "changed model out of the run; a damaged one must be made again."
        )
    return found


def check_recorded(path: str) -> None:
    """Refuse a model folder of a run or a stage whose weights are not those that were written there.

    Args:
        path: what `resolve_model` returned; a folder that belongs to neither is not read.

    Raises:
        CheckpointError: the weights changed.
    """
    if _recorded_hash(Path(path)) is not None:
        artefact_hash(path)


def _recorded_hash(folder: Path) -> str | None:
    """Read what the run or the stage around a model folder says of its weights."""
    if folder.name != "model":
        return None
    if (folder.parent / STAGE).is_file():
        return read_json(folder.parent / STAGE).get("hash")
    manifest = read_manifest(folder.parent) if is_run(folder.parent) else {}
    if manifest.get("status") != "complete":
        return None
    # Exports and packed files have hashes of their own, and so has an evaluation that measures one of them.
    made = [entry["hash"] for entry in manifest["stages"] if entry.get("kind") not in LEAVES_MODEL]
    return made[-1] if made else None
