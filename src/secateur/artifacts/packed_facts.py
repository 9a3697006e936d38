"""What a packed file says of itself, without decompressing anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.artifacts.counts import Counts
from secateur.artifacts.packed_file import Layout, damaged, read_packed
from secateur.artifacts.packed_values import Values

_MASKS = ("mask", "signs")
MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, MemoryError)


@dataclass(frozen=True)
class Rounding:
    """How far restored weights are from those that were packed.

    Attributes:
        difference: the largest absolute difference of any value.
        relative: the largest over the tensors of (largest difference / largest absolute value).
        tensor: the tensor that `relative` is of.
    """

    difference: float
    relative: float
    tensor: str


@dataclass(frozen=True)
class PackResult:
    """A packed file's figures.

    Attributes:
        file: where it is.
        values: what was asked for: fp32 (exact), fp16, bf16 or int8.
        num_bytes: of the file.
        mask_bytes: of these, masks.
        value_bytes: of these, values and their scales.
        other_bytes: of these, the rest: header, configuration, tokenizer.
        num_values: values stored, zeros among them included; a tensor that is made from the table stores none.
        num_nonzero: of these, not zero.
        copies: names of the tensors that are made from the embedding table.
        rounding: None when everything comes back byte for byte.
    """

    file: Path
    values: Values
    num_bytes: int
    mask_bytes: int
    value_bytes: int
    other_bytes: int
    num_values: int
    num_nonzero: int
    copies: tuple[str, ...]
    rounding: Rounding | None

    def counts(self, *, dense_parameters: int, counted: float) -> Counts:
        """Count the packed artefact.

        Args:
            dense_parameters: unique parameters of the dense model that it came from.
            counted: its counted ratio.

        Returns:
            The four counts of this file.
        """
        return Counts(counted, self.num_nonzero / dense_parameters, self.num_values, self.num_bytes)


def part_name(file: str, tensor: str, part: str, index: int, num_pieces: int) -> str:
    """Name a part of a tensor, or of one of its pieces.

    >>> part_name("model.safetensors", "w", "mask", 0, 1), part_name("model.safetensors", "w", "mask", 0, 2)
    ('tensors/model.safetensors/w/mask', 'tensors/model.safetensors/w/mask.0')
    """
    return f"tensors/{file}/{tensor}/{part}{f'.{index}' if num_pieces > 1 else ''}"


def read_packed_facts(file: Path | str) -> PackResult:
    """Read a packed file's figures from its header.

    Args:
        file: from `pack_folder`.

    Returns:
        The figures that `pack_folder` returned.

    Raises:
        CheckpointError: the file is missing, damaged in its header, cut short, or not one of ours.
    """
    layout, facts = read_packed(Path(file))
    return facts_of(layout, facts)


def facts_of(layout: Layout, facts: dict[str, Any]) -> PackResult:
    """Turn a packed file's header into figures.

    Args:
        layout: of the packed file.
        facts: from `read_packed`.

    Returns:
        The figures.

    Raises:
        CheckpointError: the header does not hold them.
    """
    try:
        sizes = {"mask": 0, "value": 0}
        for name, entry in layout.entries.items():
            if name.startswith("tensors/"):
                sizes["mask" if name.rpartition("/")[2].partition(".")[0] in _MASKS else "value"] += (
                    entry.end - entry.begin
                )
        records = [item for record in facts["files"].values() for item in record.get("tensors", {}).items()]
        num_bytes = layout.file.stat().st_size
        return PackResult(
            layout.file,
            facts["values"],
            num_bytes,
            sizes["mask"],
            sizes["value"],
            num_bytes - sum(sizes.values()),
            sum(record["stored"] for _, record in records),
            sum(record["nonzero"] for _, record in records),
            tuple(name for name, record in records if "copy" in record),
            _rounding({name: record["rounding"] for name, record in records if "rounding" in record}),
        )
    except MALFORMED as error:
        raise damaged(layout.file, "its header lacks something", error) from error


def _rounding(records: dict[str, tuple[float, float]]) -> Rounding | None:
    """Join (difference, largest value) of every rounded tensor."""
    if not records:
        return None
    relative = {name: difference / largest if largest else 0.0 for name, (difference, largest) in records.items()}
    worst = max(relative, key=relative.__getitem__)
    return Rounding(max(difference for difference, _ in records.values()), relative[worst], worst)
