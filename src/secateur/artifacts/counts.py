"""The four counts that always stand together, of a plan and of a folder on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from secateur.anatomy.families import FAMILIES
from secateur.errors import CheckpointError

# Saved with the parameters, and none.
BUFFERS = frozenset(name for family in FAMILIES.values() for name in family.row_buffers)


@dataclass(frozen=True)
class Counts:
    """How large a model is, four ways; each of them alone can mislead.

    Attributes:
        counted_ratio: share of the dense unique parameters that no mask removes (the report's figure).
        stored_ratio: non-zero values stored in the artefact over the dense unique parameters.
        num_parameters: values stored in the artefact, zeros included.
        num_bytes: bytes of the artefact's weight files.
    """

    counted_ratio: float
    stored_ratio: float
    num_parameters: int
    num_bytes: int

    def as_json(self) -> dict[str, float | int]:
        """The counts under the names of the manifest."""
        return asdict(self)


def counted_ratio(dense_parameters: int, removed: Mapping[str, int]) -> float:
    """Share of the dense unique parameters that the masks leave.

    Args:
        dense_parameters: tied tensors counted once.
        removed: entries removed, from `masks.tie.counted_removed`: a masked view of a tied table counts as if the
            table had lost them, and an entry that both have lost counts once.

    Returns:
        A share, 0 to 1.

    >>> round(counted_ratio(60_506_624, {"self-attention": 11_324_621}), 7)
    0.8128367
    """
    return 1.0 - sum(removed.values()) / dense_parameters


def weight_files(folder: Path) -> tuple[Path, ...]:
    """List the safetensors files of a model folder.

    Args:
        folder: a plain Hugging Face folder.

    Returns:
        At least one file, in the order of the names.

    Raises:
        CheckpointError: there is none.
    """
    files = tuple(sorted(folder.glob("*.safetensors")))
    if not files:
        raise CheckpointError(f"{folder}: holds no .safetensors file. Save the model with save_pretrained first.")
    return files


def count_model(model: torch.nn.Module, folder: Path | None) -> Counts:
    """Count a dense model as it was given.

    Args:
        model: live; tied tensors count once.
        folder: where its files are, for their bytes; None (a hub id) or one without any takes four bytes a value.

    Returns:
        Counts whose counted ratio is 1.
    """
    tensors = [parameter.detach() for parameter in model.parameters()]
    parameters = sum(tensor.numel() for tensor in tensors)
    nonzero = sum(int(torch.count_nonzero(tensor)) for tensor in tensors)
    files = (sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))) if folder else []
    size = sum(file.stat().st_size for file in files) or 4 * parameters
    return Counts(1.0, nonzero / parameters, parameters, size)


def count_folder(folder: Path, *, dense_parameters: int, counted: float) -> Counts:
    """Count what a folder really stores, tensor by tensor.

    Args:
        folder: a plain Hugging Face folder.
        dense_parameters: unique parameters of the dense model that it came from.
        counted: its counted ratio.

    Returns:
        The four counts of this folder.

    Raises:
        CheckpointError: a file is damaged.
    """
    parameters = nonzero = size = 0
    for file in weight_files(folder):
        size += file.stat().st_size
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    if name in BUFFERS:
                        continue
                    tensor = tensors.get_tensor(name)
                    parameters += tensor.numel()
                    nonzero += int(torch.count_nonzero(tensor))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: damaged: {error}. Copy or train it again.") from error
    return Counts(counted, nonzero / dense_parameters, parameters, size)
