"""A packed file is the folder: byte for byte, or as near as it states; a damaged one is refused and leaves nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from secateur.anatomy.check import anatomy_of
from secateur.artifacts import pack, packed_file
from secateur.artifacts.checkpoint import DTYPES, round_weights, save_plain
from secateur.artifacts.pack import is_packed, pack_folder, read_packed_facts, unpack_file
from secateur.artifacts.packed_file import read_packed, write_packed
from secateur.errors import CheckpointError, SecateurError
from secateur.files import sha256_folder
from secateur.masks.hold import attach
from secateur.masks.mask import MaskSet, Mode
from secateur.masks.tie import is_tied, untie

HEAD, TABLE = "lm_head.weight", "shared.weight"
# 24 ** -0.5 is no power of two: folding it into the head rounds.
SIZES = {"vocab_size": 40, "d_model": 24, "d_kv": 4, "d_ff": 20, "num_layers": 1, "num_heads": 3}
FAMILIES: dict[str, tuple[Any, Any]] = {
    "t5": (T5ForConditionalGeneration, T5Config),
    "mt5": (MT5ForConditionalGeneration, MT5Config),
    "umt5": (UMT5ForConditionalGeneration, UMT5Config),
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "recipes" / "tiny" / "start")


def pruned(family: str, head: str) -> tuple[Any, MaskSet]:
    """A pruned model; its head: dense, view, hold, untied, or trained (untied, and no copy of the table any more)."""
    model_class, config_class = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = model_class(config_class(**SIZES, decoder_start_token_id=0, pad_token_id=0)).eval()
    if not is_tied(model):  # as mT5 and UMT5 initialise it; their published checkpoints come either way
        model.lm_head.weight = model.shared.weight
    if head in ("untied", "trained"):
        untie(model)
    if head == "trained":
        with torch.no_grad():
            model.lm_head.weight[7, 3] += 0.25
    generator = torch.Generator().manual_seed(2)
    anatomy = anatomy_of(model)
    roles = ("self_attention", "feed_forward")
    modes: dict[str, Mode] = dict.fromkeys([w.path for role in roles for w in anatomy.select(role=role)], "hold")
    modes |= {"view": {HEAD: "view"}, "hold": {TABLE: "hold"}}.get(head, {})  # type: ignore[arg-type]
    masks = {path: torch.rand(anatomy[path].shape, generator=generator) > 0.7 for path in modes}
    mask_set = MaskSet(masks, modes, anatomy.fingerprint())
    attach(model, mask_set)
    return model, mask_set


def saved(place: Path, tokenizer: Any, family: str = "t5", head: str = "view", dtype: str = "fp32") -> Path:
    model, masks = pruned(family, head)
    round_weights(model, dtype)
    save_plain(model, tokenizer, place, masks=masks, dtype=dtype)
    return place


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any) -> Path:
    return saved(tmp_path / "model", tokenizer)


def logits(place: Path) -> torch.Tensor:
    ids = torch.randint(2, 40, (3, 7), generator=torch.Generator().manual_seed(1))
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(place, dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(input_ids=ids, decoder_input_ids=ids[:, :5]).logits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head", ["dense", "view", "hold", "untied", "trained"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_comes_back_byte_for_byte(family: str, head: str, dtype: str, tokenizer: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", tokenizer, family, head, dtype)
    packed = pack_folder(folder, tmp_path / "packed.safetensors")
    unpacked = unpack_file(packed.file, tmp_path / "back")
    assert sha256_folder(tmp_path / "back") == sha256_folder(folder)
    assert packed.rounding is unpacked.rounding is None
    files = list(folder.iterdir())
    assert (unpacked.num_files, unpacked.num_bytes) == (len(files), sum(file.stat().st_size for file in files))

    state = load_file(folder / "model.safetensors")
    copied = head in ("view", "untied")
    assert packed.copies == ((HEAD,) if copied else ()) and (HEAD in state) == (copied or head == "trained")
    own = [tensor for name, tensor in state.items() if name not in packed.copies]
    assert packed.num_nonzero == sum(int(tensor.count_nonzero()) for tensor in own)
    assert packed.num_nonzero <= packed.num_values <= sum(tensor.numel() for tensor in own)


def test_the_figures_add_up_and_are_read_without_the_weights(folder: Path, tmp_path: Path) -> None:
    packed = pack_folder(folder, tmp_path / "p", values="int8")
    assert packed.num_bytes == packed.file.stat().st_size
    assert packed.num_bytes == packed.mask_bytes + packed.value_bytes + packed.other_bytes
    assert min(packed.mask_bytes, packed.value_bytes, packed.other_bytes) > 0
    assert read_packed_facts(packed.file) == packed and is_packed(packed.file)
    counts = packed.counts(dense_parameters=10_000, counted=0.5)
    assert counts.as_json() == {
        "counted_ratio": 0.5,
        "stored_ratio": packed.num_nonzero / 10_000,
        "num_parameters": packed.num_values,
        "num_bytes": packed.num_bytes,
    }
    data = bytearray(packed.file.read_bytes())
    data[-1000:] = bytes(1000)
    (tmp_path / "damaged").write_bytes(data)
    assert read_packed_facts(tmp_path / "damaged").num_nonzero == packed.num_nonzero


def test_equal_folders_make_equal_files_and_a_packed_file_is_replaced(folder: Path, tmp_path: Path) -> None:
    first = pack_folder(folder, tmp_path / "p").file.read_bytes()
    assert pack_folder(folder, tmp_path / "p", values="int8").file.read_bytes() != first
    assert pack_folder(folder, tmp_path / "p").file.read_bytes() == first
    assert safetensors.torch.load(first).keys() > {f"tensors/model.safetensors/{HEAD}/mask"}


def test_shards_other_types_empty_tensors_and_subfolders_come_back(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    first = {HEAD: state.pop(HEAD), "ids": torch.arange(-5, 20), "flags": torch.tensor([True, False])}
    second = state | {"empty": torch.empty(0, 16), "scalar": torch.tensor(2.5), "double": torch.zeros(3).double()}
    second["encoder.embed_tokens.weight"] = state[TABLE].clone()  # an alias that someone saved
    save_file(first, folder / "model-00001-of-00002.safetensors", metadata={"format": "pt", "b": "2", "a": "\u00e9"})
    save_file(second, folder / "model-00002-of-00002.safetensors")
    save_file({}, folder / "none.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    (folder / "notes" / "deep").mkdir(parents=True)
    (folder / "notes" / "deep" / "empty.txt").write_bytes(b"")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "lock").write_text("not a part of the model")
    packed = pack_folder(folder, tmp_path / "p")
    unpack_file(tmp_path / "p", tmp_path / "back")
    assert not (tmp_path / "back" / ".cache").exists()
    (folder / ".cache" / "lock").unlink()
    assert sha256_folder(tmp_path / "back") == sha256_folder(folder)
    assert set(packed.copies) == {HEAD, "encoder.embed_tokens.weight"}
    for values in ("fp16", "bf16", "int8"):
        pack_folder(folder, tmp_path / "p", values=values)
        unpack_file(tmp_path / "p", tmp_path / values)
        back = load_file(tmp_path / values / "model-00002-of-00002.safetensors")
        assert back["empty"].shape == (0, 16) and torch.equal(back["encoder.embed_tokens.weight"], back[TABLE])
        assert torch.equal(load_file(tmp_path / values / "model-00001-of-00002.safetensors")["ids"], first["ids"])


@pytest.mark.parametrize("values", ["fp32", "int8"])
def test_the_size_of_the_chunks_does_not_show(
    folder: Path, tmp_path: Path, values: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pack_folder(folder, tmp_path / "p", values=values).file.read_bytes()
    monkeypatch.setattr("secateur.artifacts.packed_bytes.CHUNK", 100)  # 4 rows of the table at a time
    assert pack_folder(folder, tmp_path / "p", values=values).file.read_bytes() == whole
    unpack_file(tmp_path / "p", tmp_path / "back")
    assert values == "int8" or sha256_folder(tmp_path / "back") == sha256_folder(folder)


@pytest.mark.parametrize("change", ["last bit", "plain zeros", "all kept"])
def test_the_head_is_a_copy_only_if_every_bit_says_so(folder: Path, tmp_path: Path, change: str) -> None:
    state = load_file(folder / "model.safetensors")
    head = state[HEAD]
    if change == "last bit":
        place = tuple(head.nonzero()[-1])
        head[place] = torch.nextafter(head[place], torch.tensor(9.0))
    elif change == "plain zeros":
        assert (head.view(torch.int32) == -(2**31)).any()  # minus zeros: a mask times negative weights
        state[HEAD] = torch.where(head == 0, 0.0, head)
    else:
        state[HEAD] = state[TABLE] * 24**-0.5
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    packed = pack_folder(folder, tmp_path / "p")
    unpack_file(tmp_path / "p", tmp_path / "back")
    assert sha256_folder(tmp_path / "back") == sha256_folder(folder)
    assert packed.copies == (() if change == "last bit" else (HEAD,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", ["fp16", "bf16", "int8"])
def test_the_rounding_is_stated_and_zeros_stay(values: Any, dtype: str, tokenizer: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", tokenizer, dtype=dtype)
    packed = pack_folder(folder, tmp_path / "p", values=values)
    unpacked = unpack_file(tmp_path / "p", tmp_path / "back")
    assert packed.rounding == unpacked.rounding and unpacked.values == values
    before = load_file(folder / "model.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    found = {}
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype and after[name].shape == tensor.shape
        assert not after[name][tensor == 0].any()
        found[name] = (float((after[name].double() - tensor.double()).abs().max()), float(tensor.double().abs().max()))
        if values == "int8" and (tensor.ndim == 1 or "relative_attention_bias" in name):
            assert torch.equal(after[name], tensor)
    for other in {item.name for item in folder.iterdir()} - {"model.safetensors"}:
        assert (tmp_path / "back" / other).read_bytes() == (folder / other).read_bytes()
    if values != "int8" and dtype != "fp32":  # 16 bits already: nothing is gained by other 16
        assert packed.rounding is None and sha256_folder(tmp_path / "back") == sha256_folder(folder)
        return
    assert packed.rounding is not None and packed.rounding.tensor in found
    assert packed.rounding.difference == max(difference for difference, _ in found.values())
    assert packed.rounding.relative == max(difference / largest for difference, largest in found.values())
    assert 0 < packed.rounding.relative <= {"fp16": 2**-11, "bf16": 2**-8, "int8": 0.5 / 127 + 2**-8}[values]
    alive = before[HEAD] != 0
    expected = (after[TABLE].float() * alive * 24**-0.5).to(before[HEAD].dtype)
    assert packed.copies == (HEAD,) and torch.equal(after[HEAD], expected)


def test_an_unpacked_folder_loads_in_plain_transformers(folder: Path, tmp_path: Path, tokenizer: Any) -> None:
    expected = logits(folder)
    for values, tolerance in {"fp32": 0.0, "fp16": 2e-3, "bf16": 2e-2, "int8": 3e-2}.items():
        pack_folder(folder, tmp_path / "p", values=values)  # type: ignore[arg-type]
        unpack_file(tmp_path / "p", tmp_path / values)
        apart = float((logits(tmp_path / values) - expected).abs().max())
        assert apart <= tolerance * float(expected.abs().max()), values
        assert AutoTokenizer.from_pretrained(tmp_path / values)("cab")["input_ids"] == tokenizer("cab")["input_ids"]


@pytest.fixture
def packed_bytes(folder: Path, tmp_path: Path) -> Iterator[bytes]:
    pack_folder(folder, tmp_path / "p", values="int8")
    unpack_file(tmp_path / "p", tmp_path / "whole")
    yield (tmp_path / "p").read_bytes()


def refused_or_same(data: bytes, tmp_path: Path) -> bool:
    """Unpack bytes: True if they are refused by name and leave nothing, False if what comes out is what it was."""
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    (work / "damaged.safetensors").write_bytes(data)
    try:
        unpack_file(work / "damaged.safetensors", work / "back")
    except CheckpointError as error:
        assert "damaged.safetensors: " in str(error) and "\n" not in str(error)
        assert [item.name for item in work.iterdir()] == ["damaged.safetensors"]
        return True
    assert sha256_folder(work / "back") == sha256_folder(tmp_path / "whole")
    for item in sorted((work / "back").iterdir()):
        item.unlink()
    (work / "back").rmdir()
    return False


def test_a_cut_file_is_refused(packed_bytes: bytes, tmp_path: Path) -> None:
    size = len(packed_bytes)
    header = 8 + int.from_bytes(packed_bytes[:8], "little")
    for length in (0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, (header + size) // 2, size - 1):
        assert refused_or_same(packed_bytes[:length], tmp_path), length
    assert refused_or_same(packed_bytes + b"\0", tmp_path)
    assert refused_or_same(packed_bytes[:header] + bytes(size - header), tmp_path)


def test_a_flipped_bit_is_refused_or_changes_nothing(packed_bytes: bytes, tmp_path: Path) -> None:
    header = 8 + int.from_bytes(packed_bytes[:8], "little")
    generator = random.Random(0)
    places = [*range(24), *generator.sample(range(24, header), 150), *range(header - 8, header)]
    places += [*generator.sample(range(header, len(packed_bytes)), 150), len(packed_bytes) - 1]
    num_refused = 0
    for place in places:
        damaged = bytearray(packed_bytes)
        damaged[place] ^= 1 << generator.randrange(8)
        num_refused += refused_or_same(bytes(damaged), tmp_path)
    assert num_refused > 0.9 * len(places)


def test_blocks_that_were_lost_or_swapped_are_refused(packed_bytes: bytes, tmp_path: Path) -> None:
    header = 8 + int.from_bytes(packed_bytes[:8], "little")
    for start in range(header, len(packed_bytes) - 512, 4096):
        zeroed = packed_bytes[:start] + bytes(512) + packed_bytes[start + 512 :]
        assert refused_or_same(zeroed, tmp_path)
    body = packed_bytes[header:]
    assert refused_or_same(packed_bytes[:header] + body[512:] + body[:512], tmp_path)


def forge(file: Path, change: Any) -> Path:
    """Write a packed file anew with other facts, and with the hash that belongs to them."""
    layout, facts = read_packed(file)
    change(facts)
    parts = {name: layout.read(name).tobytes() for name in layout.entries}
    return write_packed(file, parts, {key: facts[key] for key in facts if key not in ("format", "version", "hash")})


def _rename(facts: Any, name: str) -> None:
    facts["files"][name] = facts["files"].pop("config.json")


WEIGHTS = ("files", "model.safetensors", "tensors")


def _set(facts: Any, path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        facts = facts[key]
    facts[path[-1]] = value


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: _rename(facts, "../config.json"),
        lambda facts: _rename(facts, "/tmp/config.json"),
        lambda facts: _rename(facts, "a\0b"),
        lambda facts: _rename(facts, ""),
        lambda facts: facts.pop("files"),
        lambda facts: facts.pop("values"),
        lambda facts: _set(facts, ("files",), [1]),
        lambda facts: _set(facts, ("files", "config.json"), {}),
        lambda facts: _set(facts, ("files", "config.json", "size"), 1 << 50),
        lambda facts: _set(facts, ("files", "model.safetensors", "tensors"), {}),
        lambda facts: _set(facts, (*WEIGHTS, HEAD, "of"), ["model.safetensors", "other"]),
        lambda facts: _set(facts, (*WEIGHTS, HEAD, "of"), [[], {}]),
        lambda facts: _set(facts, (*WEIGHTS, HEAD, "copy"), {"scale": "x"}),
        lambda facts: _set(facts, (*WEIGHTS, TABLE, "stored"), 1 << 50),
        lambda facts: _set(facts, (*WEIGHTS, TABLE, "values"), "F99"),
        lambda facts: _set(facts, (*WEIGHTS, TABLE, "planes"), {"values": []}),
        lambda facts: _set(facts, (*WEIGHTS, TABLE, "sha256"), "0" * 64),
        lambda facts: _set(facts, (*WEIGHTS, TABLE), None),
    ],
)
def test_a_forged_file_is_refused_and_writes_nowhere(packed_bytes: bytes, tmp_path: Path, change: Any) -> None:
    file = forge(tmp_path / "p", lambda facts: None)
    assert file.read_bytes() == packed_bytes
    forge(file, change)
    assert refused_or_same(file.read_bytes(), tmp_path)


def test_foreign_files_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not safetensors at all")
    (tmp_path / "deep").write_bytes((20_000).to_bytes(8, "little") + b"[" * 20_000)
    masks = MaskSet({"w": torch.ones(3) > 0}, {"w": "hold"}, "").save(tmp_path / "masks")
    for path, message in {
        tmp_path / "none": "none: no such file",
        folder: "model: no such file",
        tmp_path / "text": "text: damaged, cut short, or not a safetensors file",
        tmp_path / "deep": "deep: damaged, cut short, or not a safetensors file",
        folder / "model.safetensors": r"model\.safetensors: not a packed file",
        masks: "masks: not a packed file",
    }.items():
        assert not is_packed(path)
        for call in (lambda path=path: unpack_file(path, tmp_path / "back"), lambda path=path: read_packed_facts(path)):
            with pytest.raises(CheckpointError, match=message):
                call()
    assert not (tmp_path / "back").exists()


def test_a_later_version_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr(packed_file, "VERSION", 2)
        pack_folder(folder, tmp_path / "p")
    with pytest.raises(CheckpointError, match=r"p: packed in format 2, this version reads 1\. Update secateur"):
        unpack_file(tmp_path / "p", tmp_path / "back")


def _truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"model: holds no config\.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"model: holds no \.safetensors file"),
        (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"x"), r"pytorch_model\.bin: weights in another"),
        (_truncate, r"model\.safetensors: damaged, cut short"),
    ],
)
def test_folders_that_cannot_be_packed_are_refused(folder: Path, tmp_path: Path, spoil: Any, message: str) -> None:
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        pack_folder(folder, tmp_path / "p")
    assert [item.name for item in tmp_path.iterdir()] == ["model"]


def test_places_and_words_that_do_not_do_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("a diary")
    pack_folder(folder, tmp_path / "p")
    for call, message in (
        (lambda: pack_folder(tmp_path / "none", tmp_path / "x"), "none: no such folder"),
        (lambda: pack_folder(tmp_path / "mine", tmp_path / "x"), "mine: is a file"),
        (lambda: pack_folder(folder, tmp_path), "is a folder"),
        (lambda: pack_folder(folder, folder / "packed"), "lies in the folder"),
        (lambda: pack_folder(folder, tmp_path / "mine"), "mine: exists and is no packed file"),
        (lambda: pack_folder(folder, tmp_path / "x", level=40), "level 40: zstd has 1"),
        (lambda: pack_folder(folder, tmp_path / "x", values="int4"), "values: no 'int4'"),  # type: ignore[arg-type]
        (lambda: unpack_file(tmp_path / "p", folder), "model: exists"),
        (lambda: unpack_file(tmp_path / "p", tmp_path / "mine"), "mine: exists"),
        (lambda: unpack_file(tmp_path / "p", tmp_path / "mine" / "below"), "cannot be written"),
        (lambda: pack_folder(folder, tmp_path / "mine" / "below"), "cannot be written"),
    ):
        with pytest.raises(SecateurError, match=message):
            call()
    assert (tmp_path / "mine").read_text() == "a diary"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["mine", "model", "p"]
    (tmp_path / "empty").mkdir()
    unpack_file(tmp_path / "p", tmp_path / "empty")
    assert sha256_folder(tmp_path / "empty") == sha256_folder(folder)


@pytest.mark.parametrize("values", ["fp16", "bf16", "int8"])
def test_ruined_weights_are_packed_exactly_or_not_at_all(folder: Path, tmp_path: Path, values: Any) -> None:
    state = load_file(folder / "model.safetensors")
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    state[name][1, 1] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: {name}: holds NaN or infinity.*fp32 values"):
        pack_folder(folder, tmp_path / "p", values=values)
    assert not (tmp_path / "p").exists()
    pack_folder(folder, tmp_path / "p")
    unpack_file(tmp_path / "p", tmp_path / "back")
    assert sha256_folder(tmp_path / "back") == sha256_folder(folder)


def test_a_failed_write_leaves_what_was_there(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pack_folder(folder, tmp_path / "p").file.read_bytes()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("os.replace", full)
        for call in (
            lambda: pack_folder(folder, tmp_path / "p", values="int8"),
            lambda: unpack_file(tmp_path / "p", tmp_path / "back"),
        ):
            with pytest.raises(CheckpointError, match="No space left"):
                call()
    assert (tmp_path / "p").read_bytes() == before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["model", "p"]


@pytest.mark.parametrize("head", ["view", "untied", "trained"])
@pytest.mark.parametrize("values", ["fp32", "fp16", "int8"])
def test_a_large_tensor_is_coded_in_pieces(
    head: str, values: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "model", tokenizer, head=head)
    whole = pack_folder(folder, tmp_path / "whole", values=values)
    unpack_file(whole.file, tmp_path / "from-whole")
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr(pack, "PIECE", 700)
    packed = pack_folder(folder, tmp_path / "p", values=values, on_bytes=lambda *now: told.append(now))
    unpack_file(packed.file, tmp_path / "back")  # whatever PIECE is then: the file says what it was
    monkeypatch.undo()
    assert sha256_folder(tmp_path / "back") == sha256_folder(tmp_path / "from-whole")
    assert (packed.num_nonzero, packed.rounding, packed.copies) == (whole.num_nonzero, whole.rounding, whole.copies)
    assert packed.num_bytes == packed.mask_bytes + packed.value_bytes + packed.other_bytes
    records = read_packed(packed.file)[1]["files"]["model.safetensors"]["tensors"]
    largest = max(records.items(), key=lambda item: len(item[1].get("pieces", [])))
    assert largest[0] in (TABLE, HEAD) and len(largest[1]["pieces"]) == 6  # 40 rows of 96 bytes, 7 at once
    assert told[-1][1] == told[-1][2] and len(told) > len(load_file(folder / "model.safetensors"))

    # A damaged piece is found, as a damaged tensor is.
    layout, facts = read_packed(packed.file)
    name = next(name for name in layout.entries if name.endswith((".1", ".2")) and "values" in name)
    parts = {part: layout.read(part).tobytes() for part in layout.entries}
    parts[name] = parts[name][:-1] + bytes([parts[name][-1] ^ 1])
    write_packed(tmp_path / "q", parts, {key: facts[key] for key in facts if key not in ("format", "version", "hash")})
    with pytest.raises(CheckpointError, match="q: damaged"):
        unpack_file(tmp_path / "q", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_stopping_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_folder(folder, tmp_path / "p", on_bytes=stop)
    pack_folder(folder, tmp_path / "p")
    with pytest.raises(KeyboardInterrupt):
        unpack_file(tmp_path / "p", tmp_path / "back", on_bytes=stop)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["model", "p"]


def test_sparse_weights_get_smaller(tmp_path: Path) -> None:
    """Random values, so the entropy is known: 0.72 bits a mask element, at most 32 or 8 bits a value that is kept."""
    values = torch.randn(500, 400, generator=torch.Generator().manual_seed(0))
    values[torch.rand(500, 400, generator=torch.Generator().manual_seed(1)) < 0.8] = 0
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "t5"}))
    save_file({"w": values}, tmp_path / "model" / "model.safetensors")
    kept = int(np.count_nonzero(values.numpy()))
    masks = 0.74 * values.numel() / 8
    assert pack_folder(tmp_path / "model", tmp_path / "p").num_bytes < masks + 3.4 * kept + 1500
    assert pack_folder(tmp_path / "model", tmp_path / "p", values="int8").num_bytes < masks + kept + 4 * 500 + 1500
