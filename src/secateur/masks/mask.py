"""MaskSet: which weights of which model stay, as a value that can be compared, merged, saved and loaded."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.numpy
import torch
from torch import Tensor

from secateur.errors import CheckpointError, MaskError
from secateur.files import write_bytes

Mode = Literal["hold", "view"]
FORMAT = "secateur-masks"
VERSION = 1


@dataclass(frozen=True, eq=False)
class MaskSet:
    """Masks of one model.

    Attributes:
        masks: parameter name -> bool, the parameter's shape, True = keep.
        modes: the same names -> "hold" (zeros written into the weight) or "view" (masked in the forward pass).
        owner: `Anatomy.fingerprint()` of the model they belong to; empty when it is not known.

    Raises:
        MaskError: names differ between masks and modes, a mask is not bool, or a mode is not one of the two.

    >>> masks = MaskSet({"w": torch.tensor([True, False])}, {"w": "hold"}, owner="")
    >>> masks.num_removed, masks.sparsity("w")
    (1, 0.5)
    """

    masks: Mapping[str, Tensor]
    modes: Mapping[str, Mode]
    owner: str

    def __post_init__(self) -> None:
        if self.masks.keys() != self.modes.keys():
            odd = ", ".join(sorted(self.masks.keys() ^ self.modes.keys()))
            raise MaskError(f"Masks and modes must name the same parameters; only one of them names: {odd}.")
        for path, mask in self.masks.items():
            if mask.dtype != torch.bool:
                raise MaskError(f"{path}: a mask must be bool (True = keep), this one is {mask.dtype}.")
            if self.modes[path] not in ("hold", "view"):
                raise MaskError(f'{path}: mode {self.modes[path]!r} is neither "hold" nor "view".')
        object.__setattr__(self, "masks", MappingProxyType(dict(self.masks)))
        object.__setattr__(self, "modes", MappingProxyType(dict(self.modes)))

    @classmethod
    def empty(cls, owner: str = "") -> MaskSet:
        """Make the set that removes nothing.

        >>> len(MaskSet.empty())
        0
        """
        return cls({}, {}, owner)

    def __len__(self) -> int:
        return len(self.masks)

    def __contains__(self, path: object) -> bool:
        return path in self.masks

    def removed(self, path: str) -> int:
        """Count what one mask removes; 0 for a parameter that has none."""
        mask = self.masks.get(path)
        return 0 if mask is None else mask.numel() - int(mask.count_nonzero())

    @property
    def num_removed(self) -> int:
        """Elements removed in all masks together; where a table and its view are both masked, both count.

        The counted ratio counts them once: see `masks.tie.counted_removed`.
        """
        return sum(self.removed(path) for path in self.masks)

    def sparsity(self, path: str) -> float:
        """Share of one parameter's elements that is removed, 0 to 1; 0 for a parameter that has no mask."""
        return self.removed(path) / max(1, self.masks[path].numel()) if path in self.masks else 0.0

    def __and__(self, other: MaskSet) -> MaskSet:
        """Keep what both keep.

        Args:
            other: masks of the same model. A set without an owner goes with any.

        Returns:
            Every name of either; where both have a mask, an element stays if it stays in both.

        Raises:
            MaskError: the two belong to different models, or disagree on a mode or a shape.

        >>> one = MaskSet({"w": torch.tensor([True, False, True])}, {"w": "hold"}, "")
        >>> two = MaskSet({"w": torch.tensor([True, True, False])}, {"w": "hold"}, "")
        >>> (one & two).masks["w"].tolist()
        [True, False, False]
        """
        if self.owner and other.owner and self.owner != other.owner:
            raise MaskError("These masks belong to two different models; only masks of one model can be merged.")
        merged = {**self.masks, **other.masks}
        for path in self.masks.keys() & other.masks.keys():
            mine, theirs = self.masks[path], other.masks[path]
            if self.modes[path] != other.modes[path] or mine.shape != theirs.shape:
                raise MaskError(
                    f"{path}: one mask is {self.modes[path]} {tuple(mine.shape)}, the other {other.modes[path]} "
                    f"{tuple(theirs.shape)}; only masks of one mode and shape can be merged."
                )
            merged[path] = mine & theirs.to(mine.device)
        return MaskSet(merged, {**self.modes, **other.modes}, self.owner or other.owner)

    def equals(self, other: MaskSet) -> bool:
        """Say whether names, modes, owner and every element are the same; order and device do not count."""
        return (
            self.owner == other.owner
            and dict(self.modes) == dict(other.modes)
            and all(torch.equal(mask.cpu(), other.masks[path].cpu()) for path, mask in self.masks.items())
        )

    def digest(self) -> str:
        """Hash names, modes, owner and every element: equal for sets that `equals` calls equal.

        >>> MaskSet.empty().digest() == MaskSet.empty().digest() != MaskSet.empty("a").digest()
        True
        """
        facts = {
            "owner": self.owner,
            "shapes": {path: list(mask.shape) for path, mask in self.masks.items()},
            "modes": dict(self.modes),
        }
        return hash_masks(facts, self._packed())

    def _packed(self) -> dict[str, np.ndarray]:
        return {path: np.packbits(mask.cpu().numpy().ravel()) for path, mask in self.masks.items()}

    def save(self, file: Path | str) -> Path:
        """Write the set into one safetensors file, 1 bit per weight, in one step.

        Args:
            file: the file; it is replaced.

        Returns:
            The file's path.

        Raises:
            CheckpointError: it cannot be written.
        """
        packed = self._packed()
        shapes = {path: tuple(mask.shape) for path, mask in self.masks.items()}
        facts = mask_facts(shapes, self.modes, self.owner)
        facts["hash"] = hash_masks(facts, packed)
        return write_bytes(file, safetensors.numpy.save(packed, metadata=mask_metadata(facts)))

    @classmethod
    def load(cls, file: Path | str, owner: str | None = None) -> MaskSet:
        """Read a file that `save` wrote.

        Args:
            file: the file.
            owner: `Anatomy.fingerprint()` of the model the masks are for; None takes any.

        Returns:
            The set, on the CPU.

        Raises:
            CheckpointError: the file is missing, damaged, not one of ours, of a later version, or of another model.
        """
        file = Path(file)
        facts, packed = _read(file)
        if hash_masks({key: value for key, value in facts.items() if key != "hash"}, packed) != facts.get("hash"):
            raise CheckpointError(f"{file}: damaged: its masks do not match their hash. Make it again from its run.")
        if owner is not None and facts["owner"] != owner:
            raise CheckpointError(
                f"{file}: these masks belong to another model (theirs {facts['owner'][:12] or 'unknown'}, this one "
                f"{owner[:12]}: family, names or shapes differ). Prune this model, or load the model they came from."
            )
        masks = {path: _unpack(packed[path], shape) for path, shape in facts["shapes"].items()}
        return cls(masks, facts["modes"], facts["owner"])


def _unpack(packed: np.ndarray, shape: list[int]) -> Tensor:
    """Turn ceil(n / 8) bytes into n bools of the given shape."""
    bits = np.unpackbits(packed, count=math.prod(shape))
    return torch.from_numpy(bits.view(np.bool_)).reshape(shape)


def mask_facts(shapes: Mapping[str, tuple[int, ...]], modes: Mapping[str, Mode], owner: str) -> dict[str, Any]:
    """Say what a mask file holds; its hash comes on top.

    Args:
        shapes: parameter name -> shape of its mask.
        modes: the same names -> mode.
        owner: see `MaskSet`.

    Returns:
        JSON-ready facts.
    """
    told = {path: list(shape) for path, shape in shapes.items()}
    return {"format": FORMAT, "version": VERSION, "owner": owner, "shapes": told, "modes": dict(modes)}


def mask_metadata(facts: Mapping[str, Any]) -> dict[str, str]:
    """Write a mask file's facts as safetensors' metadata."""
    # One key only: safetensors writes several in a random order, and equal masks should be equal files.
    return {"secateur": json.dumps(facts, sort_keys=False)}


def hash_masks(facts: Mapping[str, object], packed: Mapping[str, np.ndarray]) -> str:
    """Hash everything a mask file says.

    Args:
        facts: without the hash.
        packed: parameter name -> its mask's bits, uint8; looked up one after another.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for path in sorted(packed):
        digest.update(path.encode() + b"\0" + packed[path].tobytes())
    return digest.hexdigest()


def _read(file: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Read a mask file's facts and packed masks, or say by name why it is none."""
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file.")
    try:
        with safetensors.safe_open(file, framework="np") as reader:
            text = (reader.metadata() or {}).get("secateur")
            packed = {path: reader.get_tensor(path) for path in reader.keys()} if text else {}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: damaged or cut short ({error}). Make it again from its run.") from error
    try:
        facts = json.loads(text or "null")
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{file}: damaged: its header cannot be read. Make it again from its run.") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise CheckpointError(f"{file}: not a mask file of ours. Give the masks.safetensors of a stage folder.")
    if facts.get("version") != VERSION:
        raise CheckpointError(
            f"{file}: mask format {facts.get('version')}, this version reads {VERSION}. Update secateur to read it."
        )
    return facts, packed
