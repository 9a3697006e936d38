"""Nets of every family, and texts for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nets import FAMILIES, VOCABULARY, make


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str) -> Any:
    return make(family)


@pytest.fixture
def t5() -> Any:
    return make("t5-v1.0")


@pytest.fixture(scope="session")
def sources() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 5, (200,), generator=generator).tolist()
    return [[*torch.randint(2, VOCABULARY, (length,), generator=generator).tolist(), 1] for length in lengths]


@pytest.fixture(scope="session")
def targets() -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [[*torch.randint(2, VOCABULARY, (6,), generator=generator).tolist(), 1] for _ in range(200)]
