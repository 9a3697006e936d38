"""What only the graphs can do: layers of different widths, every activation, one table in one file."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from export_nets import ROWS, SIZES, TARGETS, enliven, tokenizer, write
from transformers import T5Config, T5ForConditionalGeneration

from secateur.anatomy.family import WIDTHS
from secateur.anatomy.ragged import shape_ragged
from secateur.errors import SecateurError
from secateur.exports.ctranslate2 import ACTIVATIONS as ENGINE_ACTIVATIONS
from secateur.exports.ctranslate2 import export_ctranslate2
from secateur.exports.engines import open_engine
from secateur.exports.folder import ExportError
from secateur.exports.onnx import cannot_hold, export_onnx
from secateur.exports.onnx_graph import _by_distance
from secateur.exports.onnx_nodes import ACTIVATIONS
from secateur.exports.onnx_runner import OnnxEngine
from secateur.exports.parity import check_parity, parity


def test_the_table_is_stored_once(exported: Callable[..., Path], live: Callable[..., Any]) -> None:
    def numbers(kind: str) -> int:
        return sum(parameter.numel() for parameter in live(kind).parameters())

    for kind in ("t5", "own-head"):
        size = (exported(kind, "onnx") / "weights.bin").stat().st_size
        assert size < 4 * numbers(kind) * 1.05
        assert (exported(kind, "onnx", True) / "weights.bin").stat().st_size < size / 3
    assert numbers("own-head") - numbers("t5") == SIZES["vocab_size"] * SIZES["d_model"]


def _ragged() -> Any:
    """Heads and neurons differ from layer to layer, and layers use other columns of the shared bias."""
    widths = {
        "heads": {
            "encoder.self_attention": [[0, 2], [1], [0, 1, 2]],
            "decoder.self_attention": [[1], [0, 2]],
            "decoder.cross_attention": [[0, 1, 2], [0]],
        },
        "neurons": {"encoder": [7, 30, 1], "decoder": [16, 40]},
    }
    with torch.random.fork_rng():
        torch.manual_seed(2)
        config = T5Config(**SIZES, num_layers=3, num_decoder_layers=2)
        setattr(config, WIDTHS, widths)
        model = T5ForConditionalGeneration(config).eval()
        shape_ragged(model)
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():  # what changed its shape is empty
                    parameter.normal_(std=parameter.shape[-1] ** -0.5)
        enliven(model)
    return model


def test_ragged_layers_are_held_here_and_refused_there(tmp_path: Path) -> None:
    model = _ragged()
    folder = write(model, tmp_path / "model")
    for int8 in (False, True):
        export_onnx(folder, tmp_path / "onnx", int8=int8)
        found = parity(model, OnnxEngine(tmp_path / "onnx", threads=1), ROWS, TARGETS, max_new_tokens=12)
        check_parity(found, int8=int8)
        assert int8 or found.same_tokens == 1.0
    with pytest.raises(ExportError, match="width: uniform, or export to onnx"):
        export_ctranslate2(folder, tmp_path / "ctranslate2", int8=False)
    assert not (tmp_path / "ctranslate2").exists()


def test_activations(tmp_path: Path) -> None:
    """All that one engine knows, the other knows; those of few models are compared here."""
    assert set(ACTIVATIONS) == set(ENGINE_ACTIVATIONS)
    assert cannot_hold(T5Config(feed_forward_proj="gated-tanh"))[0].startswith("its feed-forward activation is 'tanh'")
    seen = set()
    for activation, export in itertools.product(
        ("quick_gelu", "gated-silu", "gelu"), (export_onnx, export_ctranslate2)
    ):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            config = T5Config(**SIZES, num_layers=1, num_decoder_layers=1, feed_forward_proj=activation)
            model = T5ForConditionalGeneration(config).eval()
        folder = write(model, tmp_path / activation)
        export(folder, tmp_path / "out", int8=False)
        engine = open_engine(tmp_path / "out", threads=1)
        check_parity(parity(model, engine, ROWS[:4], TARGETS[:4], max_new_tokens=2), int8=False)
        seen.add(engine.facts.target)
    assert seen == {"onnx", "ctranslate2"}


def test_distances_are_those_of_the_model(live: Callable[..., Any]) -> None:
    for kind in ("t5", "umt5"):
        for stack, both_ways in (("encoder", True), ("decoder", False)):
            attention = getattr(live(kind), stack).block[0].layer[0].SelfAttention
            table = torch.from_numpy(_by_distance(attention, both_ways=both_ways))
            largest = attention.relative_attention_max_distance
            with torch.no_grad():
                bias = attention.compute_bias(3 * largest, 3 * largest)[0]
            for query, key in ((0, 0), (7, 3), (3 * largest - 1, 0), (largest, 0), (5, 40), (0, 3 * largest - 1)):
                if key > query and not both_ways:
                    continue
                distance = max(-largest, min(largest, key - query))
                column = distance + largest if both_ways else -distance
                assert torch.equal(table[:, column], bias[:, query, key])


def test_a_token_of_zeros_in_int8(tmp_path: Path) -> None:
    """Its scale is 0: what a ReLU shut off for a token must stay nothing, and not become no number."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model: Any = T5ForConditionalGeneration(T5Config(**SIZES, num_layers=1, num_decoder_layers=1)).eval()
    with torch.no_grad():
        for stack in (model.encoder, model.decoder):
            stack.block[0].layer[-1].DenseReluDense.wi.weight.zero_()
    export_onnx(write(model, tmp_path / "model"), tmp_path / "out", int8=True)
    check_parity(parity(model, OnnxEngine(tmp_path / "out", 1), ROWS, TARGETS, max_new_tokens=4), int8=True)


def test_refusals_leave_nothing(tmp_path: Path) -> None:
    model = T5ForConditionalGeneration(T5Config(**{**SIZES, "vocab_size": 60}, num_layers=1)).eval()
    folder = write(model, tmp_path / "model")
    assert len(tokenizer()) > 60
    with pytest.raises(SecateurError, match="knows 500 tokens, its model embeds 60"):
        export_onnx(folder, tmp_path / "out", int8=False)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["model"]
