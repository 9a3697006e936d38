"""How long an evaluation by generation takes, against Seq2SeqTrainer.predict in the report's settings, same tokens.

    python benchmarks/generation.py [--quick] [--json FILE]

The same trained model (recipes/g2p/dense), the same words, the same limits and beams, fp32. The default side is
`Seq2SeqTrainer.predict` with the report's batch of 5, rows in the order of the file. Ours is `secateur.evaluation`:
rows sorted by length, batches of 64. `same_tokens` is the share of rows whose tokens are equal; what is missing to 1
are rows in which two candidates have the same score up to rounding. `predict` also computes the loss, as it comes.

--quick takes fewer words and greedy decoding only.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PrinterCallback,
    ProgressCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from common import environment, finish, parse_arguments
from secateur.artifacts.loading import load_model, load_tokenizer
from secateur.evaluation.generate import HuggingFaceEngine, predict
from secateur.quiet import quiet_transformers
from secateur.tasks.encode import Collator, encode
from secateur.tasks.pairs import Pairs, load_pairs

MODEL = Path(__file__).parents[1] / "recipes/g2p/dense"
REPORT_BATCH, OUR_BATCH = 5, 64
MAX_NEW_TOKENS, MAX_SOURCE_TOKENS = 63, 40


def predict_default(model: Any, tokenizer: Any, pairs: Pairs, num_beams: int) -> tuple[float, list[list[int]]]:
    """Generate with Seq2SeqTrainer; give the seconds and the tokens of each row, up to its end."""
    single = Pairs(pairs.sources, tuple(references[:1] for references in pairs.references))
    rows = encode(single, tokenizer, max_source_tokens=MAX_SOURCE_TOKENS, max_target_tokens=MAX_NEW_TOKENS)
    settings = GenerationConfig(
        max_new_tokens=MAX_NEW_TOKENS,
        num_beams=num_beams,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=model.config.decoder_start_token_id,
    )
    with tempfile.TemporaryDirectory() as work, quiet_transformers():
        arguments = Seq2SeqTrainingArguments(
            output_dir=work,
            per_device_eval_batch_size=REPORT_BATCH,
            predict_with_generate=True,
            generation_config=settings,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=True,
            seed=0,
        )
        trainer = Seq2SeqTrainer(
            model=model, args=arguments, data_collator=Collator(tokenizer.pad_token_id), processing_class=tokenizer
        )
        for printer in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(printer)
        started = perf_counter()
        found: Any = trainer.predict(rows)  # type: ignore[arg-type]  # any sized data set will do
        seconds = perf_counter() - started
    return seconds, [_until_end(row, tokenizer) for row in found.predictions[:, 1:].tolist()]


def _until_end(row: list[int], tokenizer: Any) -> list[int]:
    row = [token if token >= 0 else tokenizer.pad_token_id for token in row]  # the trainer pads with -100
    return row[: row.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in row else row


class Recording(HuggingFaceEngine):
    """Our engine, which also keeps what it was asked and what it wrote."""

    def generate(self, input_ids: Any, **options: Any) -> Any:
        """Write, and keep the tokens by the source's ids."""
        found = super().generate(input_ids, **options)
        self.written.update({tuple(ids): row.tokens for ids, row in zip(input_ids, found, strict=True)})
        return found

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        self.written: dict[tuple[int, ...], list[int]] = {}


def predict_ours(model: Any, tokenizer: Any, pairs: Pairs, num_beams: int) -> tuple[float, list[list[int]]]:
    """Generate as an evaluation does; give the seconds and the tokens of each row, up to its end."""
    engine = Recording(model, tokenizer)
    started = perf_counter()
    predict(
        engine,
        tokenizer,
        pairs.texts,
        max_source_tokens=MAX_SOURCE_TOKENS,
        max_new_tokens=MAX_NEW_TOKENS,
        num_beams=num_beams,
        batch_size=OUR_BATCH,
    )
    seconds = perf_counter() - started
    sources = tokenizer(list(pairs.texts), return_attention_mask=False)["input_ids"]
    return seconds, [engine.written[tuple(ids)] for ids in sources]


def main() -> None:
    """Measure, print, write."""
    arguments = parse_arguments(__doc__ or "")
    torch.manual_seed(0)
    logging.getLogger("transformers.generation").setLevel(logging.ERROR)  # on a max_length that nobody set
    model, tokenizer = load_model(str(MODEL)).eval(), load_tokenizer(str(MODEL))
    count = 200 if arguments.quick else 1000
    pairs = load_pairs("cmudict", f"validation[:{count}]", source="word", target="phonemes")
    results: dict[str, Any] = {"environment": environment(), "rows": len(pairs), "beams": {}}
    predict_ours(model, tokenizer, Pairs(pairs.sources[:32], pairs.references[:32]), 1)  # warms up
    for num_beams in (1,) if arguments.quick else (1, 5):
        default, theirs = predict_default(model, tokenizer, pairs, num_beams)
        ours, tokens = predict_ours(model, tokenizer, pairs, num_beams)
        same = sum(one == other for one, other in zip(theirs, tokens, strict=True)) / len(tokens)
        results["beams"][num_beams] = {
            "seconds_default": default,
            "seconds_ours": ours,
            "times_faster_than_trainer": default / ours,
            "same_tokens": same,
        }
        print(
            f"{num_beams} beams, {len(pairs)} words: trainer.predict {default:.1f} s, ours {ours:.1f} s, "
            f"{default / ours:.2f} times faster, same tokens in {same:.2%} of the rows"
        )
    least = min(item["times_faster_than_trainer"] for item in results["beams"].values())
    results["times_faster_than_trainer"] = least
    results["same_tokens"] = min(item["same_tokens"] for item in results["beams"].values())
    print(f"\ntimes_faster_than_trainer {least:.2f}  (the least of them; aim: at least 3)")
    finish(results, arguments.json)


if __name__ == "__main__":
    main()
