"""What the tests of imports read: a dense folder, and the report's pruned state dict."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from secateur.anatomy.check import anatomy_of
from secateur.anatomy.roles import Anatomy
from torch_pruned import make_dense, prune_as_report


@pytest.fixture(scope="session")
def anatomy() -> Anatomy:
    return anatomy_of(make_dense())


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """The state dict of the report's pruned model, to be changed freely."""
    return {name: tensor.clone() for name, tensor in prune_as_report(make_dense()).state_dict().items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pruned.pt"
