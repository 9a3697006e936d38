"""A folder that is pruned by shards is what the model in memory would be pruned to: every bit of it."""

from __future__ import annotations

import json
import shutil
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSeq2SeqLM,
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from nets import make_layer_normed
from secateur import cli, folder_pruning, shard_choice
from secateur.anatomy.check import anatomy_of
from secateur.artifacts import packed_file, shard_writer
from secateur.artifacts.checkpoint import DTYPES, save_plain
from secateur.artifacts.counts import count_folder, counted_ratio
from secateur.artifacts.loading import load_model, load_tokenizer
from secateur.artifacts.lock import lock_folder
from secateur.artifacts.manifest import artefact_hash, resolve_model
from secateur.artifacts.pack import pack_folder
from secateur.artifacts.shards import INDEX
from secateur.errors import AnatomyError, CheckpointError, MaskError, RecipeError, SecateurError
from secateur.files import PARTIAL, sha256_folder
from secateur.folder_pruning import prune
from secateur.masks.group import prune_group
from secateur.masks.hold import attach
from secateur.masks.mask import MaskSet
from secateur.masks.tie import HEAD, counted_removed, is_tied, untie
from secateur.plan_groups import head_policy, target_of
from secateur.recipe.schema import Group
from secateur.shard_recipe import recipe_of_groups
from toy import ROOT

TABLE = "shared.weight"

SIZES: dict[str, Any] = {
    "vocab_size": 40, "d_model": 24, "d_kv": 4, "d_ff": 20, "num_layers": 2, "num_heads": 3,
    "decoder_start_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
FAMILIES: dict[str, tuple[Any, Any]] = {
    "t5": (T5ForConditionalGeneration, T5Config),
    "mt5": (MT5ForConditionalGeneration, MT5Config),
    "umt5": (UMT5ForConditionalGeneration, UMT5Config),
}
GROUPS = [
    {"role": "self_attention", "sparsity": 0.9},
    {"role": "cross_attention", "sparsity": 0.4, "scope": "tensor"},
    {"role": "feed_forward", "stack": "decoder", "layers": (1,), "match": "*.wi.weight", "sparsity": 0.7},
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every matrix take the path of a large one."""
    for module in (shard_choice, folder_pruning):
        monkeypatch.setattr(module, "BLOCK", 64)


def make(
    place: Path, *, family: str = "t5", dtype: str = "fp32", shard: str = "12KB", steps: int = 8, **sizes: Any
) -> Path:
    """A model folder in shards, with many weights of equal magnitude."""
    model_class, config_class = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = model_class(config_class(**SIZES | sizes)).eval()
    if not is_tied(model):
        model.lm_head.weight = model.shared.weight
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * steps / parameter.abs().max()).round() / 8)
    model.to(DTYPES[dtype]).save_pretrained(place, max_shard_size=shard)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "recipes" / "tiny" / "start" / name, place / name)
    return place


def in_memory(folder: Path, stages: Sequence[Sequence[Group]], out: Path) -> MaskSet:
    """Prune the loaded model as a run's stages do, and write it as they do."""
    model = load_model(str(folder))
    anatomy = anatomy_of(model)
    masks, head = MaskSet.empty(anatomy.fingerprint()), head_policy(anatomy)
    shares_head = head == "tied"
    for groups in stages:
        for group in groups:
            if group.tie and head != "untied":
                head = "untied" if group.tie == "untie" else group.tie
                if head == "untied":
                    untie(model)
        for group in groups:
            target = target_of(group, anatomy, head)
            found = prune_group(
                model, target.weights, already=masks, sparsity=group.sparsity, scope=group.scope,
                max_sparsity=group.max_sparsity, min_keep=group.min_keep,
            )  # fmt: skip
            modes = {**masks.modes, **dict.fromkeys(found, target.mode)}
            masks = MaskSet({**masks.masks, **found}, modes, masks.owner)
    attach(model, masks)
    save_plain(model, load_tokenizer(str(folder)), out, masks=masks)
    counted = counted_ratio(anatomy.num_parameters, counted_removed(masks, shared=TABLE if shares_head else None))
    (out / "counts.json").write_text(
        json.dumps(count_folder(out, dense_parameters=anatomy.num_parameters, counted=counted).as_json())
    )
    return masks


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def logits(place: Path) -> torch.Tensor:
    ids = torch.randint(2, 40, (3, 7), generator=torch.Generator().manual_seed(1))
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(place, dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(input_ids=ids, decoder_input_ids=ids[:, :5]).logits


def assert_same(folder: Path, out: Path, stages: Sequence[Sequence[dict[str, Any]]], place: Path, entry: Any) -> None:
    """Compare a pruned folder with what memory makes of the same model."""
    masks = in_memory(folder, [recipe_of_groups("m", groups).stages[0].prune.groups for groups in stages], place)  # type: ignore[union-attr]
    masks.save(place / "masks")
    assert (out / "masks.safetensors").read_bytes() == (place / "masks").read_bytes()
    found, wanted = state_of(out / "model"), state_of(place)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        given = found[name].float()
        assert torch.equal(given.view(torch.int32), tensor.view(torch.int32)), name  # signs of zeros too
    assert torch.equal(logits(out / "model"), logits(place))
    counts = json.loads((place / "counts.json").read_text())
    counts.pop("num_bytes")
    assert {key: entry["counts"][key] for key in counts} == pytest.approx(counts, abs=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_it_is_the_model_in_memory(dtype: str, scope: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "m", dtype=dtype)
    before = sha256_folder(folder)
    groups = [{**group, "scope": scope} for group in GROUPS] + [{"role": "lm_head", "sparsity": 0.8, "tie": "both"}]
    entry = prune(folder, tmp_path / "out", groups=groups)
    assert_same(folder, tmp_path / "out", [groups], tmp_path / "memory", entry)
    assert sha256_folder(folder) == before
    model = tmp_path / "out" / "model"
    assert {file.name for file in model.iterdir()} == {file.name for file in folder.iterdir()}
    one, other = (json.loads((place / INDEX).read_text()) for place in (folder, model))
    assert one == other
    assert {name: tensor.dtype for name, tensor in state_of(model).items()} == {
        name: tensor.dtype for name, tensor in state_of(folder).items()
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tie", ["view", "both", "untie"])
def test_every_policy_of_a_tied_head(family: str, tie: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "m", family=family)
    groups = [{"role": "lm_head", "sparsity": 0.8, "tie": tie}, {"role": "norm", "sparsity": 0.3, "max_sparsity": 0.5}]
    entry = prune(folder, tmp_path / "out", groups=groups)
    assert_same(folder, tmp_path / "out", [groups], tmp_path / "memory", entry)
    index = json.loads((tmp_path / "out" / "model" / INDEX).read_text())
    assert (HEAD in index["weight_map"]) == (tie != "both")
    stored = sum(tensor.numel() * 4 for tensor in state_of(tmp_path / "out" / "model").values())
    assert index["metadata"]["total_size"] == stored


@pytest.mark.parametrize("family", ["bart", "mbart", "marian", "pegasus"])
def test_barts_kin_keep_what_is_no_parameter_and_need_not_store_what_they_compute(family: str, tmp_path: Path) -> None:
    model = make_layer_normed(family)
    model.save_pretrained(tmp_path / "m")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "recipes" / "tiny" / "start" / name, tmp_path / "m" / name)
    groups = [{"role": "feed_forward", "sparsity": 0.7}, {"role": "lm_head", "sparsity": 0.5, "tie": "both"}]
    prune(tmp_path / "m", tmp_path / "out", groups=groups)
    masks = in_memory(tmp_path / "m", [recipe_of_groups("m", groups).stages[0].prune.groups], tmp_path / "memory")  # type: ignore[union-attr]
    assert MaskSet.load(tmp_path / "out" / "masks.safetensors").equals(masks)
    given, found, wanted = (state_of(tmp_path / name) for name in ("m", "out/model", "memory"))
    assert found.keys() == given.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())
    assert torch.equal(logits(tmp_path / "out" / "model"), logits(tmp_path / "memory"))
    if family == "marian":
        assert not any("embed_positions" in name for name in given)
        with pytest.raises(CheckpointError, match=r"embed_positions\.weight: is computed and not stored"):
            prune(tmp_path / "m", tmp_path / "more", groups=[{"role": "position_embedding", "sparsity": 0.5}])


def test_a_head_of_its_own_one_file_and_caps(tmp_path: Path) -> None:
    first = make(tmp_path / "m", shard="1GB")
    prune(first, tmp_path / "untied", groups=[{"role": "embedding", "sparsity": 0.3, "tie": "untie"}])
    folder = tmp_path / "untied" / "model"
    assert not (folder / INDEX).exists()
    groups = [
        {"role": "lm_head", "sparsity": 0.5},
        {"role": "feed_forward", "sparsity": 0.6, "max_sparsity": 0.61, "min_keep": 3},
        {"role": "position_bias", "sparsity": 0.2},
    ]
    entry = prune(tmp_path / "untied", tmp_path / "out", groups=groups)
    assert_same(folder, tmp_path / "out", [groups], tmp_path / "memory", entry)


def test_stages_build_on_each_other(tmp_path: Path) -> None:
    folder = make(tmp_path / "m")
    stages = [
        [
            {"role": "self_attention", "sparsity": 0.3, "scope": "tensor"},
            {"role": "embedding", "sparsity": 0.2, "tie": "untie"},
        ],
        [{"role": "self_attention", "sparsity": 0.5}, {"role": "lm_head", "sparsity": 0.6}],
        [{"role": "self_attention", "stack": "encoder", "sparsity": 0.4, "scope": "tensor"}],
    ]
    text = f"""
version: 1
model: {folder}
task: {{data: {{path: d}}, source: a, target: b, max_source_tokens: 4, max_target_tokens: 4}}
evaluation: {{metrics: [per], max_new_tokens: 3}}
stages:
"""
    for index, groups in enumerate(stages):
        text += f"  - {{name: s{index}, prune: {{groups: {json.dumps(groups)}}}}}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    entry = prune(folder, tmp_path / "out", recipe=tmp_path / "recipe.yaml")
    assert [group["role"] for group in entry["groups"]].count("self_attention") == 3
    assert_same(folder, tmp_path / "out", stages, tmp_path / "memory", entry)


def test_rows_that_are_gone_are_never_written(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", steps=2)
    with torch.no_grad():
        state = state_of(folder)
        shard = json.loads((folder / INDEX).read_text())["weight_map"][TABLE]
        part = load_file(folder / shard)
        part[TABLE][[3, 17]] = 0.0
        save_file(part, folder / shard, metadata={"format": "pt"})
    assert TABLE in state
    groups = [{"role": "lm_head", "sparsity": 0.6, "tie": "both"}]
    entry = prune(folder, tmp_path / "out", groups=groups)
    assert_same(folder, tmp_path / "out", [groups], tmp_path / "memory", entry)
    for name, key in (("config.json", "secateur_removed_rows"), ("generation_config.json", "suppress_tokens")):
        places = (tmp_path / "out" / "model", tmp_path / "memory")
        found, wanted = (json.loads((place / name).read_text())[key] for place in places)
        assert found == wanted and {3, 17} <= set(found)


def test_the_folder_is_a_stage_and_its_record_is_true(tmp_path: Path) -> None:
    folder = make(tmp_path / "m")
    entry = prune(folder, tmp_path / "out", groups=GROUPS)
    model = resolve_model(str(tmp_path / "out"))
    assert model == str(tmp_path / "out" / "model") and artefact_hash(model) == entry["hash"]
    assert json.loads((tmp_path / "out" / "stage.json").read_text()) == entry
    assert entry["counts"]["num_bytes"] == sum(file.stat().st_size for file in Path(model).glob("*.safetensors"))
    assert entry["peak_memory_bytes"] > entry["largest_shard_bytes"] and entry["environment"]["torch"]
    assert "self_attention" in (tmp_path / "out" / "card.md").read_text()
    assert not (tmp_path / "out" / ".lock").exists()
    for file in Path(model).glob("model-00001*"):
        file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(CheckpointError, match="damaged or changed"):
        prune(tmp_path / "out", tmp_path / "again", groups=GROUPS)


class Live:
    """Bytes of weights that are in memory at once: of every piece that was read and not let go."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = self.most = 0
        read = packed_file.Layout._read

        def counted(layout: Any, begin: int, end: int) -> np.ndarray:
            data = read(layout, begin, end)
            self.now += data.nbytes
            self.most = max(self.most, self.now)
            weakref.finalize(data, self._gone, data.nbytes)
            return data

        patch.setattr(packed_file.Layout, "_read", counted)

    def _gone(self, num_bytes: int) -> None:
        self.now -= num_bytes


def test_a_few_blocks_are_in_memory_and_each_weight_is_read_three_times(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, live, told = make(tmp_path / "m"), Live(monkeypatch), []
    groups = [*GROUPS, {"role": "lm_head", "sparsity": 0.5, "tie": "view"}]
    prune(folder, tmp_path / "out", groups=groups, on_bytes=lambda *now: told.append(now))
    assert 0 < live.most <= 3 * 64 * 4
    largest = max(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert live.most < largest
    assert told[-1][0] == "writing" and told[-1][1] == told[-1][2]
    assert all(done <= total for _, done, total in told)
    live.most = 0
    pack_folder(tmp_path / "out" / "model", tmp_path / "packed")
    # One tensor, and the table from which a head may be made; never two shards.
    assert 0 < live.most <= 2 * 4 * 40 * 24


@pytest.mark.parametrize("when", ["choosing self_attention", "writing"])
def test_stopping_leaves_nothing(when: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "m")

    def stop(what: str, done: int, total: int) -> None:
        if what == when and done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(folder, tmp_path / "out", groups=GROUPS, on_bytes=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    prune(folder, tmp_path / "out", groups=GROUPS)


def test_what_a_kill_left_is_removed_and_what_is_at_work_is_not(tmp_path: Path) -> None:
    folder = make(tmp_path / "m")
    killed, alive, foreign = (tmp_path / f"{PARTIAL}out-{name}" for name in ("killed", "alive", "foreign"))
    for place in (killed, alive, foreign):
        place.mkdir()
    for place in (killed, alive):
        (place / ".lock").touch()
    with lock_folder(alive):
        prune(folder, tmp_path / "out", groups=GROUPS)
    assert (killed.exists(), alive.exists(), foreign.exists()) == (False, True, True)


def test_a_full_disk_is_said_plainly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = make(tmp_path / "m")

    def full(*arguments: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_writer, "_write_file", full)
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        prune(folder, tmp_path / "out", groups=GROUPS)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    folder = make(tmp_path / "m")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(CheckpointError, match="is not empty; it is left alone"):
        prune(folder, tmp_path / "out", groups=GROUPS)
    assert (tmp_path / "out" / "mine").read_text() == "mine"


def spoil(folder: Path, name: str, change: Any) -> None:
    """Change one tensor where it is stored, or take it out with None."""
    index = json.loads((folder / INDEX).read_text())
    shard = index["weight_map"].setdefault(name, "model-00001-of-00002.safetensors")
    shard = shard if (folder / shard).exists() else sorted(folder.glob("model-0*"))[0].name
    state = load_file(folder / shard)
    if change is None:
        state.pop(name)
        index["weight_map"].pop(name)
    else:
        state[name] = change(state.get(name))
        index["weight_map"][name] = shard
    save_file(state, folder / shard, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps(index))


NORM = "encoder.final_layer_norm.weight"
Q = "encoder.block.1.layer.0.SelfAttention.q.weight"


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        (NORM, None, f"{NORM} is missing"),
        (NORM, lambda tensor: tensor[:3], f"{NORM} has shape \\[3\\]"),
        ("mine.weight", lambda tensor: torch.ones(2), "mine.weight has no place"),
        (
            "encoder.embed_tokens.weight",
            lambda tensor: torch.ones(40, 24),
            "embed_tokens.weight is not the shared table",
        ),
        (Q, lambda tensor: tensor.double(), f"{Q}: holds F64"),
        (Q, lambda tensor: tensor / 0, f"{Q}: scores hold NaN or infinity"),
    ],
)
def test_weights_that_are_not_the_models(name: str, change: Any, told: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "m")
    spoil(folder, name, change)
    with pytest.raises((CheckpointError, MaskError), match=told):
        prune(folder, tmp_path / "out", groups=GROUPS)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_other_names_of_the_table_are_left_out(tmp_path: Path) -> None:
    folder = make(tmp_path / "m")
    table = state_of(folder)[TABLE]
    spoil(folder, "decoder.embed_tokens.weight", lambda _: table.clone())
    spoil(folder, HEAD, lambda _: table.clone())
    groups = [{"role": "lm_head", "sparsity": 0.8, "tie": "both"}]
    entry = prune(folder, tmp_path / "out", groups=groups)
    assert sorted(entry["left_out"]) == ["decoder.embed_tokens.weight", HEAD]
    assert_same(folder, tmp_path / "out", [groups], tmp_path / "memory", entry)


def test_a_head_that_would_be_rounded_is_refused(tmp_path: Path) -> None:
    groups = [{"role": "lm_head", "sparsity": 0.8, "tie": "view"}]
    folder = make(tmp_path / "m", dtype="bf16")
    with pytest.raises(CheckpointError, match=r"tie: view stores a head .* which BF16 would round"):
        prune(folder, tmp_path / "out", groups=groups)
    # 16 ** -0.5 is a power of two, and rounds nothing.
    folder = make(tmp_path / "n", dtype="bf16", d_model=16)
    entry = prune(folder, tmp_path / "out", groups=groups)
    assert_same(folder, tmp_path / "out", [groups], tmp_path / "memory", entry)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"groups": [{"role": "lm_head", "sparsity": 0.5}]}, "tie: is required"),
        ({"groups": [{"role": "norm", "layers": (7,), "sparsity": 0.5}]}, "no layer 7"),
        ({"groups": [{"role": "norm", "sparsity": 0.5}, {"role": "norm", "sparsity": 0.5}]}, "overlaps groups.0"),
        ({"groups": [{"role": "norm", "sparsity": 0.5, "min_keep": 20}]}, "cannot be reached"),
        ({"groups": [{"role": "norm", "sparsity": 0.5, "score": "lamp"}]}, "lamp asks more"),
        ({}, "either a recipe or groups"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "m")
    with pytest.raises((RecipeError, AnatomyError, SecateurError), match=told):
        prune(folder, tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_name_of_the_hub_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Fetch the model first"):
        prune("someone/t5-3b", tmp_path / "out", groups=GROUPS)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["secateur", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_the_verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = str(make(tmp_path / "m"))
    group = "role=feed_forward,layers=[0,1],match=*.wo.weight,sparsity=0.5,scope=tensor"
    assert call(monkeypatch, "prune", folder, "--group", group, "--out", str(tmp_path / "a"), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["groups"][0]["num_removed"] == 4 * 240 and found["groups"][0]["scope"] == "tensor"
    assert call(monkeypatch, "prune", folder, "--group", group, "--out", str(tmp_path / "b")) == 0
    assert "960 of 1,920 removed" in capsys.readouterr().out
    assert found["hash"] == artefact_hash(str(tmp_path / "b" / "model"))
    for wrong, told in (
        (("--out", str(tmp_path / "c")), "either --recipe, or --group"),
        (("--group", group, "--set", "seed=1", "--out", str(tmp_path / "c")), "--set cannot act"),
    ):
        assert call(monkeypatch, "prune", folder, *wrong) == 1
        assert told in capsys.readouterr().err
    assert call(monkeypatch, "pack", str(tmp_path / "a"), "--out", str(tmp_path / "p")) == 0
    assert call(monkeypatch, "unpack", str(tmp_path / "p"), "--out", str(tmp_path / "back")) == 0
    assert sha256_folder(tmp_path / "back") == sha256_folder(tmp_path / "a" / "model")
