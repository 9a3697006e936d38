"""Read the tensors of a checkpoint that another tool wrote: tensors and nothing else, and no more than is asked for."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from secateur.errors import CheckpointError
from secateur.files import read_json

# What a folder's weights are called, the first that is there counts; the second of a pair lists the files of several.
_NAMES = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net")  # keys under which training loops keep weights
_NEEDS = re.compile(r"GLOBAL (\S+)|but got <class '([^']+)'>")  # what torch says it would have to call


@dataclass(frozen=True)
class Content:
    """What a checkpoint holds.

    Attributes:
        tensors: name -> tensor; of masks by module, `module.target`.
        by_module: whether the file was a mapping of modules to their masks, as NNI writes them.
        unused: names of what it holds besides, such as the epoch; nothing of it is a weight.
        ours: whether it is a mask file of Secateur, which `MaskSet.load` reads.
    """

    tensors: Mapping[str, Tensor]
    by_module: bool = False
    unused: tuple[str, ...] = ()
    ours: bool = False


def read_tensors(path: Path) -> Content:
    """Read a checkpoint: a file of torch.save, a safetensors file, or a folder of save_pretrained.

    Files are mapped into memory where their form allows it, so that what is not looked at is not read.

    Args:
        path: the file or the folder.

    Returns:
        Its tensors, on the CPU.

    Raises:
        CheckpointError: nothing is there, it is damaged, or it holds objects that only running its code would restore.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder.")
    files = _files_of(path) if path.is_dir() else [path]
    parts = [_read_file(file) for file in files]
    if len(parts) == 1:
        return parts[0]
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    return Content(tensors, unused=tuple(name for part in parts for name in part.unused))


def _files_of(folder: Path) -> list[Path]:
    """List the weight files of a folder."""
    for single, index in _NAMES:
        if (folder / index).is_file():
            listed = read_json(folder / index)
            weights = listed.get("weight_map") if isinstance(listed, dict) else None
            if not isinstance(weights, dict):
                raise CheckpointError(f"{folder / index}: holds no weight_map. Write or fetch it again.")
            files = [folder / name for name in dict.fromkeys(weights.values())]
            if missing := [str(file) for file in files if not file.is_file()]:
                raise CheckpointError(f"{folder / index}: names files that are not there: {', '.join(missing)}.")
            return files
        if (folder / single).is_file():
            return [folder / single]
    names = " or ".join(single for single, _ in _NAMES)
    raise CheckpointError(f"{folder}: holds no {names}. Give the file that holds the weights or the masks.")


def _read_file(file: Path) -> Content:
    return _read_safetensors(file) if file.suffix == ".safetensors" else _flat(_read_torch(file), file)


def _read_safetensors(file: Path) -> Content:
    try:
        with safe_open(file, framework="pt") as reader:
            if "secateur" in (reader.metadata() or {}):
                return Content({}, ours=True)
        return Content(load_file(file))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: damaged or cut short ({error}). Write or fetch it again.") from error


def _read_torch(file: Path) -> Any:
    """Open what torch.save wrote, with `weights_only`: no code of the file is run."""
    mapped = zipfile.is_zipfile(file)  # older files are plain pickles, which cannot be mapped
    if mapped:
        _check_sums(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except UnpicklingError as error:
        found = _NEEDS.search(str(error))
        if found is None:
            raise _damaged(file, error) from error
        raise CheckpointError(
            f"{file}: holds more than tensors ({found.group(1) or found.group(2)}), and opening that would run code of "
            "the file, so it was not opened. Where you trust it, load it with torch and save its tensors alone: "
            "torch.save(model.state_dict(), FILE)."
        ) from error
    except Exception as error:  # damaged pickles raise nearly any kind
        raise _damaged(file, error) from error


def _check_sums(file: Path) -> None:
    """Compare every record with its checksum: mapped into memory, nothing else would."""
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:  # all that zipfile raises
        raise _damaged(file, error) from error
    if bad is not None:
        raise CheckpointError(f"{file}: damaged: its part {bad} does not match its checksum. Write or fetch it again.")


def _damaged(file: Path, error: Exception) -> CheckpointError:
    told = str(error).rpartition("WeightsUnpickler error:")[2].strip()  # torch's advice before it is not ours
    reason = (told or type(error).__name__).splitlines()[0]
    return CheckpointError(
        f"{file}: not a file of torch.save or safetensors, or damaged or cut short ({reason[:200]}). Write it again."
    )


def _flat(content: Any, file: Path) -> Content:
    """Find the tensors in what a file holds: at the top, under a key such as `state_dict`, or by module."""
    unused: list[str] = []
    while isinstance(content, Mapping) and not _tensors(content):
        key = next((key for key in _WRAPPERS if _holds_weights(content.get(key))), None)
        if key is None:
            break
        unused += [str(name) for name in content if name != key]
        content = content[key]
    if isinstance(content, Mapping) and _is_by_module(content):
        found = {
            f"{module}.{target}": mask
            for module, targets in content.items()
            for target, mask in targets.items()
            if mask is not None
        }
        return Content(found, by_module=True, unused=tuple(unused))
    tensors = _tensors(content) if isinstance(content, Mapping) else {}
    if not tensors:
        kind = f"a {type(content).__name__}" if not isinstance(content, Mapping) else "no tensors"
        raise CheckpointError(
            f"{file}: holds {kind}, where names of parameters with their tensors are asked for. Save "
            "model.state_dict(), a mapping of parameter names to masks, or NNI's masks."
        )
    unused += [str(name) for name in content if name not in tensors]
    return Content(tensors, unused=tuple(unused))


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _holds_weights(value: Any) -> bool:
    """Tell whether a value is a mapping with tensors in it, or one that holds such a mapping."""
    return isinstance(value, Mapping) and not _is_by_module({"": value}) and any(True for _ in _walk(value))


def _walk(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _walk(item)


def _is_by_module(content: Mapping[Any, Any]) -> bool:
    """Tell NNI's masks: modules' names, each with targets such as weight and bias, whose names have no dot."""
    return any(True for _ in _walk(content)) and all(
        isinstance(targets, Mapping)
        and all(isinstance(name, str) and "." not in name for name in targets)
        and all(mask is None or isinstance(mask, Tensor) for mask in targets.values())
        for targets in content.values()
    )


__all__ = ["Content", "read_tensors"]
