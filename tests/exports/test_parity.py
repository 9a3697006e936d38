"""Exports answer as their models do, and parity sees it when they do not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from export_nets import BART_KINDS, KINDS, MORE_ENDS, ROWS, SUPPRESSED, TARGETS, make, write

from secateur.anatomy.check import head_scale
from secateur.errors import DataError
from secateur.evaluation.generate import HuggingFaceEngine
from secateur.exports import ctranslate2, onnx_graph
from secateur.exports.engines import export_model, open_engine
from secateur.exports.folder import ExportError
from secateur.exports.parity import Parity, check_parity, parity, score_targets

ALL = [*KINDS, "own-head"]
TARGET_NAMES = ["ctranslate2", "onnx"]
NUM_TOKENS = 24
ROUNDING = 2e-5  # nats per token; 1e-6 to 7e-6 were measured


@pytest.mark.parametrize("target", TARGET_NAMES)
@pytest.mark.parametrize("kind", ALL)
def test_fp32_writes_and_scores_as_the_model(
    kind: str, target: str, live: Callable[..., Any], engine: Callable[..., Any]
) -> None:
    found = parity(live(kind), engine(kind, target), ROWS, TARGETS, max_new_tokens=NUM_TOKENS)
    assert found.num_distinct_tokens >= 50
    assert found.same_tokens == 1.0 and found.num_rows == len(ROWS)
    assert found.largest_difference <= ROUNDING
    check_parity(found, int8=False)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("kind", [*BART_KINDS, *(f"{kind}-cut" for kind in BART_KINDS)])
def test_bart_and_its_kin_score_as_the_model(
    kind: str, int8: bool, live: Callable[..., Any], engine: Callable[..., Any]
) -> None:
    found = parity(live(kind), engine(kind, "ctranslate2", int8), ROWS, TARGETS, max_new_tokens=NUM_TOKENS)
    assert len({token for row in TARGETS for token in row}) >= 50  # random nets write few; these are what is scored
    assert int8 or (found.same_tokens == 1.0 and found.largest_difference <= ROUNDING)
    check_parity(found, int8=int8)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("target", TARGET_NAMES)
@pytest.mark.parametrize("kind", ["own-head", "mt5", "umt5"])  # umt5 has two end tokens, mt5 suppresses others
def test_every_engine_writes_exactly_as_many_tokens(
    kind: str, target: str, num_beams: int, live: Callable[..., Any], engine: Callable[..., Any]
) -> None:
    reference, other = HuggingFaceEngine(live(kind)), engine(kind, target)
    reference.suppressed = list(other.facts.suppress_tokens) or None
    limits = {"max_new_tokens": NUM_TOKENS, "num_beams": num_beams}
    if kind != "mt5" and num_beams == 1:  # else there would be nothing to forbid
        assert any(not row.truncated for row in reference.generate(ROWS, **limits))
    wanted = reference.generate(ROWS, min_new_tokens=NUM_TOKENS, **limits)
    found = other.generate(ROWS, min_new_tokens=NUM_TOKENS, **limits)
    for row in (*wanted, *found):
        assert len(row.tokens) == NUM_TOKENS and row.truncated
        assert not {1, *(MORE_ENDS if kind == "umt5" else ())} & set(row.tokens)
    if num_beams == 1 or target == "onnx":  # CTranslate2's beam search is its own
        assert [row.tokens for row in found] == [row.tokens for row in wanted]


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_lengths_beyond_the_largest_distance(target: str, live: Callable[..., Any], engine: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    source, output = (torch.randint(3, 500, (length,), generator=generator).tolist() for length in (200, 150))
    # Its biases reach 128 tokens; a greedy output of 150 tokens passes them too.
    found = parity(live("t5-v1.1"), engine("t5-v1.1", target), [source], [output], max_new_tokens=150)
    assert found.largest_difference <= ROUNDING and found.same_tokens == 1.0
    assert live("t5-v1.1").config.relative_attention_max_distance == 128


@pytest.mark.parametrize("target", TARGET_NAMES)
@pytest.mark.parametrize("kind", ["t5", "own-head", "umt5"])
def test_int8_stays_near(kind: str, target: str, live: Callable[..., Any], engine: Callable[..., Any]) -> None:
    found = parity(live(kind), engine(kind, target, True), ROWS, TARGETS, max_new_tokens=NUM_TOKENS)
    assert found.mean_difference > 1e-4
    check_parity(found, int8=True)


def _export(model: Any, place: Path, target: Any, *, int8: bool = False) -> Any:
    export_model(write(model, place / "model"), place / "export", target=target, int8=int8)
    return open_engine(place / "export", threads=1)


@pytest.mark.parametrize("target", TARGET_NAMES)
@pytest.mark.parametrize("what", ["bias slice", "norm factor", "norm epsilon"])
def test_a_slip_in_the_export_is_seen(what: str, target: str, live: Callable[..., Any], tmp_path: Path) -> None:
    wrong = make("t5", layer_norm_epsilon=1e-6 if what == "norm epsilon" else 0.05)
    with torch.no_grad():
        if what == "bias slice":
            wrong.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight[:, 1] = 0
        if what == "norm factor":
            wrong.decoder.block[1].layer[1].layer_norm.weight[3] *= 1.1
    found = parity(live("t5"), _export(wrong, tmp_path, target), ROWS, TARGETS, max_new_tokens=8)
    with pytest.raises(ExportError, match="nats per token"):
        check_parity(found, int8=False)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(("kind", "module"), [("t5", onnx_graph), ("t5-v1.1", ctranslate2)])
def test_a_wrong_scale_is_seen_though_the_tokens_are_the_same(
    kind: str,
    module: Any,
    int8: bool,
    live: Callable[..., Any],
    folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(family: Any, config: Any) -> float:
        return 1.0 if head_scale(family, config) != 1.0 else config.d_model**-0.5

    monkeypatch.setattr(module, "head_scale", wrong)
    export_model(folder(kind), tmp_path / "out", target="onnx" if module is onnx_graph else "ctranslate2", int8=int8)
    found = parity(live(kind), open_engine(tmp_path / "out", threads=1), ROWS, TARGETS, max_new_tokens=8)
    assert int8 or found.same_tokens == 1.0
    with pytest.raises(ExportError, match="nats per token"):
        check_parity(found, int8=int8)


@pytest.mark.parametrize("kind", ALL)
def test_onnx_searches_with_beams_as_transformers_does(
    kind: str, live: Callable[..., Any], engine: Callable[..., Any]
) -> None:
    reference = HuggingFaceEngine(live(kind))
    reference.suppressed = list(engine(kind, "onnx").facts.suppress_tokens) or None
    for num_beams, num_tokens in ((3, 14), (2, 1)):
        wanted, found = (
            one.generate(ROWS, max_new_tokens=num_tokens, num_beams=num_beams, return_scores=True)
            for one in (reference, engine(kind, "onnx"))
        )
        assert [(row.tokens, row.truncated) for row in found] == [(row.tokens, row.truncated) for row in wanted]
        for row, other in zip(found, wanted, strict=True):
            assert row.score == pytest.approx(other.score, abs=1e-3)


def test_ctranslate2_searches_with_beams_nearly_as_transformers_does(
    live: Callable[..., Any], engine: Callable[..., Any]
) -> None:
    wanted, found = (
        one.generate(ROWS, max_new_tokens=14, num_beams=3, return_scores=True)
        for one in (HuggingFaceEngine(live("own-head")), engine("own-head", "ctranslate2"))
    )
    same = [(row, other) for row, other in zip(found, wanted, strict=True) if row.tokens == other.tokens]
    assert len(ROWS) > len(same) >= 12  # some rows end, and that is where the searches part
    for row, other in same:
        assert row.score == pytest.approx(other.score, abs=1e-3) and row.truncated == other.truncated


@pytest.mark.parametrize("target", TARGET_NAMES)
@pytest.mark.parametrize("kind", ["own-head", "umt5"])
def test_lengths_ends_and_scores_are_those_of_the_live_engine(
    kind: str, target: str, live: Callable[..., Any], engine: Callable[..., Any]
) -> None:
    assert live("umt5").generation_config.eos_token_id == [1, *MORE_ENDS]
    ended = 0
    for num_tokens in (1, 2, 7):
        wanted, found = (
            one.generate(ROWS, max_new_tokens=num_tokens, return_scores=True)
            for one in (HuggingFaceEngine(live(kind)), engine(kind, target))
        )
        assert [(row.tokens, row.truncated) for row in found] == [(row.tokens, row.truncated) for row in wanted]
        assert all(len(row.tokens) == num_tokens for row in found if row.truncated)
        assert [row.score for row in found] == pytest.approx([row.score for row in wanted], abs=1e-3)
        ended += sum(not row.truncated for row in found)
    assert ended > 0
    assert all(row.score is None for row in engine(kind, target).generate(ROWS[:2], max_new_tokens=2))


@pytest.mark.parametrize("target", TARGET_NAMES)
@pytest.mark.parametrize("num_beams", [1, 2])
def test_suppressed_tokens_are_not_written(
    num_beams: int, target: str, live: Callable[..., Any], engine: Callable[..., Any]
) -> None:
    def tokens(one: Any) -> set[int]:
        return {token for row in one.generate(ROWS, max_new_tokens=12, num_beams=num_beams) for token in row.tokens}

    assert engine("mt5", target).facts.suppress_tokens == SUPPRESSED
    assert not tokens(engine("mt5", target)) & set(SUPPRESSED)
    assert set(SUPPRESSED) <= tokens(HuggingFaceEngine(live("mt5")))


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_a_row_is_the_same_alone_and_in_a_batch(target: str, engine: Callable[..., Any]) -> None:
    """Also in int8: an activation's scale is its own token's."""
    one = engine("t5", target, True)
    together = one.generate(ROWS[:6], max_new_tokens=10)
    assert together == [one.generate([row], max_new_tokens=10)[0] for row in ROWS[:6]]
    alone = [one.score([row], [target])[0] for row, target in zip(ROWS[:6], TARGETS, strict=False)]
    assert one.score(ROWS[:6], TARGETS[:6]) == pytest.approx(alone, abs=1e-3)


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_targets_may_be_empty_when_scored(target: str, live: Callable[..., Any], engine: Callable[..., Any]) -> None:
    found = engine("t5", target).score(ROWS[:2], [[], [5, 1]])
    assert found[0] == 0.0
    assert found[1] == pytest.approx(score_targets(live("t5"), ROWS[1:2], [[5, 1]], start_id=0)[0], abs=1e-4)


def test_parity_takes_a_folder_and_says_what_it_needs(folder: Callable[..., Path], engine: Callable[..., Any]) -> None:
    found = parity(folder("t5"), engine("t5", "onnx"), ROWS[:3], TARGETS[:3], max_new_tokens=4, batch_size=2)
    assert found.same_tokens == 1.0 and found.num_rows == 3 and found.max_new_tokens == 4
    for rows, targets in (([], []), (ROWS[:2], TARGETS[:1]), (ROWS[:2], [[], [1]])):
        with pytest.raises(DataError, match="parity needs"):
            parity(None, engine("t5", "onnx"), rows, targets, max_new_tokens=4)


def test_every_reason_is_told() -> None:
    good = Parity(20, 1.0, 1e-6, 1e-7, 80, 24)
    for int8 in (False, True):
        check_parity(good, int8=int8)
        with pytest.raises(ExportError, match="differ"):
            check_parity(replace(good, largest_difference=math.nan, mean_difference=math.nan), int8=int8)
    with pytest.raises(ExportError) as caught:
        check_parity(replace(good, same_tokens=0.5, largest_difference=0.2), int8=False)
    assert len(caught.value.faults) == 2
    check_parity(replace(good, same_tokens=0.5, largest_difference=0.2, mean_difference=0.02), int8=True)
