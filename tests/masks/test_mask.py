from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from secateur.errors import CheckpointError, MaskError
from secateur.masks import mask as mask_module
from secateur.masks.mask import MaskSet


@pytest.fixture
def masks() -> MaskSet:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (5, 7), "b": (3,), "c": (2, 2, 2), "none": (4, 4)}
    made = {path: torch.rand(shape, generator=generator) > 0.5 for path, shape in shapes.items()}
    return MaskSet(made, {**dict.fromkeys(made, "hold"), "c": "view"}, owner="f" * 64)


def test_a_saved_set_comes_back_equal_and_equal_sets_are_equal_files(masks: MaskSet, tmp_path: Path) -> None:
    masks.save(tmp_path / "one.safetensors")
    loaded = MaskSet.load(tmp_path / "one.safetensors", owner="f" * 64)
    assert loaded.equals(masks)
    assert list(loaded.masks) == list(masks.masks)
    loaded.save(tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_an_empty_set_can_be_saved(tmp_path: Path) -> None:
    MaskSet.empty("x").save(tmp_path / "m")
    assert len(MaskSet.load(tmp_path / "m", owner="x")) == 0


def test_a_file_holds_one_bit_per_weight(tmp_path: Path) -> None:
    big = MaskSet({"w": torch.rand(1000, 800) > 0.5}, {"w": "hold"}, "")
    assert big.save(tmp_path / "m").stat().st_size <= 800_000 // 8 + 1000


def test_counts_are_exact(masks: MaskSet) -> None:
    assert masks.num_removed == sum(int((~mask).sum()) for mask in masks.masks.values())
    assert masks.removed("missing") == 0
    assert masks.sparsity("missing") == 0.0
    assert masks.sparsity("b") == masks.removed("b") / 3


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    small = MaskSet({"w": torch.tensor([True, False, True] * 5)}, {"w": "hold"}, "owner")
    file = small.save(tmp_path / "m.safetensors")
    data = file.read_bytes()
    for position in range(len(data)):
        for flip in (0x01, 0x80):
            file.write_bytes(data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :])
            try:
                assert MaskSet.load(file).equals(small), position  # a space in the header's padding, say
            except CheckpointError as error:
                assert "m.safetensors" in str(error)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_cut_file_is_refused_by_name(masks: MaskSet, tmp_path: Path, share: float) -> None:
    file = masks.save(tmp_path / "m.safetensors")
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"m\.safetensors: damaged"):
        MaskSet.load(file)


def test_masks_of_another_model_are_refused_with_what_to_do(masks: MaskSet, tmp_path: Path) -> None:
    file = masks.save(tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"m\.safetensors: these masks belong to another model.*Prune this model"):
        MaskSet.load(file, owner="0" * 64)


def test_a_safetensors_file_of_someone_else_is_refused(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: not a mask file"):
        MaskSet.load(tmp_path / "weights.safetensors")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(CheckpointError, match="no such file"):
            MaskSet.load(path)


def test_a_later_version_is_refused(masks: MaskSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr(mask_module, "VERSION", 2)
        masks.save(tmp_path / "m")
    with pytest.raises(CheckpointError, match="mask format 2, this version reads 1"):
        MaskSet.load(tmp_path / "m")


def test_a_failed_write_leaves_the_old_file(masks: MaskSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = MaskSet.empty().save(tmp_path / "m")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(CheckpointError):
        masks.save(file)
    assert len(MaskSet.load(file)) == 0


def test_merging_keeps_what_both_keep(masks: MaskSet) -> None:
    other = MaskSet(
        {"b": torch.tensor([True, False, False]), "new": torch.ones(2) > 0}, {"b": "hold", "new": "view"}, ""
    )
    merged = masks & other
    assert set(merged.masks) == {*masks.masks, "new"}
    assert torch.equal(merged.masks["b"], masks.masks["b"] & other.masks["b"])
    assert merged.owner == masks.owner
    assert (masks & masks).equals(masks)


@pytest.mark.parametrize(
    ("path", "mask", "mode", "owner", "message"),
    [
        ("b", torch.ones(3) > 0, "view", "", "one mask is hold"),
        ("b", torch.ones(4) > 0, "hold", "", r"\(3,\), the other hold \(4,\)"),
        ("new", torch.ones(4) > 0, "hold", "other", "two different models"),
    ],
)
def test_sets_that_disagree_are_not_merged(masks: MaskSet, path, mask, mode, owner, message) -> None:
    with pytest.raises(MaskError, match=message):
        masks & MaskSet({path: mask}, {path: mode}, owner)


@pytest.mark.parametrize(
    ("made", "modes", "message"),
    [
        ({"w": torch.ones(2)}, {"w": "hold"}, "w: a mask must be bool"),
        ({"w": torch.ones(2) > 0}, {}, "only one of them names: w"),
        ({"w": torch.ones(2) > 0}, {"w": "hidden"}, "neither"),
    ],
)
def test_what_is_no_mask_is_refused(made, modes, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        MaskSet(made, modes, "")


def test_a_set_cannot_be_changed(masks: MaskSet) -> None:
    with pytest.raises(TypeError):
        masks.masks["b"] = torch.ones(3) > 0  # type: ignore[index]


def test_the_header_is_plain_json(masks: MaskSet, tmp_path: Path) -> None:
    data = masks.save(tmp_path / "m").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["secateur"])["shapes"]["a.weight"] == [5, 7]
