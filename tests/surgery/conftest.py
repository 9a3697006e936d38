"""Nets of every family, and texts for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nets import BARTS, ENCODERS, FAMILIES, VOCABULARY, make, make_layer_normed


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str) -> Any:
    return make(family)


@pytest.fixture(params=[*ENCODERS, *BARTS])
def layer_normed(request: pytest.FixtureRequest) -> Any:
    return make_layer_normed(request.param)


@pytest.fixture(params=[*FAMILIES, *ENCODERS, *BARTS])
def any_model(request: pytest.FixtureRequest) -> Any:
    return make(request.param) if request.param in FAMILIES else make_layer_normed(request.param)


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
