"""What torch pruned comes home: the same logits, masks and counts, and every other verb goes on from there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils import prune
from transformers import AutoModelForSeq2SeqLM

from nets import make_layer_normed
from secateur import cli, making, measure, pipeline
from secateur.artifacts.manifest import read_manifest
from secateur.errors import CheckpointError, RecipeError, SecateurError
from secateur.importing import import_checkpoint
from secateur.masks.hold import revived
from secateur.masks.mask import MaskSet
from secateur.masks.tie import HEAD
from secateur.quiet import quiet_transformers
from secateur.recipe.load import load_recipe, parse_recipe
from secateur.report.card import write_card
from secateur.run_folder import load_masked
from torch_pruned import AMOUNTS, logits_of, make_dense, masks_in, prune_as_report, report_groups, save_dense
from toy import ROOT, Toy

TABLE = "shared.weight"

CLOSE = 1e-5  # of the largest logit: the scale before the head is folded into it, which rounds once more

TASK = """
version: 1
model: {model}
task:
  data: {{path: {data}}}
  source: word
  target: phonemes
  max_source_tokens: 20
  max_target_tokens: 20
evaluation: {{metrics: [per], max_new_tokens: 3, batch_size: 4}}
stages:
"""
TRAIN = "{epochs: 1, learning_rate: 5.0e-3, batch_size: 4, precision: fp32}"


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dense(tmp_path_factory.mktemp("dense") / "model")


@pytest.fixture(scope="module")
def pruned() -> Any:
    """The model that torch pruned, masks attached: what an import has to equal."""
    return prune_as_report(make_dense())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, dense: Path, pruned: Any) -> Path:
    """The report's state dict, imported without data."""
    place = tmp_path_factory.mktemp("home")
    torch.save(pruned.state_dict(), place / "pruned.pt")
    import_checkpoint(place / "pruned.pt", place / "run", model=dense)
    return place / "run"


def far(model: Any, other: Any) -> float:
    """The largest difference of logits, over the largest logit."""
    mine, theirs = logits_of(model), logits_of(other)
    return float((mine - theirs).abs().max() / theirs.abs().max())


def plain(folder: Path) -> Any:
    with quiet_transformers():
        return AutoModelForSeq2SeqLM.from_pretrained(folder)


def save_state(model: Any, place: Path) -> Path:
    torch.save({"epoch": 1, "state_dict": {f"module.{n}": t for n, t in model.state_dict().items()}}, place / "x.pt")
    return place / "x.pt"


def save_folder(model: Any, place: Path) -> Path:
    with quiet_transformers():
        model.save_pretrained(place / "x")
    assert "lm_head.weight_orig" not in load_file(place / "x" / "model.safetensors")  # dropped, as tied to the table
    return place / "x"


def save_masks(model: Any, place: Path) -> Path:
    torch.save(masks_in(model), place / "masks.pt")
    return place / "masks.pt"


def save_nni(model: Any, place: Path) -> Path:
    masks = {path.removesuffix(".weight"): {"weight": mask.float()} for path, mask in masks_in(model).items()}
    torch.save(masks, place / "masks.pth")
    return place / "masks.pth"


@pytest.mark.parametrize("save", [save_state, save_folder, save_masks, save_nni])
def test_the_imported_model_is_torchs_pruned_model(dense: Path, pruned: Any, tmp_path, save) -> None:
    run = import_checkpoint(save(pruned, tmp_path), tmp_path / "run", model=dense).folder
    assert far(plain(run / "model"), pruned) < CLOSE
    masks = MaskSet.load(run / "01-import" / "masks.safetensors")
    expected = masks_in(pruned)
    assert masks.masks.keys() == expected.keys()
    assert all(torch.equal(masks.masks[path], mask) for path, mask in expected.items())
    assert masks.modes[HEAD] == "view" and TABLE not in masks
    written = load_file(run / "model" / "model.safetensors")
    assert torch.equal(written[TABLE], make_dense().shared.weight)  # not one value of the embedding is another


def test_counts_and_groups_of_the_manifest(home: Path, pruned: Any) -> None:
    manifest = read_manifest(home)
    entry = manifest["stages"][0]
    sizes = {role: sum(m.weight.numel() for m, _ in layers) for role, layers in report_groups(pruned).items()}
    removed = {role: round(AMOUNTS[role] * size) for role, size in sizes.items()}
    assert {group["role"]: group["num_removed"] for group in entry["groups"]} == removed
    dense = make_dense().num_parameters()
    assert entry["counts"]["counted_ratio"] == 1 - sum(removed.values()) / dense
    assert entry["counts"]["num_parameters"] == dense + sizes["lm_head"]
    stored = sum(int(tensor.count_nonzero()) for tensor in load_file(home / "model" / "model.safetensors").values())
    assert entry["counts"]["stored_ratio"] == stored / dense
    assert manifest["status"] == "complete" and manifest["recipe"] is None and entry["metrics"] == {}
    assert entry["import"] == {"checkpoint": "pruned.pt", "form": "torch.nn.utils.prune", "notes": []}


def test_without_data_the_card_says_that_nothing_was_measured(home: Path) -> None:
    card = (home / "card.md").read_text(encoding="utf-8")
    assert "Nothing was measured, as there was no data" in card and "taken over from `pruned.pt`" in card
    assert "larger than the dense one" in card and "None" not in card
    with pytest.raises(SecateurError, match="its task is not known"):
        measure.evaluate(str(home))


def test_the_other_verbs_take_the_folder(home: Path, dense: Path, toy: Toy, tmp_path) -> None:
    found = measure.inspect(str(home))
    q = next(w for w in found["weights"] if w["path"].endswith("encoder.block.0.layer.0.SelfAttention.q.weight"))
    assert q["sparsity"] > 0.5
    making.pack(home, tmp_path / "packed")
    making.unpack(tmp_path / "packed", tmp_path / "unpacked")
    assert far(plain(tmp_path / "unpacked"), plain(home / "model")) == 0
    task = tmp_path / "task.yaml"
    task.write_text(TASK.format(model=dense, data=toy.data) + "  - {name: final, evaluate: {}}\n")
    assert measure.evaluate(str(home), task).result.figures.keys() == {"per"}
    assert making.load(home).num_parameters() == found["counts"]["num_parameters"]


def test_a_recipe_that_starts_from_the_folder_keeps_its_masks(home: Path, toy: Toy, tmp_path, no_card) -> None:
    stages = f"""
  - name: retrain
    train: {TRAIN}
  - name: more
    prune: {{groups: [{{role: cross_attention, sparsity: 0.5}}, {{role: lm_head, sparsity: 0.85, tie: view}}]}}
  - name: retrain-more
    train: {TRAIN[:-1]}, rewind: given}}
"""
    recipe = parse_recipe(TASK.format(model=home, data=toy.data) + stages, name="on.yaml")
    plan = measure.plan(recipe)
    manifest = pipeline.run(recipe, tmp_path / "on", device="cpu").manifest
    given, retrained, more, last = manifest["dense"], *manifest["stages"]
    assert manifest["dense_parameters"] == make_dense().num_parameters()  # one table, though the folder holds two
    imported = read_manifest(home)["stages"][0]
    assert given["counts"] == imported["counts"] and given["sparsity"] == imported["sparsity"]
    assert retrained["counts"]["counted_ratio"] == given["counts"]["counted_ratio"]
    masks = MaskSet.load(home / "01-import" / "masks.safetensors")
    final = load_masked(tmp_path / "on")
    assert final is not None and final[2] == "view"
    model, held, _ = final
    only_held = {path: mask for path, mask in held.masks.items() if path != HEAD}
    assert not revived(model, MaskSet(only_held, dict.fromkeys(only_held, "hold"), ""))
    assert all(not bool((held.masks[path] & ~mask).any()) for path, mask in masks.masks.items())  # none came back
    assert not torch.equal(model.shared.weight, make_dense().shared.weight)  # it was trained
    cross = [row for row in more["sparsity"] if row["role"] == "cross_attention"]
    assert sum(row["num_removed"] for row in cross) == round(0.5 * sum(row["num_elements"] for row in cross))
    assert more["counts"]["counted_ratio"] == last["counts"]["counted_ratio"]
    assert [stage.counted_ratio for stage in plan.stages] == pytest.approx(
        [entry["counts"]["counted_ratio"] for entry in manifest["stages"]], abs=1e-9
    )
    contradiction = stages.replace("tie: view", "tie: both")
    with pytest.raises(RecipeError, match="contradicts tie: view"):
        measure.plan(parse_recipe(TASK.format(model=home, data=toy.data) + contradiction, name="on.yaml"))


def test_the_plain_folder_of_a_run_starts_without_masks(home: Path, toy: Toy, tmp_path, no_card) -> None:
    text = TASK.format(model=home / "model", data=toy.data) + "  - {name: final, evaluate: {}}\n"
    manifest = pipeline.run(parse_recipe(text, name="plain.yaml"), tmp_path / "run", device="cpu").manifest
    assert manifest["dense"]["sparsity"] == [] and manifest["dense"]["counts"]["counted_ratio"] == 1.0


def test_a_run_that_goes_on_is_broken_and_resumed(home: Path, toy: Toy, tmp_path, no_card) -> None:
    stages = f"  - name: retrain\n    train: {TRAIN}\n"
    recipe = parse_recipe(TASK.format(model=home, data=toy.data) + stages, name="on.yaml")
    whole = pipeline.run(recipe, tmp_path / "whole", device="cpu").manifest
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 3

    with pytest.raises(SecateurError):
        pipeline.run(recipe, tmp_path / "run", device="cpu", should_stop=stop)
    again = pipeline.run(recipe, tmp_path / "run", device="cpu", resume=True).manifest
    assert again["stages"][0]["hash"] == whole["stages"][0]["hash"]


def test_with_a_recipe_both_models_are_measured(dense: Path, pruned: Any, toy: Toy, tmp_path, no_card) -> None:
    task = tmp_path / "task.yaml"
    task.write_text(TASK.format(model="elsewhere", data=toy.data) + f"  - {{name: train, train: {TRAIN}}}\n")
    out = tmp_path / "run"
    done = import_checkpoint(save_state(pruned, tmp_path), out, model=dense, recipe=task, device="cpu")
    assert done.manifest["dense"]["metrics"].keys() == {"per"}
    assert [entry["kind"] for entry in done.manifest["stages"]] == ["import"]
    assert done.manifest["stages"][0]["metrics"].keys() == {"per"}
    recipe = load_recipe(out / "recipe.yaml")
    groups = recipe.stages[0].prune.groups if recipe.stages[0].prune else ()
    assert [group.tie for group in groups] == [None, None, None, "view"]
    assert (out / "recipe.yaml").read_text().startswith("# Written by `secateur import`")
    card = write_card(out).read_text(encoding="utf-8")
    assert "Left out" in card and "epoch" in card and "Nothing was measured" not in card
    assert measure.evaluate(str(out), device="cpu").hash == done.manifest["stages"][0]["hash"]
    resumed = pipeline.run(out, resume=True, device="cpu").manifest
    assert resumed["stages"] == done.manifest["stages"]


def test_whole_heads_that_torch_removed_can_be_cut(dense: Path, tmp_path) -> None:
    model = make_dense()
    for name, module in model.named_modules():
        if name.endswith(("Attention.q", "Attention.k", "Attention.v")):
            mask = torch.ones_like(module.weight)
            mask[4:] = 0
            prune.custom_from_mask(module, "weight", mask)
        elif name.endswith("Attention.o"):
            mask = torch.ones_like(module.weight)
            mask[:, 4:] = 0
            prune.custom_from_mask(module, "weight", mask)
    run = import_checkpoint(save_state(model, tmp_path), tmp_path / "run", model=dense).folder
    facts = making.cut(run, tmp_path / "small")
    assert set(facts["left"]["heads"]) and plain(tmp_path / "small").config.num_heads == 1
    assert far(plain(tmp_path / "small"), model) < CLOSE


@pytest.mark.parametrize("there", [True, False])
def test_a_bart_comes_home_with_what_is_no_parameter(tmp_path, there: bool) -> None:
    model = make_layer_normed("bart")
    if not there:
        model.final_logits_bias.zero_()
    model.save_pretrained(tmp_path / "dense")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "recipes" / "tiny" / "start" / name, tmp_path / "dense" / name)
    prune.l1_unstructured(model.model.encoder.layers[0].fc1, "weight", amount=0.5)
    state = {name: tensor for name, tensor in model.state_dict().items() if there or name != "final_logits_bias"}
    torch.save(state, tmp_path / "pruned.pt")
    run = import_checkpoint(tmp_path / "pruned.pt", tmp_path / "run", model=tmp_path / "dense").folder
    found = plain(run / "model")
    assert torch.equal(found.final_logits_bias, model.final_logits_bias)
    assert bool(found.final_logits_bias.any()) == there
    assert far(found, model) < CLOSE


def test_holes_in_the_table_are_taken_for_masks_when_asked(dense: Path, tmp_path) -> None:
    model = make_dense()
    prune.l1_unstructured(model.lm_head, "weight", amount=0.8)
    prune.remove(model.lm_head, "weight")
    file = save_state(model, tmp_path)
    with pytest.raises(CheckpointError, match="--masks-from-zeros"):
        import_checkpoint(file, tmp_path / "run", model=dense)
    assert not (tmp_path / "run").exists()
    run = import_checkpoint(file, tmp_path / "run", model=dense, masks_from_zeros=True).folder
    assert far(plain(run / "model"), model) == 0
    entry = read_manifest(run)["stages"][0]
    assert entry["groups"][0]["tie"] == "both" and entry["sparsity"][0]["mode"] == "hold"
    assert "the embedding has lost them too" in (run / "card.md").read_text()


def test_a_folder_with_anything_in_it_is_left_alone(home: Path, dense: Path) -> None:
    with pytest.raises(CheckpointError, match="is not empty"):
        import_checkpoint(home / "01-import" / "masks.safetensors", home, model=dense)


def test_the_models_tokenizer_is_needed(dense: Path, pruned: Any, tmp_path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(dense / "config.json", bare)
    with pytest.raises(CheckpointError, match="no tokenizer"):
        import_checkpoint(save_state(pruned, tmp_path), tmp_path / "run", model=bare)


def test_weights_of_the_dense_model_are_not_needed_where_the_checkpoint_has_them(dense: Path, pruned, tmp_path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(dense, bare)
    (bare / "model.safetensors").unlink()
    run = import_checkpoint(save_state(pruned, tmp_path), tmp_path / "run", model=bare).folder
    assert far(plain(run / "model"), pruned) < CLOSE and read_manifest(run)["dense"] is None
    with pytest.raises(CheckpointError):
        import_checkpoint(save_masks(pruned, tmp_path), tmp_path / "other", model=bare)


def test_the_command_line(dense: Path, pruned: Any, tmp_path, monkeypatch, capsys) -> None:
    file = save_state(pruned, tmp_path)

    def call(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["secateur", "import", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0)

    assert call(str(file), "--model", str(dense), "--out", str(tmp_path / "run")) == 0
    told = capsys.readouterr().out
    assert "torch.nn.utils.prune" in told and "lm_head: 909 of 1,136 in 1 matrices" in told
    assert "(view)" in told and "counted 0." in told
    assert call(str(file), "--model", str(dense), "--out", str(tmp_path / "two"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["stages"][0]["kind"] == "import"
    file.write_bytes(file.read_bytes()[:1000])
    assert call(str(file), "--model", str(dense), "--out", str(tmp_path / "three")) == 1
    error = capsys.readouterr().err
    assert "damaged or cut short" in error and "Traceback" not in error
    assert call(str(file), "--model", str(dense), "--out", str(tmp_path / "four"), "--set", "seed=1") == 1
    assert "--recipe" in capsys.readouterr().err
