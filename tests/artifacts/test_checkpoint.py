"""Every kind of model comes back: as it was in memory, bit for bit, and as a plain folder with the same logits."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from published import HEAD, given
from secateur import files
from secateur.anatomy.check import anatomy_of
from secateur.artifacts import checkpoint
from secateur.artifacts.checkpoint import load_live, save_live, save_plain
from secateur.artifacts.loading import load_model, load_tokenizer
from secateur.errors import CheckpointError
from secateur.masks.hold import attach
from secateur.masks.mask import MaskSet, Mode
from secateur.masks.tie import is_tied, untie

# One rounding of the head and sums of 24 products in another order: some 2^-23 each, a hundred times less than this.
TOLERANCE = 1e-5


def logits(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 40, (3, 7), generator=generator)
    with torch.no_grad():
        return model.eval()(input_ids=ids, decoder_input_ids=ids[:, :5]).logits


def assert_close(one: torch.Tensor, other: torch.Tensor) -> None:
    assert float((one - other).abs().max()) <= TOLERANCE * float(other.abs().max())


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "recipes" / "tiny" / "start")


def masks_of(model: Any, head: Mode | None) -> MaskSet:
    generator = torch.Generator().manual_seed(2)
    anatomy = anatomy_of(model)
    paths = [weight.path for weight in anatomy.select(role="self_attention")]
    modes: dict[str, Mode] = dict.fromkeys(paths, "hold")
    if head:
        modes[HEAD if head == "view" or not is_tied(model) else "shared.weight"] = head
    shapes = {path: anatomy[path].shape for path in modes}
    masks = {path: torch.rand(shape, generator=generator) > 0.4 for path, shape in shapes.items()}
    return MaskSet(masks, modes, anatomy.fingerprint())


# name, own head in the given file, what is done to the head
CASES = [
    ("t5", False, "dense"),
    ("t5", False, "view"),
    ("t5", False, "both"),
    ("t5", False, "untie"),
    ("t5", True, "hold"),
    ("t5-v1.1", True, "hold"),
    ("mt5", False, "view"),
    ("mt5", False, "untie"),
    ("mt5", True, "hold"),
    ("umt5", False, "view"),
    ("umt5", False, "untie"),
    ("umt5", True, "hold"),
]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)))
def live(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, MaskSet, bool]:
    """A model with its masks attached, as a stage leaves it; whether its head is a table of its own."""
    name, own_head, head = request.param
    model: Any = load_model(str(given(name, tmp_path / "given", own_head=own_head)))
    assert is_tied(model) == (not own_head)
    if own_head or head == "untie":
        untie(model)
        with torch.no_grad():  # a head that was trained is no copy of the table
            model.lm_head.weight.add_(torch.randn(40, 24, generator=torch.Generator().manual_seed(3)), alpha=0.1)
    masks = masks_of(model, {"dense": None, "view": "view"}.get(head, "hold"))
    attach(model, masks)
    return model, masks, own_head or head == "untie"


def test_what_is_saved_comes_back(live: tuple[Any, MaskSet, bool], tokenizer: Any, tmp_path: Path) -> None:
    model, masks, own_head = live
    expected = logits(model)
    save_plain(model, tokenizer, tmp_path / "stage" / "model", masks=masks)
    facts = json.loads(json.dumps(save_live(model, tmp_path / "stage", masks=masks)))

    back, back_masks = load_live(tmp_path / "stage", facts)
    assert back_masks.equals(masks)
    before, after = dict(model.named_parameters()), dict(back.named_parameters())
    assert before.keys() == after.keys() and (HEAD in before) == own_head
    for name, parameter in before.items():
        assert torch.equal(parameter, after[name]), name
    assert anatomy_of(back).fingerprint() == masks.owner and is_tied(back) != own_head
    attach(back, back_masks)
    assert torch.equal(logits(back), expected)

    plain: Any = load_model(str(tmp_path / "stage" / "model"))
    assert_close(logits(plain), expected)
    assert load_tokenizer(str(tmp_path / "stage" / "model"))("cab")["input_ids"] == tokenizer("cab")["input_ids"]
    viewed = masks.modes.get(HEAD) == "view"
    assert is_tied(plain) == (not own_head and not viewed)
    for path, mask in masks.masks.items():
        assert not plain.get_parameter(path)[~mask].any()
    if viewed:
        assert plain.shared.weight.count_nonzero() == plain.shared.weight.numel()  # the table keeps what the head lost


def test_saving_what_was_loaded_changes_nothing(
    live: tuple[Any, MaskSet, bool], tokenizer: Any, tmp_path: Path
) -> None:
    model, masks, _ = live
    save_plain(model, tokenizer, tmp_path / "one" / "model", masks=masks)
    facts = save_live(model, tmp_path / "one", masks=masks)
    back, back_masks = load_live(tmp_path / "one", facts)
    attach(back, back_masks)
    save_plain(back, tokenizer, tmp_path / "two" / "model", masks=back_masks)
    save_live(back, tmp_path / "two", masks=back_masks)
    assert files.sha256_folder(tmp_path / "one") == files.sha256_folder(tmp_path / "two")


@pytest.mark.parametrize("wrong", ["cloned head", "tied again"])
def test_a_head_saved_without_its_view_would_be_seen(tokenizer: Any, tmp_path: Path, wrong: str) -> None:
    """The control of the comparison above: these two mistakes are far outside of its tolerance."""
    model: Any = load_model(str(given("t5", tmp_path / "given", own_head=False)))
    masks = masks_of(model, "view")
    attach(model, masks)
    expected = logits(model)
    place = tmp_path / "model"
    save_plain(model, tokenizer, place, masks=masks)
    state = load_file(place / "model.safetensors")
    if wrong == "cloned head":
        state[HEAD] = state["shared.weight"] * 24**-0.5
    else:
        del state[HEAD]
        raw = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(
            json.dumps(raw | {"tie_word_embeddings": True, "scale_decoder_outputs": True})
        )
    save_file(state, place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AssertionError):
        assert_close(logits(load_model(str(place))), expected)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_smaller_dtype_is_stored_and_loaded_as_fp32(tokenizer: Any, tmp_path: Path, dtype: str) -> None:
    model: Any = load_model(str(given("t5", tmp_path / "given", own_head=True)))
    untie(model)
    masks = masks_of(model, "hold")
    attach(model, masks)
    checkpoint.round_weights(model, dtype)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    checkpoint.round_weights(model, dtype)  # what is rounded stays
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    save_plain(model, tokenizer, tmp_path / "stage" / "model", masks=masks, dtype=dtype)
    back, _ = load_live(tmp_path / "stage", save_live(model, tmp_path / "stage", masks=masks))
    assert all(torch.equal(parameter, before[name]) for name, parameter in back.named_parameters())
    stored = load_file(tmp_path / "stage" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {checkpoint.DTYPES[dtype]}
    plain = load_model(str(tmp_path / "stage" / "model"))
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.float32}


def test_faults_of_a_stage_are_named(tokenizer: Any, tmp_path: Path) -> None:
    model: Any = load_model(str(given("t5", tmp_path / "given", own_head=False)))
    masks = MaskSet.empty(anatomy_of(model).fingerprint())
    save_plain(model, tokenizer, tmp_path / "stage" / "model", masks=masks)
    facts = save_live(model, tmp_path / "stage", masks=masks)
    file = tmp_path / "stage" / "model" / "model.safetensors"
    whole = file.read_bytes()
    flipped = bytes([whole[-1] ^ 1])
    for damaged in (whole[:100], whole[:-1] + flipped, b""):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model.safetensors: damaged"):
            load_live(tmp_path / "stage", facts)
    file.write_bytes(safetensors.torch.save(safetensors.torch.load(whole) | {"more": torch.zeros(1)}))
    other = facts | {"hashes": {checkpoint.WEIGHTS: files.sha256_file(file)}}
    with pytest.raises(CheckpointError, match="holds other parameters than its configuration says: more"):
        load_live(tmp_path / "stage", other)
    file.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        load_live(tmp_path / "stage", facts)


def test_a_full_disk_leaves_the_old_folder(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = load_model(str(given("t5", tmp_path / "given", own_head=False)))
    masks = MaskSet.empty()
    save_plain(model, tokenizer, tmp_path / "stage" / "model", masks=masks)
    before = files.sha256_folder(tmp_path / "stage")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot be written: .*No space left on device"):
        save_plain(model, tokenizer, tmp_path / "stage" / "model", masks=masks)
    assert files.sha256_folder(tmp_path / "stage") == before
    assert [item.name for item in (tmp_path / "stage").iterdir()] == ["model"]
