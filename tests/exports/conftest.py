"""Folders of tiny models and their exports, each made once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode leaves the path alone

from export_nets import MORE_ENDS, SUPPRESSED, as_on_the_hub, make, write

from secateur.artifacts.loading import load_model
from secateur.exports.engines import export_model, open_engine


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Kind -> a folder that holds such a model."""
    place = tmp_path_factory.mktemp("models")

    @cache
    def of(kind: str) -> Path:
        model = make(kind, **{"layer_norm_epsilon": 0.05} if kind == "t5" else {})
        if kind == "mt5":
            model.generation_config.suppress_tokens = SUPPRESSED
        if kind == "umt5":
            model.generation_config.eos_token_id = [1, *MORE_ENDS]
        made = write(model, place / kind)
        return as_on_the_hub(made) if kind == "t5-v1.1" else made

    return of


@pytest.fixture(scope="session")
def live(folder: Callable[[str], Path]) -> Callable[[str], Any]:
    """Kind -> the model that its folder holds."""
    return cache(lambda kind: load_model(str(folder(kind))))


@pytest.fixture(scope="session")
def exported(folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Kind, target, int8 -> an export."""
    place = tmp_path_factory.mktemp("exports")

    @cache
    def of(kind: str, target: Any, int8: bool = False) -> Path:
        out = place / f"{kind}-{target}-{int8}"
        export_model(folder(kind), out, target=target, int8=int8)
        return out

    return of


@pytest.fixture(scope="session")
def engine(exported: Callable[..., Path]) -> Callable[..., Any]:
    """Kind, target, int8 -> an open engine."""
    return cache(lambda kind, target, int8=False: open_engine(exported(kind, target, int8), threads=1))
