"""The masks that NNI 3.0 chose, case by case: recorded by `benchmarks/nni_parity.py`, and again where NNI is there."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from nni_cases import CASES, digest, our_masks

RECORDED = json.loads((Path(__file__).parent / "nni_masks.json").read_text(encoding="utf-8"))


def test_every_case_is_recorded_and_every_pruner_has_one() -> None:
    assert set(RECORDED["masks"]) == set(CASES) and RECORDED["nni"] == "3.0"
    assert len(CASES) >= 35
    named = {case.schedule or case.pruner for case in CASES.values()}
    assert named == {"level", "l1_norm", "l2_norm", "fpgm", "slim", "taylor", "movement", "linear", "agp"}


@pytest.mark.parametrize("name", CASES)
def test_the_masks_are_those_that_nni_chose(name: str) -> None:
    found = digest(our_masks(CASES[name]))
    assert found == {path: list(value) for path, value in RECORDED["masks"][name].items()}


@pytest.mark.skipif(importlib.util.find_spec("nni") is None, reason="nni is not installed: pip install nni==3.0")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("bert")])
def test_nni_still_chooses_what_was_recorded(name: str) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    from nni_parity import their_masks

    assert digest(their_masks(CASES[name])) == {path: list(value) for path, value in RECORDED["masks"][name].items()}
