"""Counts are of what is stored: read from the file, every tensor, tied ones once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from secateur.artifacts.counts import count_folder, count_model, counted_ratio, weight_files
from secateur.errors import CheckpointError


def test_a_folder_is_counted_tensor_by_tensor_over_all_its_files(tmp_path: Path) -> None:
    one = torch.arange(12, dtype=torch.float32).reshape(3, 4)  # one zero
    two = torch.tensor([0.0, 0.0, 1.0, -0.0]).to(torch.bfloat16)  # minus zero is zero
    save_file({"one": one}, tmp_path / "model-1.safetensors")
    save_file({"two": two}, tmp_path / "model-2.safetensors")
    counts = count_folder(tmp_path, dense_parameters=20, counted=0.25)
    assert counts.num_parameters == 16
    assert counts.stored_ratio == 12 / 20
    assert counts.counted_ratio == 0.25
    assert counts.num_bytes == sum(file.stat().st_size for file in tmp_path.iterdir()) > 12 * 4 + 4 * 2
    assert counts.as_json() == {
        "counted_ratio": 0.25,
        "stored_ratio": 0.6,
        "num_parameters": 16,
        "num_bytes": counts.num_bytes,
    }


def test_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors file"):
        weight_files(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0damaged!")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        count_folder(tmp_path, dense_parameters=1, counted=1.0)


def test_a_live_model_counts_tied_tensors_once(tmp_path: Path) -> None:
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    with torch.no_grad():
        first.weight.fill_(1.0)[0, 0] = 0.0
    counts = count_model(nn.Sequential(first, second), None)
    assert (counts.num_parameters, counts.stored_ratio, counts.counted_ratio, counts.num_bytes) == (9, 8 / 9, 1.0, 36)
    save_file({"w": first.weight.detach()}, tmp_path / "model.safetensors")
    assert count_model(first, tmp_path).num_bytes == (tmp_path / "model.safetensors").stat().st_size


def test_the_reports_first_ratio() -> None:
    # T5-small: 12 layers of four 512 x 512 matrices, nine tenths of them removed
    assert round(counted_ratio(60_506_624, {"all": round(0.9 * 48 * 512 * 512)}), 7) == 0.8128367
    assert counted_ratio(10, {}) == 1.0
