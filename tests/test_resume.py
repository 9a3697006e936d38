"""A run that was killed and gone on with ends with the bits of an unbroken one; whatever the moment of the kill."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers.modeling_utils
import transformers.trainer
from safetensors.torch import load_file
from transformers import GenerationConfig, PretrainedConfig, TrainerCallback
from transformers.trainer_callback import TrainerState

from secateur import pipeline, pruning, stages
from secateur.artifacts.manifest import read_manifest
from secateur.errors import CheckpointError, RunInterrupted
from secateur.masks.mask import MaskSet
from secateur.retrain import trainer
from toy import NUM_STEPS, Killed, Recorder, Toy, Unbroken

pytestmark = pytest.mark.usefixtures("no_card")
PAST_EPOCH_1 = range(5, NUM_STEPS)


def disturb_the_global_generators() -> None:
    """Another process would have other states: nothing may hang on those of this one."""
    torch.manual_seed(random.randrange(2**31))
    np.random.seed(random.randrange(2**31))
    random.seed()


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert first.keys() == second.keys() and len(first) > 20
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def assert_same_run(folder: Path, unbroken: Unbroken) -> None:
    assert_same_weights(folder / "model", unbroken.folder / "model")
    for stage in ("02-prune", "03-retrain"):
        masks = [MaskSet.load(place / stage / "masks.safetensors") for place in (folder, unbroken.folder)]
        assert masks[0].equals(masks[1]) and masks[0].num_removed > 500
    ours, theirs = read_manifest(folder), read_manifest(unbroken.folder)
    assert ours["status"] == "complete"
    for mine, yours in zip(ours["stages"], theirs["stages"], strict=True):
        for key in ("name", "hash", "counts", "metrics", "sparsity", "examples"):
            assert mine[key] == yours[key], (mine["name"], key)
    assert ours["data"] == theirs["data"]
    leftovers = [file for file in folder.rglob("*") if file.name == ".work" or file.name.startswith(".partial-")]
    pickles = [file for file in folder.rglob("*") if file.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not leftovers and not pickles


def assert_same_training(seen: Recorder, expected: Recorder, *, since: int, stage: str = "03-retrain") -> None:
    """From a step on, the same rows were read in the same order, and the moments at the end are the same."""
    assert {at for where, at in seen.rows if where == stage} == set(range(since, NUM_STEPS))
    for key, batches in seen.rows.items():
        assert batches == expected.rows[key], key
    moments = seen.moments[stage]
    assert moments.keys() == expected.moments[stage].keys() and len(moments) > 20
    for index, values in expected.moments[stage].items():
        assert values.keys() == moments[index].keys() == {"step", "exp_avg", "exp_avg_sq"}
        for name, value in values.items():
            assert torch.equal(moments[index][name], value), (index, name)


class KillAt(TrainerCallback):
    def __init__(self, step: int, stage: str = "03-retrain") -> None:
        self.step, self.stage = step, stage

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and Recorder.stage(args) == self.stage:
            raise Killed


def test_the_unbroken_run_is_what_these_tests_think_it_is(unbroken: Unbroken) -> None:
    assert len(unbroken.seen.rows) == 2 * NUM_STEPS
    micro_batches = [len(batches) for (stage, _), batches in unbroken.seen.rows.items() if stage == "03-retrain"]
    assert micro_batches == [2, 2, 2, 1] * 4  # accumulation, and a last step of each epoch with less of it
    first, second = ([unbroken.seen.rows["03-retrain", step] for step in range(start, start + 4)] for start in (0, 4))
    assert first != second  # each epoch has its own order
    train = [entry["train"]["steps"] for entry in read_manifest(unbroken.folder)["stages"] if entry["kind"] == "train"]
    assert train == [NUM_STEPS, NUM_STEPS]


@pytest.mark.parametrize("step", sorted(random.Random(11).sample(PAST_EPOCH_1, 10)))
def test_killed_at_a_step(toy: Toy, unbroken: Unbroken, tmp_path: Path, step: int) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken.before_retrain, folder)
    with pytest.raises(Killed):
        toy.run(folder, KillAt(step), resume=True)
    disturb_the_global_generators()
    seen = toy.run_seen(folder, resume=True)
    # save_every is 3, and a kill at a step's end comes before its save
    assert_same_training(seen, unbroken.seen, since=(step - 1) // 3 * 3)
    assert_same_run(folder, unbroken)


class SavingWatch:
    """Stands before every file of a trainer's checkpoint, and may kill there or leave half a file."""

    def __init__(
        self, patch: pytest.MonkeyPatch, *, step: int | None = None, name: str = "", half: bool = False
    ) -> None:
        self.step, self.name, self.half = step, name, half
        self.names: list[str] = []
        wrap = self._wrap
        patch.setattr(torch, "save", wrap(torch.save, lambda args: args[1]))
        patch.setattr(
            transformers.modeling_utils,
            "safe_save_file",
            wrap(transformers.modeling_utils.safe_save_file, lambda args: args[1]),
        )
        patch.setattr(PretrainedConfig, "to_json_file", wrap(PretrainedConfig.to_json_file, lambda args: args[1]))
        patch.setattr(GenerationConfig, "to_json_file", wrap(GenerationConfig.to_json_file, lambda args: args[1]))
        patch.setattr(TrainerState, "save_to_json", wrap(TrainerState.save_to_json, lambda args: args[1]))
        patch.setattr(trainer, "write_json", wrap(trainer.write_json, lambda args: args[0]))
        rotate = transformers.trainer.rotate_checkpoints

        def rotating(output_dir: str, *args: Any, **kwargs: Any) -> None:
            newest = max(Path(output_dir).glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
            wrap(lambda path: rotate(output_dir, *args, **kwargs), lambda args: args[0])(newest / "rotation")

        patch.setattr(transformers.trainer, "rotate_checkpoints", rotating)

    def _wrap(self, write: Callable[..., Any], path_of: Callable[[tuple[Any, ...]], Any]) -> Callable[..., Any]:
        def writing(*args: Any, **kwargs: Any) -> Any:
            path = Path(path_of(args))
            if not path.parent.name.startswith("checkpoint-") or path.parents[2].name != "03-retrain":
                return write(*args, **kwargs)
            self.names.append(path.name)
            here = path.parent.name == f"checkpoint-{self.step}" and path.name == self.name
            if here and not self.half:
                raise Killed
            written = write(*args, **kwargs)
            if here:
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
                raise Killed
            return written

        return writing


CHECKPOINT_FILES = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "rotation",
    "COMPLETE",
]


def test_the_files_of_a_checkpoint_are_those_of_these_tests(
    toy: Toy, unbroken: Unbroken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(unbroken.before_retrain, tmp_path / "run")
    watch = SavingWatch(monkeypatch)
    with pytest.raises(Killed):
        toy.run(tmp_path / "run", KillAt(4), resume=True)
    assert watch.names == CHECKPOINT_FILES  # each once, in this order, at step 3
    there = {file.name for file in (tmp_path / "run" / "03-retrain" / ".work" / "checkpoint-3").iterdir()}
    assert there == set(CHECKPOINT_FILES) - {"rotation"}


# At the saves of steps 6, 9, 12 (an epoch's end) and 16 (the last) in turn; all are past epoch 1.
SAVES = [(name, False, (6, 9, 12, 16)[index % 4]) for index, name in enumerate(CHECKPOINT_FILES)]
HALVES = [("model.safetensors", True, 12), ("optimizer.pt", True, 6), ("rng_state.pth", True, 9)]


@pytest.mark.parametrize(("name", "half", "step"), SAVES + HALVES)
def test_killed_between_two_files_of_a_save(
    toy: Toy, unbroken: Unbroken, tmp_path: Path, name: str, half: bool, step: int
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken.before_retrain, folder)
    with pytest.MonkeyPatch.context() as patch:
        SavingWatch(patch, step=step, name=name, half=half)
        with pytest.raises(Killed):
            toy.run(folder, resume=True)
    disturb_the_global_generators()
    seen = toy.run_seen(folder, resume=True)
    # from the save before, which was whole
    assert_same_training(seen, unbroken.seen, since={6: 3, 9: 6, 12: 9, 16: 15}[step])
    assert_same_run(folder, unbroken)


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_checkpoint_that_lost_a_file_later_is_passed_over(
    toy: Toy, unbroken: Unbroken, tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken.before_retrain, folder)
    with pytest.raises(Killed):
        toy.run(folder, KillAt(8), resume=True)
    optimizer = folder / "03-retrain" / ".work" / "checkpoint-6" / "optimizer.pt"
    optimizer.unlink() if damage == "missing" else optimizer.write_bytes(optimizer.read_bytes()[:-10])
    seen = toy.run_seen(folder, resume=True)
    assert min(at for _, at in seen.rows) == 3
    assert_same_run(folder, unbroken)


def test_a_kill_that_no_python_sees(toy: Toy, unbroken: Unbroken, tmp_path: Path) -> None:
    """SIGKILL in another process, in the middle of a save of the first training; this process goes on."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
from toy import Toy
from secateur import state
from secateur.retrain import trainer
mark = trainer._mark_complete
def killing(checkpoint):
    if checkpoint.name == "checkpoint-9":
        os.kill(os.getpid(), signal.SIGKILL)
    mark(checkpoint)
trainer._mark_complete = killing
state.write_card = lambda folder: None
print(torch.__config__.parallel_info(), torch.backends.cpu.get_cpu_capability(), flush=True)
Toy(Path({str(toy.start)!r}), Path({str(toy.data)!r})).run(Path(sys.argv[1]))
"""
    folder = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    here = f"{torch.__config__.parallel_info()} {torch.backends.cpu.get_cpu_capability()}"
    assert done.stdout.decode().splitlines()[: len(here.splitlines())] == here.splitlines()  # else bits may differ
    assert read_manifest(folder)["status"] == "running" and not (folder / "01-dense" / "live.json").exists()
    # What a kill within our own writes would have left besides.
    (folder / ".partial-x").write_text("{")
    (folder / "01-dense" / ".partial-model-y").mkdir()
    disturb_the_global_generators()
    seen = toy.run_seen(folder, resume=True)
    assert_same_training(seen, unbroken.seen, since=6, stage="01-dense")
    assert_same_training(seen, unbroken.seen, since=0)
    assert_same_run(folder, unbroken)


# Where a run that goes on before its pruning is killed again, outside of training: the function, its call (1 = first),
# before or after it, and how many trainings, prunings of a group and evaluations run in all, both times together.
# The stages are prune (two groups), retrain and final.
POINTS = [
    ("pipeline.run_stage", 2, "before", (1, 2, 3)),  # between two stages
    ("pruning.prune_group", 1, "after", (1, 3, 3)),
    ("stages.save_plain", 1, "after", (1, 4, 3)),  # the stage's model is there, live.json is not
    ("stages.save_live", 1, "after", (1, 4, 3)),
    ("stages.evaluate_model", 1, "before", (1, 2, 3)),  # live.json is there, stage.json is not
    ("stages.train", 1, "after", (2, 2, 3)),  # trained, and saved in the trainer's last checkpoint only
    ("stages.save_plain", 2, "after", (2, 2, 3)),
    ("stages.save_live", 2, "after", (2, 2, 3)),
    ("stages.evaluate_model", 2, "after", (1, 2, 4)),
    ("stages.write_predictions", 2, "after", (1, 2, 4)),
    ("stages.tidy", 3, "before", (1, 2, 3)),  # stage.json is there; .work and the older model still are
    ("stages.evaluate_model", 3, "before", (1, 2, 3)),
    ("pipeline._finish", 1, "before", (1, 2, 3)),
    ("pipeline._link_or_copy", 2, "after", (1, 2, 3)),  # within the final copy
]


@pytest.mark.parametrize(("name", "call", "when", "expected"), POINTS)
def test_killed_outside_of_training(
    toy: Toy, unbroken: Unbroken, tmp_path: Path, name: str, call: int, when: str, expected: tuple[int, int, int]
) -> None:
    calls = {"train": 0, "prune_group": 0, "evaluate_model": 0}
    folder = tmp_path / "run"
    shutil.copytree(unbroken.before_prune, folder)
    with pytest.MonkeyPatch.context() as patch:
        _count_calls(patch, calls)
        with pytest.MonkeyPatch.context() as kill:
            _kill_at_call(kill, name, call, when)
            with pytest.raises(Killed):
                toy.run(folder, resume=True)
        disturb_the_global_generators()
        toy.run(folder, resume=True)
    assert tuple(calls.values()) == expected
    assert_same_run(folder, unbroken)


def _count_calls(patch: pytest.MonkeyPatch, calls: dict[str, int]) -> None:
    def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return original(*args, **kwargs)

        return call

    for name in calls:
        holder = pruning if name == "prune_group" else stages
        patch.setattr(holder, name, counted(name, getattr(holder, name)))


def _kill_at_call(patch: pytest.MonkeyPatch, name: str, number: int, when: str) -> None:
    module, _, name = name.partition(".")
    holder = {"pipeline": pipeline, "pruning": pruning, "stages": stages}[module]
    original, seen = getattr(holder, name), [0]

    def call(*args: Any, **kwargs: Any) -> Any:
        seen[0] += 1
        if seen[0] == number and when == "before":
            raise Killed
        result = original(*args, **kwargs)
        if seen[0] == number:
            raise Killed
        return result

    patch.setattr(holder, name, call)


def test_stopped_on_request(toy: Toy, unbroken: Unbroken, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken.before_retrain, folder)
    asked = [0]

    def should_stop() -> bool:
        asked[0] += 1
        return asked[0] > 8  # once before the stage, then after every step: at step 8

    with pytest.raises(RunInterrupted, match=r"step 8 of 16.*--resume") as caught:
        toy.run(folder, resume=True, should_stop=should_stop)
    assert caught.value.exit_code == 130
    assert read_manifest(folder)["status"] == "interrupted"
    disturb_the_global_generators()
    seen = toy.run_seen(folder, resume=True)
    assert_same_training(seen, unbroken.seen, since=8)  # no step is done twice
    assert_same_run(folder, unbroken)


def test_stopped_before_a_stage(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(RunInterrupted, match="before stage dense"):
        toy.run(tmp_path / "run", should_stop=lambda: True)
    assert read_manifest(tmp_path / "run")["status"] == "interrupted"


@pytest.mark.parametrize("where", ["step", "final"])
def test_control_c_without_a_handler(toy: Toy, unbroken: Unbroken, tmp_path: Path, where: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken.before_retrain, folder)

    class ControlC(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 7 and where == "step":
                raise KeyboardInterrupt

    def copying(*args: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        if where == "final":
            patch.setattr(pipeline, "_link_or_copy", copying)
        with pytest.raises(RunInterrupted, match="--resume"):
            toy.run(folder, ControlC(), resume=True)
    assert read_manifest(folder)["status"] == "interrupted"
    toy.run(folder, resume=True)
    assert_same_run(folder, unbroken)


def test_resume_files_are_read_without_unpickling_code_and_from_our_folder(
    toy: Toy, unbroken: Unbroken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken.before_retrain, folder)
    with pytest.raises(Killed):
        toy.run(folder, KillAt(5), resume=True)
    load, read = torch.load, []

    def loading(file: Any, *args: Any, **kwargs: Any) -> Any:
        read.append(Path(file))
        assert kwargs["weights_only"] is True
        return load(file, *args, **kwargs)

    monkeypatch.setattr(torch, "load", loading)
    toy.run(folder, resume=True)
    assert {file.name for file in read} == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert {file.parent for file in read} == {folder / "03-retrain" / ".work" / "checkpoint-3"}
    assert_same_run(folder, unbroken)


def test_a_complete_run_is_complete_when_it_is_gone_on_from(toy: Toy, unbroken: Unbroken, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken.folder, folder)
    calls = {"train": 0, "prune_group": 0, "evaluate_model": 0}
    with pytest.MonkeyPatch.context() as patch:
        _count_calls(patch, calls)
        toy.run(folder, resume=True)
    assert not any(calls.values())
    assert_same_run(folder, unbroken)


def test_a_stage_that_is_taken_away_is_made_again_with_all_after_it(
    toy: Toy, unbroken: Unbroken, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    toy.run(folder, keep="all")
    shutil.rmtree(folder / "02-prune")
    calls = {"train": 0, "prune_group": 0, "evaluate_model": 0}
    with pytest.MonkeyPatch.context() as patch:
        _count_calls(patch, calls)
        toy.run(folder, keep="all", resume=True)
    assert calls == {"train": 1, "prune_group": 2, "evaluate_model": 3}
    assert_same_run(folder, unbroken)


def test_other_rows_are_refused(toy: Toy, unbroken: Unbroken, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken.before_retrain, folder)
    others = [*toy.rows["train"][:-1], {"word": "zebra", "phonemes": "Z IY B R AH"}]
    with pytest.raises(CheckpointError, match="train: these are not the rows that the run was started with"):
        toy.run(folder, resume=True, data={"train": others})


ONE_TRAINING = """
  - name: dense
    train: {epochs: 2, learning_rate: 1.0e-2, batch_size: 4, optimizer: %s, precision: %s, save_every: 2}
"""


@pytest.mark.parametrize(("optimizer", "precision"), [("adafactor", "bf16"), ("sgd", "fp32")])
def test_the_other_optimizers_and_bf16(toy: Toy, tmp_path: Path, optimizer: str, precision: str) -> None:
    stages = ONE_TRAINING % (optimizer, precision)
    whole = toy.run_seen(tmp_path / "whole", stages=stages, initialize="pretrained")
    with pytest.raises(Killed):
        toy.run(tmp_path / "run", KillAt(7, "01-dense"), stages=stages, initialize="pretrained")
    disturb_the_global_generators()
    seen = toy.run_seen(tmp_path / "run", stages=stages, initialize="pretrained", resume=True)
    assert min(at for _, at in seen.rows) == 6
    assert_same_weights(tmp_path / "run" / "model", tmp_path / "whole" / "model")
    for index, values in whole.moments["01-dense"].items():
        assert all(torch.equal(seen.moments["01-dense"][index][name], value) for name, value in values.items())


def test_a_training_that_goes_on_on_another_kind_of_machine_says_both(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = ONE_TRAINING % ("sgd", "auto")
    monkeypatch.setattr("secateur.tasks.precision.computes_bf16", lambda device: True)
    with pytest.raises(Killed):
        toy.run(tmp_path / "run", KillAt(7, "01-dense"), stages=stages, initialize="pretrained")
    for fast, told in ((False, "bf16, fp32"), (True, "bf16, fp32")):
        copy = tmp_path / str(fast)
        shutil.copytree(tmp_path / "run", copy)
        monkeypatch.setattr("secateur.tasks.precision.computes_bf16", lambda device, fast=fast: fast)
        done = toy.run(copy, stages=stages, initialize="pretrained", resume=True)
        assert done.manifest["stages"][0]["train"]["precision"] == (told if not fast else "bf16")


def test_a_run_that_was_killed_while_its_first_files_were_written(toy: Toy, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / ".partial-recipe").write_text("version:")
    with pytest.raises(RunInterrupted):
        toy.run(folder, resume=True, should_stop=lambda: True)
    assert json.loads((folder / "manifest.json").read_text())["status"] == "interrupted"
    assert not list(folder.glob(".partial-*"))
