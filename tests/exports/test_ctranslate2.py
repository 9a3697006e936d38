"""The folder answers with the engine's package alone, and what the engine cannot hold is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from export_nets import ROWS, SIZES, VOCABULARY, tokenizer
from transformers import T5Config

from secateur.anatomy.family import WIDTHS
from secateur.exports.ctranslate2 import cannot_hold, vocabulary

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
