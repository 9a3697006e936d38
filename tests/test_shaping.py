"""Runs that cut and ship: the stages fit each other, survive a kill, and every artefact is what its figures say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from secateur import load, making, measure, stages
from secateur.artefact import find_artefact
from secateur.artifacts.manifest import artefact_hash, read_manifest
from secateur.errors import CheckpointError, MaskError, RecipeError, SecateurError
from secateur.masks.mask import MaskSet
from secateur.report.card import card_text
from toy import TRAIN, Killed, Toy

UNITS = """
  - name: prune
    prune:
      calibration: {rows: 6, batch_size: 2}
      groups:
        - {unit: head, sparsity: 0.34, score: taylor, width: WIDTH}
        - {unit: ffn_neuron, sparsity: 0.5, score: l2_norm, width: WIDTH}
        - {unit: hidden_dim, sparsity: 0.34, score: taylor}
        - {unit: vocab_row, score: frequency}
        - {role: self_attention, sparsity: 0.6}
  - name: cut
    cut: {rows: 3}
"""
SHIP = """
  - name: retrain
    train: TRAIN
  - name: int8
    export: {to: ctranslate2, rows: 3}
  - name: packed
    pack: {values: fp32}
  - name: final
    evaluate: {split: test}
""".replace("TRAIN", TRAIN)
UNIFORM, RAGGED = UNITS.replace("WIDTH", "uniform"), UNITS.replace("WIDTH", "ragged")

pytestmark = pytest.mark.usefixtures("no_card")


@pytest.fixture(scope="module")
def shipped(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("shipped") / "run"
    toy.run(place, stages=UNIFORM + SHIP, initialize="pretrained", keep="all")
    return place


def entries(folder: Path) -> dict[str, Any]:
    return {entry["name"]: entry for entry in read_manifest(folder)["stages"]}


def test_the_cut_is_smaller_proven_and_plain(shipped: Path, toy: Toy) -> None:
    found = entries(shipped)
    assert found["cut"]["cut"]["proof"]["holds"]
    assert found["cut"]["counts"]["num_parameters"] < 0.7 * found["prune"]["counts"]["num_parameters"]
    assert found["cut"]["counts"]["counted_ratio"] == pytest.approx(found["prune"]["counts"]["counted_ratio"], abs=0.02)
    assert found["cut"]["metrics"] == found["prune"]["metrics"]
    model = AutoModelForSeq2SeqLM.from_pretrained(shipped / "model")
    tokenizer = AutoTokenizer.from_pretrained(shipped / "model")
    assert model.config.num_heads == 2 and model.config.d_ff == 10 and model.config.d_model == 16
    assert model.config.vocab_size == len(tokenizer) == model.shared.num_embeddings < 71
    old = AutoTokenizer.from_pretrained(toy.start)
    word = toy.rows["train"][3]["word"]
    assert tokenizer.convert_ids_to_tokens(tokenizer(word).input_ids) == old.convert_ids_to_tokens(old(word).input_ids)


def test_the_plan_told_it(shipped: Path) -> None:
    planned = {stage.name: stage for stage in measure.plan(shipped / "recipe.yaml").stages}
    found = entries(shipped)["cut"]["counts"]["num_parameters"]
    rows = entries(shipped)["cut"]["cut"]["left"]["rows"]
    assert planned["cut"].num_parameters - (71 - rows) * 16 == found  # which rows go, only the texts tell


def test_zeros_stay_through_the_cut(shipped: Path) -> None:
    masks = MaskSet.load(shipped / "03-retrain" / "masks.safetensors")
    assert len(masks) >= 8
    state = load(shipped / "03-retrain").state_dict()
    assert all(not state[path][~mask].any() for path, mask in masks.masks.items())


def test_every_artefact_is_measured_as_it_ships(shipped: Path) -> None:
    found = entries(shipped)
    assert found["int8"]["export"]["parity"]["num_rows"] == 3
    assert found["int8"]["counts"]["num_bytes"] < 0.5 * found["retrain"]["counts"]["num_bytes"]
    assert found["packed"]["metrics"] == found["retrain"]["metrics"]
    assert found["packed"]["counts"]["num_bytes"] == (shipped / "05-packed" / "packed.safetensors").stat().st_size
    assert len({found[name]["hash"] for name in ("retrain", "int8", "packed")}) == 3
    assert found["final"]["hash"] == found["packed"]["hash"]
    for stage, kind in (("04-int8", "ctranslate2"), ("05-packed", "packed"), ("03-retrain", "transformers")):
        artefact = find_artefact(str(shipped / stage))
        assert artefact.kind == kind and artefact.hash == found[stage[3:]]["hash"]
        told = measure.evaluate(str(shipped / stage), shipped / "recipe.yaml")
        assert told.as_json()["metrics"] == found[stage[3:]]["metrics"]
    assert find_artefact(str(shipped)).kind == "transformers"


def test_a_changed_export_is_refused(shipped: Path, tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    shutil.copytree(shipped / "05-packed", stage)
    data = bytearray((stage / "packed.safetensors").read_bytes())
    data[-1] ^= 1
    (stage / "packed.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        find_artefact(str(stage))


@pytest.mark.parametrize("where", ["_cut", "_evaluate", "_ship"])
def test_a_kill_changes_nothing(shipped: Path, toy: Toy, tmp_path: Path, where: str) -> None:
    """Killed before the cut, in the evaluation after it, and before the export."""
    original = getattr(stages, where)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):

        def killed(state: Any, live: Any, *args: Any) -> Any:
            if where != "_evaluate" or (state.entries and state.entries[-1]["name"] == "prune"):
                raise Killed
            return original(state, live, *args)

        patch.setattr(stages, where, killed)
        toy.run(tmp_path / "run", stages=UNIFORM + SHIP, initialize="pretrained", keep="all")
    toy.run(tmp_path / "run", stages=UNIFORM + SHIP, initialize="pretrained", keep="all", resume=True)
    mine, theirs = entries(tmp_path / "run"), entries(shipped)
    assert {name: entry["hash"] for name, entry in mine.items()} == {n: entry["hash"] for n, entry in theirs.items()}
    assert {name: entry["metrics"] for name, entry in mine.items()} == {n: e["metrics"] for n, e in theirs.items()}


def test_a_ragged_run_trains_and_loads_with_us_alone(toy: Toy, tmp_path: Path) -> None:
    stages_ = RAGGED + SHIP.partition("  - name: int8")[0]
    toy.run(tmp_path / "run", stages=stages_, initialize="pretrained", keep="all")
    found = entries(tmp_path / "run")
    assert found["cut"]["cut"]["proof"]["holds"]
    model = load(tmp_path / "run")
    assert len(load(str(tmp_path / "run" / "02-cut")).state_dict()) == len(model.state_dict())
    with pytest.raises((RuntimeError, ValueError)):
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run" / "model")
    with pytest.raises(SecateurError, match="ragged"):
        making.export(tmp_path / "run", tmp_path / "out", to="ctranslate2")
    assert not (tmp_path / "out").exists()
    card = card_text(read_manifest(tmp_path / "run"), title="ragged")
    assert 'secateur.load("model")' in card and "AutoModelForSeq2SeqLM" not in card


def test_a_ragged_model_is_refused_where_it_cannot_go(toy: Toy) -> None:
    with pytest.raises(RecipeError, match="cannot hold a ragged model"):
        measure.plan(toy.recipe(RAGGED + "  - name: x\n    export: {to: ctranslate2}\n"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("  - name: p\n    prune: {groups: [{unit: head, sparsity: 0.9}]}\n", "leaves 0 of 3 heads"),
        ("  - name: p\n    prune: {groups: [{unit: layer, sparsity: 0.6}]}\n", "leaves 0 of 1 layers"),
        (
            "  - name: p\n    prune: {groups: [{unit: head, sparsity: 0.6, width: ragged, max_sparsity: 0.61}]}\n",
            "removes 5 of 9 heads, but every place keeps 1 at least and loses 0.61 at most, which lets 3 go",
        ),
        (
            "  - name: p\n    prune: {groups: [{unit: head, sparsity: 0.34, width: ragged, min_keep: 3}]}\n",
            "removes 3 of 9 heads, but every place keeps 3 at least, which lets 0 go",
        ),
        (
            "  - name: p\n    prune: {groups: [{unit: vocab_row, score: frequency, min_keep: 72}]}\n",
            "min_keep: 72 rows are to stay, and the table has 71",
        ),
        ("  - name: c\n    cut: {}\n", "no stage before it removes whole units"),
        (
            "  - name: p\n    prune: {groups: [{unit: head, stack: encoder, sparsity: 0.34}]}\n"
            "  - name: c\n    cut: {}\n",
            "write width: ragged",
        ),
        ("  - name: p\n    prune: {groups: [{unit: head, layers: [0, 9], sparsity: 0.34}]}\n", "there is no layer 9"),
    ],
)
def test_what_cannot_be_cut_is_told_before_the_run(toy: Toy, text: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        measure.plan(toy.recipe("\n" + text))


HEADS = """
  - name: rows
    prune: {groups: [{unit: vocab_row, score: frequency}]}
  - name: head
    prune: {groups: [{role: lm_head, sparsity: 0.5, tie: TIE}]}
  - name: cut
    cut: {rows: 3}
"""


@pytest.mark.parametrize("tie", ["view", "untie"])
def test_rows_that_went_stay_gone_whatever_the_head(shipped: Path, toy: Toy, tmp_path: Path, tie: str) -> None:
    toy.run(tmp_path / "run", stages=HEADS.replace("TIE", tie), initialize="pretrained", keep="all")
    found, rows = entries(tmp_path / "run"), entries(shipped)["cut"]["cut"]["left"]["rows"]
    assert found["cut"]["cut"]["left"]["rows"] == rows and found["cut"]["cut"]["proof"]["holds"]
    for stage in ("01-rows", "02-head"):
        raw = json.loads((tmp_path / "run" / stage / "model" / "config.json").read_text())
        assert len(raw["secateur_removed_rows"]) == 71 - rows
    verb = making.cut(tmp_path / "run" / "02-head", tmp_path / "small")
    assert verb["left"]["rows"] == rows


COUNTED = """
  - name: heads
    prune: {groups: [{unit: head, sparsity: 0.34, score: l2_norm}, {role: self_attention, sparsity: 0.6}]}
  - name: others
    prune: {groups: [{unit: ffn_neuron, sparsity: 0.5, score: l2_norm}]}
  - name: dims
    prune: {groups: [{unit: hidden_dim, sparsity: 0.34, score: l2_norm}, {role: lm_head, sparsity: 0.5, tie: TIE}]}
  - name: cut
    cut: {rows: 3}
"""


@pytest.mark.parametrize("tie", ["view", "untie"])
def test_an_entry_that_two_masks_remove_counts_once(toy: Toy, tmp_path: Path, tie: str) -> None:
    stages_ = COUNTED.replace("TIE", tie)
    toy.run(tmp_path / "run", stages=stages_, initialize="pretrained", keep="all")
    found = {name: entry["counts"]["counted_ratio"] for name, entry in entries(tmp_path / "run").items()}
    dense = read_manifest(tmp_path / "run")["dense_parameters"]
    masks = MaskSet.load(tmp_path / "run" / "03-dims" / "masks.safetensors").masks
    table = int((masks["shared.weight"] & masks["lm_head.weight"]).sum())
    assert 71 * 24 - table == round(0.5 * 71 * 24)  # what the table lost is of the half that the head loses
    others = sum(int((~mask).sum()) for path, mask in masks.items() if path not in ("shared.weight", "lm_head.weight"))
    assert found["dims"] == pytest.approx(1.0 - (others + 71 * 24 - table) / dense, abs=1e-12)
    # The position biases' columns of the heads that went are not masked, only cut.
    left = entries(tmp_path / "run")["cut"]["cut"]["left"]["heads"]
    columns = 32 * (6 - left["encoder.self_attention"][0] - left["decoder.self_attention"][0])
    assert found["cut"] == pytest.approx(found["dims"] - columns / dense, abs=1e-12)
    for stage in measure.plan(tmp_path / "run").stages:
        # How many of the single weights lie in the dimensions that go, only the scores tell.
        near = 1e-12 if stage.name in ("heads", "others") else 0.01
        assert stage.counted_ratio == pytest.approx(found[stage.name], abs=near), stage.name


def test_a_view_and_rows_that_go_later_count_once(toy: Toy, tmp_path: Path) -> None:
    rows, head = (f"  - name: {part}" for part in HEADS.replace("TIE", "view").split("  - name: ")[1:3])
    toy.run(tmp_path / "run", stages="\n" + head + rows, initialize="pretrained", keep="all")
    found = entries(tmp_path / "run")
    masks = MaskSet.load(tmp_path / "run" / "02-rows" / "masks.safetensors").masks
    assert (~masks["shared.weight"] & masks["lm_head.weight"]).any()  # the view itself does not know of them
    gone = int((~(masks["shared.weight"] & masks["lm_head.weight"])).sum())
    dense = read_manifest(tmp_path / "run")["dense_parameters"]
    assert found["rows"]["counts"]["counted_ratio"] == pytest.approx(1.0 - gone / dense, abs=1e-12)


def test_a_cap_holds_in_every_layer(toy: Toy, tmp_path: Path) -> None:
    group = "{unit: head, sparsity: 0.34, width: ragged, max_sparsity: 0.4, score: l2_norm}"
    text = f"\n  - name: p\n    prune: {{groups: [{group}]}}\n  - name: c\n    cut: {{rows: 3}}\n"
    toy.run(tmp_path / "run", stages=text, initialize="pretrained", keep="all")
    left = entries(tmp_path / "run")["c"]["cut"]["left"]["heads"]
    assert left == {"encoder.self_attention": [2], "decoder.self_attention": [2], "decoder.cross_attention": [2]}


def test_rows_that_are_to_stay_stay(toy: Toy, tmp_path: Path) -> None:
    text = HEADS.partition("  - name: head")[0].replace("frequency}", "frequency, min_keep: 69}")
    toy.run(tmp_path / "run", stages=text, initialize="pretrained", keep="all")
    assert (
        int(MaskSet.load(tmp_path / "run" / "01-rows" / "masks.safetensors").masks["shared.weight"].any(1).sum()) == 69
    )


def test_gradients_are_known_of_a_model_whose_head_was_untied_meanwhile(toy: Toy, tmp_path: Path) -> None:
    groups = "{role: lm_head, sparsity: 0.5, tie: untie}, {unit: hidden_dim, sparsity: 0.34, score: taylor}"
    text = f"\n  - name: p\n    prune: {{calibration: {{rows: 4}}, groups: [{groups}]}}\n"
    toy.run(tmp_path / "run", stages=text, initialize="pretrained", keep="all")
    masks = MaskSet.load(tmp_path / "run" / "01-p" / "masks.safetensors").masks
    gone = ~masks["shared.weight"].any(0)
    assert int(gone.sum()) == 8 and not masks["lm_head.weight"][:, gone].any()


def test_what_a_cut_leaves_of_the_masks_is_no_weight_file(shipped: Path, tmp_path: Path) -> None:
    making.cut(shipped / "01-prune", tmp_path / "small")
    left = MaskSet.load(tmp_path / "small" / making.LEFT)
    assert len(left) and left.owner == MaskSet.load(shipped / "02-cut" / "masks.safetensors").owner
    assert artefact_hash(str(tmp_path / "small")) == artefact_hash(str(shipped / "02-cut" / "model"))


def test_a_model_without_a_tokenizer_loads(shipped: Path, tmp_path: Path) -> None:
    shutil.copytree(shipped / "model", tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bare" / name).unlink()
    making.pack(tmp_path / "bare", tmp_path / "file")
    for place in (tmp_path / "bare", tmp_path / "file"):
        assert load(place).num_parameters() == load(shipped).num_parameters()


def test_cut_as_a_verb(shipped: Path, tmp_path: Path) -> None:
    found = making.cut(shipped / "01-prune", tmp_path / "small")
    assert found["proof"]["holds"] and found["left"]["dims"] == 16
    ours = load(tmp_path / "small").state_dict()
    theirs = load(shipped / "02-cut").state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    with pytest.raises(CheckpointError, match="is not empty"):
        making.cut(shipped / "01-prune", tmp_path / "small")
    with pytest.raises(CheckpointError, match="belong to another model"):
        making.cut(shipped / "03-retrain", tmp_path / "other", masks=shipped / "01-prune" / "masks.safetensors")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cut_is_stored_as_the_model_that_it_is_cut_from(shipped: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    model = shutil.copytree(shipped / "01-prune" / "model", tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    save_file({name: tensor.to(dtype) for name, tensor in weights.items()}, model / "model.safetensors")
    making.cut(model, tmp_path / "small", masks=shipped / "01-prune" / "masks.safetensors")
    stored = load_file(tmp_path / "small" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    whole = load_file(shipped / "02-cut" / "model" / "model.safetensors")
    assert all(torch.equal(tensor, whole[name].to(dtype)) for name, tensor in stored.items())


def test_an_export_that_was_not_compared_is_not_left_behind(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError):
        making.export(shipped, tmp_path / "x", to="onnx", recipe=tmp_path / "none.yaml")
    assert not (tmp_path / "x").exists()

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "parity", interrupted)
    with pytest.raises(KeyboardInterrupt):
        making.export(shipped, tmp_path / "x", to="ctranslate2")
    assert not (tmp_path / "x").exists()


def test_an_export_is_not_cut(shipped: Path, tmp_path: Path) -> None:
    making.export(shipped, tmp_path / "x", to="ctranslate2")
    with pytest.raises(CheckpointError, match="is an export, which cannot be cut"):
        making.cut(tmp_path / "x", tmp_path / "y", masks=shipped / "01-prune" / "masks.safetensors")


def test_what_a_later_stage_lacks_is_told_before_the_first(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from secateur import pipeline

    def lacking(*args: object) -> None:
        raise SecateurError("it is not there")

    for name in ("check_installed", "check_trimmable"):
        with monkeypatch.context() as patch, pytest.raises(SecateurError, match="it is not there"):
            patch.setattr(pipeline, name, lacking)
            toy.run(tmp_path / name, stages=UNIFORM + SHIP, initialize="pretrained")
        assert not (tmp_path / name / "01-prune").exists()


def test_dead_units_that_stay_are_told(shipped: Path, tmp_path: Path) -> None:
    masks = MaskSet.load(shipped / "01-prune" / "masks.safetensors")
    wanted = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
    mask = masks.masks[wanted].clone()
    mask[:, mask.any(0).nonzero()[0, 0]] = False  # one neuron more, in one stack alone
    more = MaskSet({**masks.masks, wanted: mask}, dict(masks.modes), masks.owner)
    more.save(tmp_path / "more.safetensors")
    found = making.cut(shipped / "01-prune", tmp_path / "small", masks=tmp_path / "more.safetensors")
    assert found["left"]["padding"] == {"ffn_neuron": 1}


def test_masks_that_name_nothing_whole_cut_nothing(shipped: Path, tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="nothing whole"):
        making.cut(shipped / "03-retrain", tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_pack_and_unpack_as_verbs(shipped: Path, tmp_path: Path) -> None:
    making.pack(shipped, tmp_path / "file", values="fp32")
    assert making.unpack(tmp_path / "file", tmp_path / "folder").rounding is None
    name = "model.safetensors"
    assert (tmp_path / "folder" / name).read_bytes() == (shipped / "model" / name).read_bytes()
    assert load(tmp_path / "file").num_parameters() == load(shipped).num_parameters()


def test_the_command_line_tells_faults_plainly(shipped: Path, tmp_path: Path) -> None:
    def call(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "secateur", *words], capture_output=True, text=True, timeout=120, check=False
        )
        return done.returncode, done.stderr

    code, told = call("export", str(shipped), "--to", "tensorrt", "--out", str(tmp_path / "x"))
    assert code == 1 and "There are: ctranslate2, onnx" in told and "Traceback" not in told
    code, told = call("unpack", str(shipped / "model" / "config.json"), "--out", str(tmp_path / "x"))
    assert code == 1 and "config.json" in told and "Traceback" not in told
    assert not (tmp_path / "x").exists()


def test_facts_are_json(shipped: Path) -> None:
    assert json.loads((shipped / "02-cut" / "stage.json").read_text())["cut"]["left"]["rows"] < 71
