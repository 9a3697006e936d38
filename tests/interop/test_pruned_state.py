"""Every key of a pruned checkpoint is used or told; every fault is told at once, with its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize, prune

from secateur.anatomy.check import anatomy_of
from secateur.anatomy.roles import Anatomy
from secateur.errors import CheckpointError
from secateur.interop.pruned_state import read_pruned
from secateur.masks.mask import MaskSet
from secateur.masks.tie import HEAD
from torch_pruned import make_dense, masks_in, prune_as_report

TABLE = "shared.weight"

State = dict[str, torch.Tensor]
Q = "encoder.block.0.layer.0.SelfAttention.q.weight"
WI = "encoder.block.0.layer.1.DenseReluDense.wi.weight"


def wanted() -> State:
    return masks_in(prune_as_report(make_dense()))


def save_torch(state: State, file: Path) -> Path:
    torch.save(state, file)
    return file


def save_nested(state: State, file: Path) -> Path:
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}, "model_state_dict": state}, file)
    return file


def save_wrapped(state: State, file: Path) -> Path:
    torch.save({"state_dict": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}}, file)
    return file


def save_old(state: State, file: Path) -> Path:
    torch.save(state, file, _use_new_zipfile_serialization=False)
    return file


def save_safetensors(state: State, file: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file.with_suffix(".safetensors"))
    return file.with_suffix(".safetensors")


def save_bin(state: State, file: Path) -> Path:
    folder = file.with_suffix("")
    folder.mkdir()
    return save_torch(state, folder / "pytorch_model.bin").parent


def save_sharded(state: State, file: Path) -> Path:
    folder = file.with_suffix("")
    folder.mkdir()
    names = sorted(state)
    parts = {f"model-0000{part}-of-00002.safetensors": names[part - 1 :: 2] for part in (1, 2)}
    for name, some in parts.items():
        save_file({key: state[key].contiguous() for key in some}, folder / name)
    listed = ", ".join(f'"{key}": "{name}"' for name, some in parts.items() for key in some)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {' + listed + "}}")
    return folder


SAVED = [save_torch, save_nested, save_wrapped, save_old, save_safetensors, save_bin, save_sharded]


@pytest.mark.parametrize("save", SAVED)
def test_weights_and_masks_are_the_same_however_they_were_saved(anatomy: Anatomy, state: State, file, save) -> None:
    found = read_pruned(save(state, file), anatomy)
    assert found.form == "torch.nn.utils.prune" and found.head == "view" and found.weights is not None
    assert found.masks.owner == anatomy.fingerprint()
    masks = wanted()
    assert found.masks.masks.keys() == masks.keys() and len(masks) == 33
    assert all(torch.equal(found.masks.masks[path], mask) for path, mask in masks.items())
    assert found.weights.keys() == {weight.path for weight in anatomy.unique()}
    dense = dict(make_dense().named_parameters())
    assert all(torch.equal(found.weights[path], dense[path]) for path in found.weights)
    assert bool(found.notes) == (save is save_nested)
    assert all("epoch, optimizer" in note for note in found.notes)


def test_the_heads_mask_never_reaches_the_embedding(anatomy: Anatomy, state: State, file) -> None:
    found = read_pruned(save_torch(state, file), anatomy)
    assert found.masks.modes[HEAD] == "view" and TABLE not in found.masks
    assert {found.masks.modes[path] for path in found.masks.masks if path != HEAD} == {"hold"}
    assert not bool((found.weights or {})[TABLE].eq(0).any())


def test_save_pretrained_drops_the_heads_original_and_keeps_its_mask(anatomy: Anatomy, state: State, file) -> None:
    """transformers finds the head's original tied to the table and saves the table alone."""
    del state["lm_head.weight_orig"], state["encoder.embed_tokens.weight"], state["decoder.embed_tokens.weight"]
    found = read_pruned(save_torch(state, file), anatomy)
    assert found.head == "view" and torch.equal(found.masks.masks[HEAD], wanted()[HEAD])


def test_a_table_that_only_the_head_holds(anatomy: Anatomy, state: State, file) -> None:
    for name in ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        del state[name]
    assert read_pruned(save_torch(state, file), anatomy).head == "view"


def test_a_head_that_differs_from_the_table_was_untied(anatomy: Anatomy, state: State, file) -> None:
    state["lm_head.weight_orig"] += 1.0
    found = read_pruned(save_torch(state, file), anatomy)
    assert found.head == "untied" and found.masks.modes[HEAD] == "hold" and "table of its own" in found.notes[0]
    assert found.weights is not None and HEAD in found.weights


def test_a_model_whose_head_is_its_own(file) -> None:
    model = make_dense(tied=False)
    anatomy = anatomy_of(model)
    found = read_pruned(save_torch(prune_as_report(model).state_dict(), file), anatomy)
    assert found.head == "untied" and found.masks.modes[HEAD] == "hold" and not found.notes


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.uint8, torch.bfloat16])
def test_a_mapping_of_parameters_to_masks(anatomy: Anatomy, file, dtype: torch.dtype) -> None:
    masks = {path: wanted()[path] for path in (Q, WI, HEAD)}
    found = read_pruned(save_torch({path: mask.to(dtype) for path, mask in masks.items()}, file), anatomy)
    assert found.form == "masks by parameter" and found.weights is None and found.head == "view"
    assert {path: mask.tolist() for path, mask in found.masks.masks.items()} == {
        p: m.tolist() for p, m in masks.items()
    }


def test_buffers_alone_are_masks_too(anatomy: Anatomy, state: State, file) -> None:
    alone = {name: tensor for name, tensor in state.items() if name.endswith("_mask")}
    found = read_pruned(save_torch(alone, file), anatomy)
    assert found.weights is None and len(found.masks) == len(wanted())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_nnis_masks_by_module(anatomy: Anatomy, file, prefix: str) -> None:
    masks = wanted()
    by_module: dict[str, Any] = {
        prefix + path.removesuffix(".weight"): {"weight": mask.float(), "bias": None} for path, mask in masks.items()
    }
    by_module[f"{prefix}lm_head"]["_output_0"] = torch.ones(71)
    by_module[f"{prefix}shared"] = {}
    torch.save(by_module, file)
    found = read_pruned(file, anatomy)
    assert found.form == "masks by module" and found.weights is None and found.head == "view"
    assert all(torch.equal(found.masks.masks[path], mask) for path, mask in masks.items())
    assert "keeps every activation" in " ".join(found.notes)
    by_module[f"{prefix}lm_head"]["_output_0"] = torch.zeros(71)
    torch.save(by_module, file)
    with pytest.raises(CheckpointError, match="masks activations"):
        read_pruned(file, anatomy)


def test_our_own_mask_files(anatomy: Anatomy, tmp_path) -> None:
    masks = {path: wanted()[path] for path in (Q, HEAD)}
    ours = MaskSet(masks, {Q: "hold", HEAD: "view"}, anatomy.fingerprint())
    found = read_pruned(ours.save(tmp_path / "masks.safetensors"), anatomy)
    assert found.masks.equals(ours) and found.head == "view" and found.weights is None


def test_torchs_parametrizations_with_a_mask_are_understood_and_others_refused(anatomy: Anatomy, state, file) -> None:
    moved = dict(state)
    base = Q.removesuffix(".weight")
    moved[f"{base}.parametrizations.weight.original"] = moved.pop(f"{Q}_orig")
    moved[f"{base}.parametrizations.weight.0.mask"] = moved.pop(f"{Q}_mask")
    found = read_pruned(save_torch(moved, file), anatomy)
    assert torch.equal(found.masks.masks[Q], wanted()[Q])
    model = make_dense()
    parametrize.register_parametrization(model.encoder.block[0].layer[0].SelfAttention.q, "weight", _Shifted())
    prune.l1_unstructured(model.lm_head, "weight", amount=0.5)
    with pytest.raises(CheckpointError, match=r"parametrizations\.weight\.0\.shift: a parametrization that is no mask"):
        read_pruned(save_torch(model.state_dict(), file), anatomy)


class _Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(()))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.shift


def test_every_fault_at_once_with_its_name(anatomy: Anatomy, state: State, file) -> None:
    state["stranger.weight"] = torch.ones(2)
    del state["decoder.final_layer_norm.weight"]
    state[f"{Q}_mask"][0, 0] = 0.5
    state[f"{WI}_orig"][0, 0] = float("nan")
    k, o, v = (Q.replace(".q.", f".{part}.") for part in "kov")
    state[f"{k}_orig"] = state[f"{k}_orig"].T.contiguous()[:, :4]
    state[f"{o}_mask"][1, 1] = float("nan")
    del state[f"{v}_mask"]
    with pytest.raises(CheckpointError) as caught:
        read_pruned(save_torch(state, file), anatomy)
    told = str(caught.value)
    for name, fault in {
        "stranger.weight": "no such parameter",
        "decoder.final_layer_norm.weight": "missing",
        Q: "not binary: 1 of",
        WI: "NaN",
        k: "shape [16, 4]",
        o: "its mask holds NaN",
        v: "the mask is missing",
    }.items():
        assert any(name in line and fault in line for line in told.splitlines()), (name, told)
    assert len(told.splitlines()) == 8


def test_swapped_shapes_and_masks_of_another_size(anatomy: Anatomy, state: State, file) -> None:
    state[f"{Q}_mask"], state[f"{WI}_mask"] = state[f"{WI}_mask"], state[f"{Q}_mask"]
    with pytest.raises(CheckpointError) as caught:
        read_pruned(save_torch(state, file), anatomy)
    assert str(caught.value).count("its mask has shape") == 2


def test_a_mask_that_is_no_mask_in_a_file_of_masks(anatomy: Anatomy, file) -> None:
    masks = {path: mask.float() for path, mask in wanted().items()}
    masks[Q][0, 0] = 0.25
    with pytest.raises(CheckpointError, match="not binary: 1 of 128"):
        read_pruned(save_torch(masks, file), anatomy)


def removed_head() -> State:
    model = make_dense()
    prune.l1_unstructured(model.lm_head, "weight", amount=0.8)
    prune.remove(model.lm_head, "weight")
    return dict(model.state_dict())


def test_holes_that_remove_left_in_a_tied_table_are_told(anatomy: Anatomy, file) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_pruned(save_torch(removed_head(), file), anatomy)
    told = str(caught.value)
    assert "holds plain weights without any mask" in told and "--masks-from-zeros" in told
    assert "shared.weight holds 909 zeros, as prune.remove() on a tied head leaves" in told


def test_zeros_can_be_taken_for_masks(anatomy: Anatomy, file) -> None:
    state = removed_head()
    found = read_pruned(save_torch(state, file), anatomy, masks_from_zeros=True)
    assert found.form == "zeros" and found.head == "both" and found.masks.modes == {TABLE: "hold"}
    assert torch.equal(found.masks.masks[TABLE], state[TABLE] != 0)
    assert any("the embedding has lost them too" in note for note in found.notes)


def test_zeros_beside_masks_are_told_and_not_taken_unasked(anatomy: Anatomy, file) -> None:
    model = prune_as_report(make_dense())
    prune.remove(model.lm_head, "weight")
    found = read_pruned(save_torch(model.state_dict(), file), anatomy)
    assert found.head == "tied" and TABLE not in found.masks and "prune.remove()" in found.notes[0]
    taken = read_pruned(file, anatomy, masks_from_zeros=True)
    assert taken.head == "both" and TABLE in taken.masks and len(taken.masks) == len(found.masks) + 1


def test_the_option_is_refused_where_it_cannot_act(anatomy: Anatomy, state: State, file) -> None:
    with pytest.raises(CheckpointError, match="no matrix without a mask holds more zeros"):
        read_pruned(save_torch(state, file), anatomy, masks_from_zeros=True)
    with pytest.raises(CheckpointError, match="masks alone"):
        read_pruned(save_torch(wanted(), file), anatomy, masks_from_zeros=True)


def test_what_removes_nothing_is_no_import(anatomy: Anatomy, file) -> None:
    model = make_dense()
    with pytest.raises(CheckpointError, match="plain weights without any mask"):
        read_pruned(save_torch(model.state_dict(), file), anatomy)
    prune.identity(model.lm_head, "weight")
    with pytest.raises(CheckpointError, match="its masks remove nothing"):
        read_pruned(save_torch(model.state_dict(), file), anatomy)


def test_masks_on_the_embedding(anatomy: Anatomy, file) -> None:
    """torch masks a module's forward pass, and three modules read one table; a file of masks names the table itself."""
    model = make_dense()
    prune.l1_unstructured(model.encoder.embed_tokens, "weight", amount=0.5)
    with pytest.raises(CheckpointError, match="only part of what reads the embedding was masked"):
        read_pruned(save_torch(model.state_dict(), file), anatomy)
    prune.custom_from_mask(model.decoder.embed_tokens, "weight", model.encoder.embed_tokens.weight_mask)
    with pytest.raises(CheckpointError, match="while the head went on with the whole table"):
        read_pruned(save_torch(model.state_dict(), file), anatomy)
    mask = model.encoder.embed_tokens.weight_mask
    found = read_pruned(save_torch({TABLE: mask, HEAD: mask.flip(0)}, file), anatomy)
    assert found.masks.modes == {TABLE: "hold", HEAD: "view"} and found.head == "view"
    assert torch.equal(found.masks.masks[HEAD], mask.bool() & mask.flip(0).bool())
    assert read_pruned(save_torch({TABLE: mask}, file), anatomy).head == "both"
