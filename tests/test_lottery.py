"""Lottery tickets in a run: the stages that one would write by hand, each gone on with, kept and shown as such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import secateur
from secateur import stages
from secateur.errors import RunInterrupted
from secateur.masks.mask import MaskSet
from toy import Toy

pytestmark = pytest.mark.usefixtures("no_card")

NUMBERS = "epochs: 1, learning_rate: 5.0e-3, batch_size: 4, precision: fp32, dropout: 0.1, save_every: 2"
DENSE = f"\n  - {{name: dense, train: {{{NUMBERS}}}}}\n"
LISTED = (
    '[{op_names_re: [".*SelfAttention.*"], op_types: [Linear], sparse_ratio: RATIO}, '
    "{op_names: [lm_head], sparse_ratio: RATIO}]"
)
TICKET = f"""  - name: ticket
    prune:
      nni_config_list: {LISTED.replace("RATIO", "0.75")}
      nni_pruner: {{name: level, schedule: lottery_ticket, total_iteration: 2}}
      tie: view
      train: {{{NUMBERS}}}
"""
BY_HAND = "".join(
    f"""  - name: ticket-{index}
    prune: {{nni_config_list: {LISTED.replace("RATIO", ratio)}, tie: view}}
  - {{name: ticket-{index}-train, train: {{{NUMBERS}, rewind: dense}}}}
"""
    for index, ratio in ((1, "0.5"), (2, "0.75"))
)
FOLDERS = ("01-dense", "02-ticket-1", "03-ticket-1-train", "04-ticket-2", "05-ticket-2-train")


def run(toy: Toy, folder: Path, text: str = DENSE + TICKET, **options: Any) -> Any:
    return toy.run(folder, stages=text, initialize="pretrained", **options)


def result(folder: Path, stage: str) -> tuple[dict[str, torch.Tensor], MaskSet]:
    place = folder / stage
    return load_file(place / "model" / "model.safetensors"), MaskSet.load(place / "masks.safetensors")


def test_a_run_by_rounds_is_the_run_of_its_stages_by_hand(toy: Toy, tmp_path: Path) -> None:
    done = run(toy, tmp_path / "run", keep="all").manifest["stages"]
    run(toy, tmp_path / "hand", DENSE + BY_HAND, keep="all")
    assert [entry["folder"] for entry in done] == list(FOLDERS)
    for stage in FOLDERS:
        (mine, masks), (theirs, others) = result(tmp_path / "run", stage), result(tmp_path / "hand", stage)
        assert masks.equals(others) and all(torch.equal(mine[name], theirs[name]) for name in theirs)
    for stage, sparsity in zip(FOLDERS[1:], (0.5, 0.5, 0.75, 0.75), strict=True):
        weights, masks = result(tmp_path / "run", stage)
        for path, mask in masks.masks.items():
            assert int((~mask).sum()) == int(sparsity * mask.numel())
            assert masks.modes[path] == "view" or not weights[path][~mask].any()
    (_, first), (_, second) = (result(tmp_path / "run", stage) for stage in (FOLDERS[1], FOLDERS[3]))
    assert not any((second.masks[path] & ~mask).any() for path, mask in first.masks.items())
    planned = secateur.plan(toy.recipe(DENSE + TICKET, initialize="pretrained"))
    assert [stage.name for stage in planned.stages] == [entry["name"] for entry in done]
    for stage, entry in zip(planned.stages, done, strict=True):
        assert stage.counted_ratio == pytest.approx(entry["counts"]["counted_ratio"], abs=2e-3)


@pytest.mark.parametrize("reset", [True, False])
def test_what_is_left_starts_again_from_the_weights_before_the_rounds(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reset: bool
) -> None:
    begun: list[dict[str, torch.Tensor]] = []
    original = stages.train

    def train(model: Any, *args: Any, **options: Any) -> Any:
        begun.append({name: tensor.detach().clone() for name, tensor in model.named_parameters()})
        return original(model, *args, **options)

    monkeypatch.setattr(stages, "train", train)
    text = DENSE + TICKET if reset else DENSE + TICKET.replace("iteration: 2", "iteration: 2, reset_weight: false")
    run(toy, tmp_path / "run", text, keep="all")
    dense, first = (result(tmp_path / "run", stage)[0] for stage in (FOLDERS[0], FOLDERS[2]))
    _, masks = result(tmp_path / "run", FOLDERS[3])
    expected = dense if reset else first
    assert len(begun) == 3
    for name, tensor in begun[-1].items():
        held = masks.masks[name] if name in masks and masks.modes[name] == "hold" else torch.ones_like(tensor).bool()
        assert torch.equal(tensor, expected[name] * held)


def test_a_stopped_run_goes_on_with_its_round_and_ends_with_the_same_bits(toy: Toy, tmp_path: Path) -> None:
    folder, seen = tmp_path / "run", list[int]()
    with pytest.raises(RunInterrupted):  # in the training of the second round
        run(toy, folder, should_stop=lambda: (folder / FOLDERS[4]).exists() and (seen.append(1) or len(seen) > 2))
    assert (folder / FOLDERS[3] / "stage.json").exists() and not (folder / FOLDERS[4] / "stage.json").exists()
    assert (folder / FOLDERS[0] / "model").is_dir()  # a later round goes back to it
    secateur.run(folder, folder, resume=True, device="cpu")
    run(toy, tmp_path / "whole")
    (mine, masks), (theirs, others) = result(folder, FOLDERS[4]), result(tmp_path / "whole", FOLDERS[4])
    assert masks.equals(others) and all(torch.equal(mine[name], theirs[name]) for name in theirs)
