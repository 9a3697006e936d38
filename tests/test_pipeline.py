"""A whole run: its folder, what it refuses, what a caller may bring, and the final model in a process of its own."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from secateur import files, pipeline
from secateur import stages as run_stages
from secateur.artifacts.checkpoint import load_live
from secateur.artifacts.loading import load_model
from secateur.artifacts.lock import lock_folder
from secateur.artifacts.manifest import read_manifest
from secateur.errors import CheckpointError, DataError, RecipeError, SecateurError
from secateur.masks.hold import attach
from secateur.masks.mask import MaskSet
from toy import NUM_STEPS, ROOT, Killed, Toy, Unbroken

PRUNE = "\n  - name: prune\n    prune: {groups: [{role: feed_forward, sparsity: 0.5}]}\n"
HEAD = "lm_head.weight"
# Folding 24 ** -0.5 into the head rounds once, and sums of 24 products come in another order: some 2^-23 each.
TOLERANCE = 1e-5

FRESH = """
import json, sys
import torch
from transformers import AutoModelForSeq2SeqLM
assert not any(name.startswith("secateur") for name in sys.modules)
torch.set_num_threads(1)
ids = torch.tensor(json.loads(sys.argv[1]))
answers = []
for folder in sys.argv[2:]:
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(input_ids=ids, decoder_input_ids=ids).logits
        torch.manual_seed(0)  # greedy, a model this small repeats one token
        tokens = model.generate(input_ids=ids, max_new_tokens=12, min_new_tokens=12, do_sample=True)
    answers.append({"logits": logits.tolist(), "tokens": tokens.tolist()})
print(json.dumps(answers))
"""


def entries(folder: Path) -> dict[str, Any]:
    return {entry["name"]: entry for entry in read_manifest(folder)["stages"]}


def live_model(stage: Path) -> Any:
    facts = json.loads((stage / "live.json").read_text())
    model, masks = load_live(stage, facts["live"])
    attach(model, masks)
    return model.eval()


def test_the_final_model_in_a_fresh_process_is_the_masked_one(unbroken: Unbroken, tmp_path: Path) -> None:
    """tie: view, loaded by plain transformers; a cloned and a re-tied head are the controls that must fail."""
    final = unbroken.folder / "model"
    state = load_file(final / "model.safetensors")
    cloned, tied = shutil.copytree(final, tmp_path / "cloned"), shutil.copytree(final, tmp_path / "tied")
    save_file(state | {HEAD: state["shared.weight"] * 24**-0.5}, cloned / "model.safetensors", {"format": "pt"})
    save_file(
        {name: tensor for name, tensor in state.items() if name != HEAD}, tied / "model.safetensors", {"format": "pt"}
    )
    raw = json.loads((tied / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps(raw | {"tie_word_embeddings": True, "scale_decoder_outputs": True}))

    ids = [[5, 3, 4, 1], [31, 40, 50, 60], [70, 2, 33, 8]]
    command = [sys.executable, "-c", FRESH, json.dumps(ids), str(final), str(cloned), str(tied)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, cwd=tmp_path)
    plain, *controls = json.loads(done.stdout)
    model = live_model(unbroken.folder / "03-retrain")
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(ids), decoder_input_ids=torch.tensor(ids)).logits
        torch.manual_seed(0)
        tokens = model.generate(input_ids=torch.tensor(ids), max_new_tokens=12, min_new_tokens=12, do_sample=True)
    allowed = TOLERANCE * float(logits.abs().max())
    assert float((torch.tensor(plain["logits"]) - logits).abs().max()) <= allowed
    assert plain["tokens"] == tokens.tolist() and len({token for row in plain["tokens"] for token in row}) > 10
    for control in controls:
        assert float((torch.tensor(control["logits"]) - logits).abs().max()) > 1000 * allowed


def test_the_final_folder_is_the_one_that_was_measured_and_counted(unbroken: Unbroken) -> None:
    manifest = read_manifest(unbroken.folder)
    stages = entries(unbroken.folder)
    final = unbroken.folder / "model"
    assert stages["final"]["hash"] == stages["retrain"]["hash"] == files.sha256_folder(final, "*.safetensors")
    state = load_file(final / "model.safetensors")
    masks = MaskSet.load(unbroken.folder / "03-retrain" / "masks.safetensors")
    dense, counts = manifest["dense_parameters"], stages["final"]["counts"]
    assert counts["num_parameters"] == sum(tensor.numel() for tensor in state.values()) == dense + 71 * 24
    assert counts["stored_ratio"] == sum(int(tensor.count_nonzero()) for tensor in state.values()) / dense
    assert counts["num_bytes"] == (final / "model.safetensors").stat().st_size
    assert counts["counted_ratio"] == 1 - masks.num_removed / dense
    for path, mask in masks.masks.items():
        assert not state[path][~mask].any() and masks.removed(path) > 0
    assert stages["dense"]["counts"]["counted_ratio"] == 1.0
    # self-attention: eight matrices of 12 x 24; the head: 71 x 24
    groups = stages["prune"]["groups"]
    assert [(group["num_elements"], group["num_removed"], group["tie"]) for group in groups] == [
        (2304, round(0.6 * 2304), None),
        (1704, 852, "view"),
    ]
    assert sum(row["num_removed"] for row in stages["retrain"]["sparsity"]) == masks.num_removed


def test_the_folder_holds_what_the_design_says(unbroken: Unbroken) -> None:
    folder = unbroken.folder
    assert {item.name for item in folder.iterdir()} == {
        ".lock", "01-dense", "02-prune", "03-retrain", "04-final", "manifest.json", "model", "recipe.yaml",
    }  # fmt: skip
    assert {item.name for item in (folder / "03-retrain").iterdir()} == {
        "live.json", "masks.safetensors", "model", "predictions.jsonl", "stage.json",
    }  # fmt: skip
    assert not (folder / "01-dense" / "model").exists()  # keep: last
    manifest = read_manifest(folder)
    assert manifest["status"] == "complete" and manifest["dense"] is None
    assert manifest["data"]["rows"] == {"train": 13, "validation": 3, "test": 2}
    stages = entries(folder)
    assert [stages[name]["kind"] for name in ("dense", "prune", "retrain", "final")] == [
        "train",
        "prune",
        "train",
        "evaluate",
    ]
    assert stages["final"]["split"] == "test" and stages["final"]["collapse"]["rows"] == 2
    figure = stages["final"]["metrics"]["per"]
    assert figure["low"] <= figure["value"] <= figure["high"] and figure["higher_is_better"] is False
    training = stages["retrain"]["train"]
    assert (
        training["steps"] == NUM_STEPS and training["epochs"] == 4.0 and training["first_loss"] > training["last_loss"]
    )
    assert (folder / "03-retrain" / "predictions.jsonl").read_text().count("\n") == 3
    for name, entry in stages.items():
        assert json.loads((folder / entry["folder"] / "stage.json").read_text()) == entry, name
    assert not [
        file for file in folder.rglob("*") if file.suffix in (".bin", ".pt", ".pth", ".pkl") or file.name == ".work"
    ]


def test_the_same_recipe_gives_the_same_bits(toy: Toy, unbroken: Unbroken, tmp_path: Path, no_card: None) -> None:
    torch.manual_seed(12345)
    seen = toy.run_seen(tmp_path / "run")
    assert seen.rows == unbroken.seen.rows
    files_of = [(folder / "model" / "model.safetensors").read_bytes() for folder in (tmp_path / "run", unbroken.folder)]
    assert files_of[0] == files_of[1]


# What is refused


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}], ids=str)
@pytest.mark.parametrize("name", ["notes.txt", "manifest.json", ".hidden", "recipe.yaml/inside"])
def test_a_foreign_folder_is_left_alone(toy: Toy, tmp_path: Path, options: dict[str, bool], name: str) -> None:
    (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "run" / name).write_text('{"format": "somebody else\'s"}')
    if name.startswith("recipe.yaml"):
        (tmp_path / "run" / "more").touch()
    before = content(tmp_path)
    with pytest.raises(CheckpointError, match=r"exists and holds no run of Secateur; it is left alone"):
        toy.run(tmp_path / "run", **options)
    assert content(tmp_path) == before


def test_a_file_is_no_folder(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("text")
    with pytest.raises(CheckpointError, match="is a file"):
        toy.run(tmp_path / "run")
    with pytest.raises(CheckpointError, match="cannot be made"):
        toy.run(tmp_path / "run" / "below")


def test_a_run_is_not_written_over_by_accident(toy: Toy, unbroken: Unbroken) -> None:
    before = content(unbroken.folder)
    with pytest.raises(SecateurError, match="exclude each other"):
        toy.run(unbroken.folder, resume=True, overwrite=True)
    with pytest.raises(CheckpointError, match=r"holds a run already. Go on with --resume, replace it with --overwrite"):
        toy.run(unbroken.folder)
    with pytest.raises(CheckpointError, match="started with another recipe"):
        toy.run(unbroken.folder, stages=PRUNE, resume=True)
    with lock_folder(unbroken.folder), pytest.raises(CheckpointError, match="another run is at work there"):
        toy.run(unbroken.folder, overwrite=True)
    assert content(unbroken.folder) == before


def test_overwriting_replaces_a_run_by_one_that_can_run(toy: Toy, tmp_path: Path, no_card: None) -> None:
    folder = tmp_path / "run"
    toy.run(folder, stages=PRUNE, initialize="pretrained")
    before = content(folder)
    tied = PRUNE.replace("feed_forward", "lm_head")
    with pytest.raises(RecipeError, match="tie: is required"):
        toy.run(folder, stages=tied, initialize="pretrained", overwrite=True)
    assert content(folder) == before  # a recipe that cannot run replaces nothing
    toy.run(folder, stages=PRUNE.replace("name: prune", "name: other"), initialize="pretrained", overwrite=True)
    assert (folder / "01-other").is_dir() and not (folder / "01-prune").exists()

    own = toy.recipe(PRUNE, initialize="pretrained").model_copy(update={"model": str(folder)})
    with pytest.raises(CheckpointError, match="starts from the run that would be replaced"):
        pipeline.run(own, folder, device="cpu", overwrite=True)
    assert (folder / "model" / "model.safetensors").exists()


def test_a_kill_while_a_run_is_overwritten_leaves_a_folder_that_is_ours(
    toy: Toy, tmp_path: Path, no_card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    toy.run(folder, stages=PRUNE, initialize="pretrained")

    def killed(*args: Any, **kwargs: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.shutil, "rmtree", killed)
        with pytest.raises(Killed):
            toy.run(folder, stages=PRUNE, initialize="pretrained", overwrite=True)
    assert toy.run(folder, stages=PRUNE, initialize="pretrained", overwrite=True).manifest["status"] == "complete"


def test_a_recipe_made_in_python_needs_a_folder(toy: Toy) -> None:
    with pytest.raises(SecateurError, match="out: a recipe made in Python has no file name"):
        pipeline.run(toy.recipe())


@pytest.mark.parametrize("call", range(1, 12, 2))
def test_a_disk_that_is_full_from_a_moment_on(
    toy: Toy, tmp_path: Path, no_card: None, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Every write fails from the nth on: one plain error, and the run goes on when there is room again."""
    folder, replace, calls = tmp_path / "run", os.replace, []

    def failing(*args: Any) -> None:
        if str(args[1]).startswith(str(folder)):
            calls.append(args)
            if len(calls) >= call:
                raise OSError(errno.ENOSPC, "No space left on device")
        replace(*args)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", failing)
        with pytest.raises(CheckpointError, match="No space left on device"):
            toy.run(folder, stages=PRUNE, initialize="pretrained")
    assert not list(folder.rglob(".partial-*"))
    assert toy.run(folder, stages=PRUNE, initialize="pretrained", resume=True).manifest["status"] == "complete"


# What a caller may bring


def test_rows_metrics_and_callbacks_of_the_caller(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {
        "train": [{"word": "ab", "phonemes": ["AE B", "AH B"]}, {"word": "cd", "phonemes": "S IY"}],
        "validation": [{"word": "ab", "phonemes": "AE B"}, {"word": "cd", "phonemes": "S IY"}],
    }
    asked = []

    def length(predictions: list[str], references: list[list[str]]) -> list[float]:
        asked.append(references)
        return [float(len(prediction)) for prediction in predictions]

    class Count(TrainerCallback):
        steps = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.steps += 1

    class Told(pipeline.Reporter):
        def __init__(self) -> None:
            self.events: list[str] = []

        def run_started(self, recipe: Any, folder: Path, plan: Any) -> None:
            self.events.append("started")

        def stage_started(self, index: int, num_stages: int, name: str, kind: str) -> None:
            self.events.append(f"{index}/{num_stages} {name}")

        def stage_skipped(self, name: str) -> None:
            self.events.append(f"skipped {name}")

        def noted(self, note: str) -> None:
            self.events.append(note[:15])

        def training(self, progress: Any) -> None:
            self.events.append(f"step {progress.step}")

        def stage_finished(self, entry: Any) -> None:
            self.events.append(f"finished {entry['name']}")

        def run_finished(self, folder: Path, manifest: Any) -> None:
            self.events.append("complete")

    monkeypatch.setattr(run_stages, "computes_bf16", lambda device: False)
    count, told = Count(), Told()
    settings = "{epochs: 1, learning_rate: 1.0e-3, batch_size: 2, precision: bf16, weights: bf16}"
    stages = f"\n  - name: tune\n    train: {settings}\n"
    options: dict[str, Any] = {"stages": stages, "initialize": "pretrained", "data": rows, "metrics": [length]}
    result = toy.run(tmp_path / "run", count, reporter=told, **options)
    assert count.steps == 2  # three rows: "ab" has two references
    assert told.events == [
        "started", "0/1 given", "finished given", "1/1 tune", "precision: bf16", "step 1", "step 2", "finished tune",
        "complete",
    ]  # fmt: skip
    assert asked == [[["AE B"], ["S IY"]]] * 2
    manifest = result.manifest
    assert manifest["data"]["path"] == "rows of the caller" and manifest["data"]["rows"] == {
        "train": 2,
        "validation": 2,
    }
    figure = manifest["stages"][0]["metrics"]["length"]
    assert figure["low"] <= figure["value"] <= figure["high"] and "per" in manifest["stages"][0]["metrics"]
    given = manifest["dense"]
    assert given["kind"] == "given" and given["counts"]["counted_ratio"] == 1.0
    assert given["counts"]["num_bytes"] == (toy.start / "model.safetensors").stat().st_size
    assert manifest["stages"][0]["train"]["precision"] == "bf16"
    assert "| tune | 1 | 2 | bf16 |" in (result.folder / "card.md").read_text()
    assert (result.folder / "picture.png").stat().st_size > 1000
    stored = load_file(result.folder / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}

    told.events.clear()
    again = toy.run(tmp_path / "run", count, reporter=told, resume=True, **options)
    assert told.events == ["started", "skipped given", "skipped tune", "complete"] and count.steps == 2
    assert again.manifest["stages"] == manifest["stages"] and again.manifest["dense"] == manifest["dense"]


def test_rows_without_their_column_are_refused(toy: Toy, tmp_path: Path, no_card: None) -> None:
    with pytest.raises(DataError, match="phonemes"):
        toy.run(tmp_path / "run", stages=PRUNE, initialize="pretrained", data={"validation": [{"word": "a"}]})


def test_rows_that_are_left_out_are_told(toy: Toy, tmp_path: Path) -> None:
    rows = {"validation": [{"word": "ab", "phonemes": "AE B"}, {"word": "", "phonemes": "S IY"}]}
    stages = "  - name: before\n    evaluate: {split: validation}\n"
    told: list[str] = []
    reporter = type("Told", (pipeline.Reporter,), {"noted": lambda self, note: told.append(note)})()
    options: dict[str, Any] = {"stages": stages, "initialize": "pretrained", "data": rows, "reporter": reporter}
    with pytest.raises(DataError, match="skip_empty"):
        toy.run(tmp_path / "refused", **options)
    done = toy.run(tmp_path / "run", overrides=["task.data.skip_empty=true"], **options)
    assert done.manifest["data"]["skipped"] == {"validation": 1} and done.manifest["data"]["rows"]["validation"] == 1
    assert told == ["validation: rows without a text, left out: 1."]
    assert "left out: validation" in (done.folder / "card.md").read_text()


def test_a_folder_of_torchs_own_files_may_be_measured_first(toy: Toy, tmp_path: Path, no_card: None) -> None:
    given = tmp_path / "given"
    shutil.copytree(toy.start, given)
    state = load_file(given / "model.safetensors")
    torch.save(state, given / "pytorch_model.bin")
    (given / "model.safetensors").unlink()
    stages = "  - name: before\n    evaluate: {split: test}\n"
    done = Toy(given, toy.data, toy.rows).run(tmp_path / "run", stages=stages, initialize="pretrained")
    counts = done.manifest["stages"][0]["counts"]
    assert counts["counted_ratio"] == 1 and counts["num_bytes"] == (given / "pytorch_model.bin").stat().st_size


def test_a_given_model_that_changed_is_refused_when_the_run_goes_on(toy: Toy, tmp_path: Path, no_card: None) -> None:
    start = tmp_path / "start"
    shutil.copytree(toy.start, start)
    recipe = toy.recipe(PRUNE, initialize="pretrained").model_copy(update={"model": str(start)})
    pipeline.run(recipe, tmp_path / "run", device="cpu")
    weights = start / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match="not the weights that the run was started with"):
        pipeline.run(recipe, tmp_path / "run", device="cpu", resume=True)


def test_keep_all_keeps_every_stages_model(toy: Toy, tmp_path: Path, no_card: None) -> None:
    both = PRUNE + PRUNE.replace("name: prune", "name: more").replace(
        "feed_forward, sparsity: 0.5", "cross_attention, sparsity: 0.9"
    )
    kept = toy.run(tmp_path / "all", stages=both, initialize="pretrained", keep="all").folder
    for entry in read_manifest(kept)["stages"]:
        place = kept / entry["folder"]
        assert files.sha256_folder(place / "model", "*.safetensors") == entry["hash"]
        load_model(str(place / "model"))
    assert entries(kept)["prune"]["hash"] != entries(kept)["more"]["hash"]
    last = toy.run(tmp_path / "last", stages=both, initialize="pretrained").folder
    assert not (last / "01-prune" / "model").exists() and (last / "02-more" / "model").exists()
    # What was pruned first stays pruned, and both masks are in the final stage's file.
    masks = MaskSet.load(last / "02-more" / "masks.safetensors")
    assert {row["role"] for row in entries(last)["more"]["sparsity"]} == {"feed_forward", "cross_attention"}
    state = load_file(last / "model" / "model.safetensors")
    assert all(not state[path][~mask].any() for path, mask in masks.masks.items())


def test_pruning_keeps_what_it_does_not_remove(toy: Toy, tmp_path: Path, no_card: None) -> None:
    folder = toy.run(tmp_path / "run", stages=PRUNE, initialize="pretrained").folder
    given, pruned = load_file(toy.start / "model.safetensors"), load_file(folder / "model" / "model.safetensors")
    masks = MaskSet.load(folder / "01-prune" / "masks.safetensors").masks
    for name, tensor in pruned.items():
        kept = masks.get(name, torch.ones_like(tensor, dtype=torch.bool))
        assert torch.equal(tensor, given[name] * kept), name


def test_the_tiny_report_runs_as_it_is_shipped(tmp_path: Path, no_card: None) -> None:
    smaller = ["task.data.train='train[:64]'", "task.data.validation='validation[:4]'", "task.data.test='test[:4]'"]
    result = pipeline.run(ROOT / "recipes" / "tiny" / "report.yaml", tmp_path / "run", overrides=smaller, device="cpu")
    stages = result.manifest["stages"]
    assert [entry["kind"] for entry in stages] == ["train", *["prune", "train"] * 4, "evaluate"]
    ratios = [entry["counts"]["counted_ratio"] for entry in stages]
    assert ratios == sorted(ratios, reverse=True) and ratios[0] == 1.0 and len(set(ratios)) == 5
