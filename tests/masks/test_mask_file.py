"""A mask file that is written piece by piece is the file that a MaskSet writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from secateur.errors import CheckpointError
from secateur.masks.mask import MaskSet, Mode
from secateur.masks.mask_file import MaskWriter


def write(file: Path, masks: MaskSet, piece: int) -> None:
    shapes = {path: tuple(mask.shape) for path, mask in masks.masks.items()}
    with MaskWriter(file, shapes, masks.modes, owner=masks.owner) as writer:
        for path, mask in reversed(masks.masks.items()):
            flat = mask.flatten().numpy()
            for start in range(0, len(flat), piece):
                writer.write(path, start, flat[start : start + piece])


@pytest.mark.parametrize("piece", [8, 24, 1024])
def test_it_is_the_same_file(tmp_path: Path, piece: int) -> None:
    drawn = torch.Generator().manual_seed(0)
    shapes = {"z.weight": (5, 7), "a.weight": (64,), "lm_head.weight": (3, 3), "ü": (1,)}
    modes: dict[str, Mode] = {path: "view" if "head" in path else "hold" for path in shapes}
    masks = MaskSet({path: torch.rand(shape, generator=drawn) > 0.5 for path, shape in shapes.items()}, modes, "me")
    masks.save(tmp_path / "whole")
    write(tmp_path / "pieces", masks, piece)
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()
    assert MaskSet.load(tmp_path / "pieces", owner="me").equals(masks)


def test_one_that_was_broken_off_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), MaskWriter(tmp_path / "m", {"w": (16,)}, {"w": "hold"}, owner="") as writer:
        writer.write("w", 0, torch.ones(8, dtype=torch.bool).numpy())
        raise ZeroDivisionError
    with pytest.raises(CheckpointError, match="damaged"):
        MaskSet.load(tmp_path / "m")
