"""Two and four processes (gloo) do what one does: same masks, same zeros, the same weights up to rounding."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from classes import Classes
from secateur import state
from secateur.artifacts.manifest import read_manifest
from secateur.masks.mask import MaskSet
from toy import Toy

# Gradients are summed in another order; Adam then divides by their size, so that a weight whose gradient is nearly
# nothing may step by a whole learning rate elsewhere. Measured: 2e-6 on weights of size 1.
TOLERANCE = 1e-4

STAGES = """
  - name: dense
    train: &train
      {epochs: 3, learning_rate: 5.0e-3, batch_size: 5, accumulation: 2, dropout: 0.0, precision: fp32, save_every: 3}
  - name: prune
    prune:
      groups:
        - {role: self_attention, sparsity: 0.5, score: random}
        - {role: lm_head, sparsity: 0.5, tie: view}
  - name: retrain
    train: *train
  - name: final
    evaluate: {split: test}
"""

SCRIPT = """
import sys
from glob import glob
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from secateur import state
from secateur.errors import SecateurError
from toy import Toy
state.write_card = lambda folder: None
try:
    Toy(Path(sys.argv[2]), Path(sys.argv[3])).run(Path(sys.argv[4]), resume=True, stages=sys.argv[5])
except SecateurError as error:
    print(f"secateur: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
finally:
    # One that lives until the interpreter ends may keep it from ending. Linux alone says what its threads are.
    if left := [name for file in glob("/proc/self/task/*/comm") if "gloo" in (name := Path(file).read_text())]:
        sys.exit(f"Threads that serve other processes are left: {left}")
"""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _launch(
    toy: Toy | Classes, folder: Path, size: int, script: str = SCRIPT, stages: str = STAGES
) -> list[subprocess.Popen[bytes]]:
    """Start what a launcher starts: one process a rank, told by the environment who it is."""
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    common["PYTHONFAULTHANDLER"] = "1"  # a process that hangs says where, see `_end`
    arguments = [
        sys.executable,
        "-c",
        script,
        str(Path(__file__).parent),
        str(toy.start),
        str(toy.data),
        str(folder),
        stages,
    ]
    return [
        subprocess.Popen(
            arguments,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
        )
        for rank in range(size)
    ]


def _end(processes: list[subprocess.Popen[bytes]]) -> list[str]:
    try:
        return [process.communicate(timeout=300)[1].decode() for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.send_signal(signal.SIGABRT)
        told = [f"rank {rank}: {process.communicate()[1].decode()}" for rank, process in enumerate(processes)]
        pytest.fail("the processes did not end:\n" + "\n".join(told))


@pytest.fixture(scope="module")
def one(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "write_card", lambda folder: None)
        toy.run(folder, stages=STAGES)
    return folder


@pytest.mark.parametrize("size", [2, 4])
def test_several_processes_do_what_one_does(toy: Toy, one: Path, tmp_path: Path, size: int) -> None:
    folder = tmp_path / "run"
    processes = _launch(toy, folder, size)
    errors = _end(processes)
    assert [process.returncode for process in processes] == [0] * size, errors
    manifest, expected = read_manifest(folder), read_manifest(one)
    assert manifest["status"] == "complete" and manifest["environment"]["processes"] == size
    for mine, theirs in zip(manifest["stages"], expected["stages"], strict=True):
        assert mine["counts"] == theirs["counts"] and mine["metrics"].keys() == theirs["metrics"].keys()
        if mine["kind"] == "evaluate":
            continue
        place = folder / mine["folder"]
        assert MaskSet.load(place / "masks.safetensors").equals(
            MaskSet.load(one / theirs["folder"] / "masks.safetensors")
        )
    weights, wanted = load_file(folder / "model" / "model.safetensors"), load_file(one / "model" / "model.safetensors")
    assert weights.keys() == wanted.keys()
    for path, weight in weights.items():
        assert (weight - wanted[path]).abs().max() <= TOLERANCE * wanted[path].abs().max(), path
        assert ((weight == 0) == (wanted[path] == 0)).all(), path
    losses, wanted_losses = (
        [entry["train"]["losses"] for entry in found["stages"] if "train" in entry] for found in (manifest, expected)
    )
    assert losses == [[[step, pytest.approx(loss, rel=1e-4)] for step, loss in stage] for stage in wanted_losses]


PAIRS_SCRIPT = SCRIPT.replace("from toy import Toy", "from classes import Classes").replace(
    "Toy(Path(sys.argv[2]), Path(sys.argv[3])).run(Path(sys.argv[4]), resume=True, stages=sys.argv[5])",
    "Classes(Path(sys.argv[2]), Path(sys.argv[3]), '[premise, hypothesis]').run(Path(sys.argv[4]), sys.argv[5])",
)
# The last batch of an epoch has one row, so that one process has none of its own.
PAIRS_STAGES = """
  - name: dense
    train: {epochs: 2, learning_rate: 5.0e-3, batch_size: 41, dropout: 0.0, precision: fp32}
  - name: prune
    prune: {groups: [{unit: head, sparsity: 0.5, score: taylor}], calibration: {rows: 16, batch_size: 8}}
"""


def test_two_texts_a_row_are_shared_out_too(text_pairs: Classes, tmp_path: Path) -> None:
    assert PAIRS_SCRIPT.count("Classes") == 2
    alone = text_pairs.run(tmp_path / "one", PAIRS_STAGES).folder
    processes = _launch(text_pairs, tmp_path / "two", 2, PAIRS_SCRIPT, PAIRS_STAGES)
    errors = _end(processes)
    assert [process.returncode for process in processes] == [0, 0], errors
    weights, wanted = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "two", alone))
    assert weights.keys() == wanted.keys()
    # A key's bias adds as much to all scores of a query, and softmax does not see it: its gradient is rounding alone.
    compared = {path: weight for path, weight in weights.items() if not path.endswith("key.bias")}
    assert len(compared) == len(weights) - 2
    for path, weight in compared.items():
        assert (weight - wanted[path]).abs().max() <= TOLERANCE * wanted[path].abs().max(), path


GRADUAL = """
  - name: prune
    prune:
      schedule: {kind: cubic, end: 0.6, every: 2, regrow: true}
      groups:
        - {role: self_attention, sparsity: 0.8, score: movement}
        - {role: feed_forward, sparsity: 0.5}
        - {role: lm_head, sparsity: 0.5, score: soft_movement, tie: view}
      train: {epochs: 3, learning_rate: 5.0e-3, batch_size: 5, dropout: 0.1, precision: fp32, save_every: 3}
"""


def test_a_gradual_pruning_learns_the_same_scores_in_all_processes(toy: Toy, tmp_path: Path) -> None:
    """Different masks would end the run; see `test_gradients_that_differ_between_processes_give_one_mask`."""
    folder = tmp_path / "run"
    processes = _launch(toy, folder, 2, stages=GRADUAL)
    errors = _end(processes)
    assert [process.returncode for process in processes] == [0, 0], errors
    entry = read_manifest(folder)["stages"][0]
    for group in entry["groups"]:
        assert group["num_removed"] == round(group["sparsity"] * group["num_elements"])
    masks = MaskSet.load(folder / "01-prune" / "masks.safetensors")
    weights = load_file(folder / "model" / "model.safetensors")
    for path, mask in masks.masks.items():
        if masks.modes[path] == "hold":
            assert not weights[path][~mask].any(), path


@pytest.mark.parametrize("size", [2, 1])
def test_a_killed_process_ends_the_run_with_a_plain_error_and_any_number_goes_on(
    toy: Toy, one: Path, tmp_path: Path, size: int
) -> None:
    folder = tmp_path / "run"
    kill = """
import os, signal
from transformers import TrainerCallback
class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if os.environ["RANK"] == "1" and state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
"""
    script = kill + SCRIPT.replace("sys.argv[4])", "sys.argv[4]), Kill()")
    processes = _launch(toy, folder, 2, script)
    errors = _end(processes)
    assert processes[1].returncode == -signal.SIGKILL
    assert processes[0].returncode == 1 and "Traceback" not in errors[0], errors[0]
    assert "another process of this run ended" in errors[0] and "--resume" in errors[0]
    assert read_manifest(folder)["status"] == "interrupted"
    processes = _launch(toy, folder, size)
    assert _end(processes) and [process.returncode for process in processes] == [0] * size
    assert read_manifest(folder)["status"] == "complete"
    weights, wanted = load_file(folder / "model" / "model.safetensors"), load_file(one / "model" / "model.safetensors")
    assert all(
        (weight - wanted[path]).abs().max() <= TOLERANCE * wanted[path].abs().max() for path, weight in weights.items()
    )


def test_a_stop_that_one_process_is_asked_for_stops_all_after_the_same_step(toy: Toy, tmp_path: Path) -> None:
    folder, asked = tmp_path / "run", "asked = []\n"
    stop = "should_stop=lambda: os.environ['RANK'] == '1' and (asked.append(1) or len(asked) > 3)"
    script = "import os\n" + asked + SCRIPT.replace("resume=True", f"resume=True, {stop}")
    processes = _launch(toy, folder, 2, script)
    errors = _end(processes)
    assert all("Stopped at step" in error and "Traceback" not in error for error in errors), errors
    assert len({process.returncode for process in processes}) == 1 and processes[0].returncode > 0
    assert read_manifest(folder)["status"] == "interrupted"
    assert len(list(folder.rglob("checkpoint-*"))) >= 1


UNITS = """
  - name: units
    prune:
      calibration: {rows: 6, batch_size: 2}
      groups: [{unit: ffn_neuron, sparsity: 0.5, score: taylor}]
"""


def test_gradients_that_differ_between_processes_give_one_mask(toy: Toy, tmp_path: Path) -> None:
    """As sums on GPUs do: here every process but the first would find the opposite."""
    turn = """
import os
from secateur import shaping
original = shaping.taylor_scores
def turned(*args, **kwargs):
    sign = 1 if os.environ["RANK"] == "0" else -1
    return {place: sign * scores for place, scores in original(*args, **kwargs).items()}
shaping.taylor_scores = turned
"""
    folder = tmp_path / "run"
    script = SCRIPT.replace("state.write_card", turn + "state.write_card", 1).replace("sys.argv[5]", repr(UNITS))
    processes = _launch(toy, folder, 2, script)
    errors = _end(processes)
    assert [process.returncode for process in processes] == [0, 0], errors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "write_card", lambda folder: None)
        toy.run(tmp_path / "one", stages=UNITS)
    one, two = (MaskSet.load(tmp_path / name / "01-units" / "masks.safetensors") for name in ("one", "run"))
    assert len(one) and one.equals(two)
