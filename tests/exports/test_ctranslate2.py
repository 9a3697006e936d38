"""The folder answers with the engine's package alone, and what the engine cannot hold is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from export_nets import BART_SIZES, ROWS, SIZES, VOCABULARY, tokenizer
from transformers import BartConfig, BertConfig, T5Config

from secateur.anatomy.family import WIDTHS
from secateur.anatomy.gaps import GAPS
from secateur.exports import onnx
from secateur.exports.ctranslate2 import cannot_hold, vocabulary
from secateur.exports.engines import open_engine

ALONE = """
import json, sys
folder, rows = sys.argv[1], json.loads(sys.argv[2])
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "secateur"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import ctranslate2
translator = ctranslate2.Translator(folder, intra_threads=1)
results = translator.translate_batch(rows, beam_size=1, max_decoding_length=12, min_decoding_length=0)
assert not {"torch", "transformers", "secateur"} & set(sys.modules)
print(json.dumps([result.hypotheses[0] for result in results]))
"""


def test_a_fresh_process_needs_only_the_engine(exported: Callable[..., Path], engine: Callable[..., Any]) -> None:
    for int8 in (False, True):
        folder = exported("own-head", "ctranslate2", int8)
        names = json.loads((folder / "shared_vocabulary.json").read_text(encoding="utf-8"))
        rows = json.dumps([[names[index] for index in row] for row in ROWS[:4]])
        done = subprocess.run(
            [sys.executable, "-c", ALONE, str(folder), rows], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        written = [[names.index(token) for token in row] for row in json.loads(done.stdout)]
        wanted = engine("own-head", "ctranslate2", int8).generate(ROWS[:4], max_new_tokens=12)
        assert written == [row.tokens for row in wanted]


def test_every_id_has_a_name_of_its_own() -> None:
    class Odd:
        def get_vocab(self) -> dict[str, int]:
            return {"<pad>": 0, "<unused_3>": 1, "b": 4}

    assert vocabulary(Odd(), 6) == ["<pad>", "<unused_3>", "<unused_2>", "<unused_3>_", "b", "<unused_5>"]
    names = vocabulary(tokenizer(), VOCABULARY)
    assert len(set(names)) == len(names) == VOCABULARY and names[3] == "w3" and names[508] == "<unused_508>"


def test_all_reasons_at_once() -> None:
    assert cannot_hold(T5Config(**SIZES)) == []
    config = T5Config(**SIZES, feed_forward_proj="tanh", num_layers=1, num_decoder_layers=0)
    setattr(config, WIDTHS, {"heads": {}, "neurons": {}})
    reasons = cannot_hold(config)
    assert len(reasons) == 3
    for word, reason in zip(("differ in width", "'tanh'", "decoder has no layer"), reasons, strict=True):
        assert word in reason


def test_one_head_is_held_where_it_is_as_wide_as_the_model() -> None:
    one = {**SIZES, "num_heads": 1}
    assert cannot_hold(T5Config(**{**one, "d_kv": SIZES["d_model"]})) == []
    [reason] = cannot_hold(T5Config(**one))
    assert "one head of" in reason and "onnx" in reason


def test_what_it_cannot_hold_of_the_other_families() -> None:
    assert cannot_hold(BartConfig(**BART_SIZES)) == []
    assert "classifies" in cannot_hold(BertConfig())[0]
    assert "relu6" in cannot_hold(BartConfig(**{**BART_SIZES, "activation_function": "relu6"}))[0]
    even = {"heads": {"encoder.self_attention": [[0, 1]] * 2, "decoder.self_attention": [[0, 1]] * 3}}
    even["heads"]["decoder.cross_attention"] = [[0, 1]] * 3
    widths = {**even, "neurons": {"encoder": [9, 9], "decoder": [7] * 3}, "head_sizes": {"encoder": 8, "decoder": 4}}
    config = BartConfig(**BART_SIZES)
    setattr(config, WIDTHS, widths)
    assert cannot_hold(config) == []
    widths["neurons"]["encoder"] = [9, 8]
    [reason] = cannot_hold(config)
    assert "differ in width" in reason and "onnx" not in reason
    setattr(config, WIDTHS, widths | {"neurons": {"encoder": [9, 9], "decoder": [7] * 3}})
    setattr(config, GAPS, {"dims": [0, 1], "layers": {}})
    [reason] = cannot_hold(config)
    assert "Cut it first" in reason


def test_our_graphs_are_for_one_kind_of_family() -> None:
    assert "ctranslate2" in onnx.cannot_hold(BartConfig(**BART_SIZES))[0]
    assert "classifies" in onnx.cannot_hold(BertConfig())[0]


@pytest.mark.parametrize("threads", [1, 2])
def test_an_engine_leaves_torch_its_threads(exported: Callable[..., Path], threads: int) -> None:
    torch.set_num_threads(threads)
    opened = open_engine(exported("t5", "ctranslate2"), threads=3 - threads)
    assert torch.get_num_threads() == threads
    opened.generate(ROWS[:2], max_new_tokens=4)
    assert torch.get_num_threads() == threads
