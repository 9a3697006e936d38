"""Write outputs with a live model, in batches of similar length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from secateur.anatomy.cache import own_cache
from secateur.anatomy.family import REMOVED_ROWS
from secateur.errors import SecateurError
from secateur.evaluation.engine import Engine, Generated
from secateur.processes import Processes
from secateur.tasks.encode import attention_mask, check_ids, check_tokenizer, pad, tokenize


@dataclass(frozen=True)
class Prediction:
    """One output.

    Args:
        text: decoded, special tokens left out.
        num_tokens: tokens written; start, padding and end are not counted. 0 for the name of a class.
        truncated: True when the end token did not come within the allowed tokens.
        probability: of the class that `text` names, 0 to 1; None for a text that was written.
    """

    text: str
    num_tokens: int
    truncated: bool
    probability: float | None = None


def predict(
    engine: Engine,
    tokenizer: Any,
    sources: Sequence[str],
    *,
    max_source_tokens: int,
    max_new_tokens: int,
    num_beams: int = 1,
    batch_size: int = 16,
    vocab_size: int | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    processes: Processes = Processes(),  # noqa: B008 - frozen
) -> list[Prediction]:
    """Write an output for every source; batches are made by length, so little is padded, longest first.

    Args:
        engine: what writes.
        tokenizer: a Hugging Face tokenizer.
        sources: texts, prefix applied.
        max_source_tokens: longer sources are cut, end token kept.
        max_new_tokens: the longest output; the start token is not counted, the end token is.
        num_beams: 1 is greedy.
        batch_size: rows at once.
        vocab_size: rows of the model's embedding table, to check the tokenizer's ids against.
        on_batch: is told (rows done, rows in all) after each batch (each round of batches, one a process).
        processes: which process this is of those that share the work; all of them get all predictions.

    Returns:
        One prediction per source, in the order of the sources, the same for every batch size up to rounding.

    Raises:
        DataError: the tokenizer belongs to another model.
        SecateurError: a batch does not fit into the memory.
    """
    rows, _ = tokenize(tokenizer, sources, max_source_tokens)
    check_ids(rows, vocab_size)
    batches = longest_first(rows, batch_size)
    predictions: dict[int, Prediction] = {}
    for start in range(0, len(batches), processes.size):
        # Batches are as they would be in one process, so that their padding, and with it every bit, is the same.
        own = processes.own(batches[start : start + processes.size])
        written = {}
        for indices in own:
            batch = [rows[index] for index in indices]
            found = _generate(engine, batch, max_new_tokens=max_new_tokens, num_beams=num_beams)
            written.update(zip(indices, _decode(tokenizer, found), strict=True))
        for part in processes.gather(written):
            predictions.update(part)
        if on_batch is not None:
            on_batch(len(predictions), len(rows))
    return [predictions[index] for index in range(len(rows))]


def longest_first(rows: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Batch rows of similar length, so that little is padded.

    Longest first: what does not fit into the memory fails at once, and time left is never underestimated.

    Args:
        rows: token ids.
        batch_size: rows at once.

    Returns:
        Batches of row indices; every index once.

    >>> longest_first([[1], [1, 2], [1, 2, 3]], 2)
    [[2, 1], [0]]
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]), reverse=True)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _generate(
    engine: Engine, batch: Sequence[Sequence[int]], *, max_new_tokens: int, num_beams: int
) -> list[Generated]:
    try:
        return engine.generate(batch, max_new_tokens=max_new_tokens, num_beams=num_beams)
    except torch.OutOfMemoryError as error:
        raise SecateurError(
            f"a batch of {len(batch)} sources of up to {len(batch[0])} tokens, num_beams {num_beams}, does not fit "
            "into the memory. Lower evaluation.batch_size, or that of pseudo_labels."
        ) from error


def _decode(tokenizer: Any, written: Sequence[Generated]) -> list[Prediction]:
    texts = tokenizer.batch_decode([row.tokens for row in written], skip_special_tokens=True)
    padding = tokenizer.pad_token_id  # a broken model may write it
    return [
        Prediction(text.strip(), sum(token != padding for token in row.tokens), row.truncated)
        for text, row in zip(texts, written, strict=True)
    ]


class HuggingFaceEngine:
    """Writes with a live encoder-decoder of transformers.

    Only the arguments decide how it writes: generation settings stored with the checkpoint (a maximal length, beams,
    penalties) are put aside while it works, so that models are compared under equal settings. Tokens whose rows masks
    removed from the table are never written, as if they had been cut out.

    Args:
        model: an encoder-decoder; it is moved to `device`, and nothing else about it changes.
        tokenizer: gives the end and padding ids where the model's configuration has none.
        device: None leaves the model where it is.

    Raises:
        DataError: the tokenizer ends or pads texts otherwise than the model.
        SecateurError: no end token or no padding token is known.
    """

    def __init__(self, model: nn.Module, tokenizer: Any = None, *, device: str | torch.device | None = None) -> None:
        self.model: Any = model if device is None else model.to(device)
        if tokenizer is not None:
            check_tokenizer(tokenizer, model.config)
        known = (getattr(model, "generation_config", None), model.config, tokenizer)
        end = _first(known, "eos_token_id")
        padding = _first(known, "pad_token_id")
        start = _first(known, "decoder_start_token_id")
        if end is None or padding is None:
            raise SecateurError(
                "neither the model's configuration nor the tokenizer says which tokens end and pad a text: set "
                "eos_token_id and pad_token_id in config.json."
            )
        self.end_ids = frozenset(end if isinstance(end, list | tuple) else [end])
        self.pad_id = int(padding)
        self.suppressed: list[int] | None = getattr(model.config, REMOVED_ROWS, None) or None
        self.start_id = int(padding if start is None else start)  # T5 starts with the padding token

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        min_new_tokens: int = 0,
        num_beams: int = 1,
        return_scores: bool = False,
    ) -> list[Generated]:
        """Write one output per source; see `Engine.generate`."""
        device = next(self.model.parameters()).device
        given = {
            "input_ids": pad(input_ids, self.pad_id).to(device),
            "attention_mask": attention_mask(input_ids).to(device),
        }
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens or None,
            num_beams=num_beams,
            do_sample=False,
            use_cache=True,
            eos_token_id=sorted(self.end_ids),
            pad_token_id=self.pad_id,
            decoder_start_token_id=self.start_id,
            suppress_tokens=self.suppressed,
        )
        with evaluating(self.model), _generation_settings(self.model, settings):
            sequences = self.model.generate(**given, generation_config=settings, **own_cache(self.model.config))
            scores = self._scores(given, sequences) if return_scores else None
        rows = sequences[:, 1:].tolist()  # without the start token
        return [
            Generated(row[:length], truncated=length == len(row), score=None if scores is None else scores[index])
            for index, row in enumerate(rows)
            for length in (self._length(row),)
        ]

    def _length(self, row: Sequence[int]) -> int:
        """Count the tokens before the end token; all of them when there is none."""
        return next((place for place, token in enumerate(row) if token in self.end_ids), len(row))

    def _scores(self, given: dict[str, Tensor], sequences: Tensor) -> list[float]:
        """Sum the log probabilities of each row up to its end token, read in one forward pass.

        Args:
            given: the padded sources and their mask.
            sequences: int64 (B, 1 + T), start token first, padding after the end token.

        Returns:
            B sums in nats; the same definition for greedy and beams.
        """
        logits = self.model(**given, decoder_input_ids=sequences[:, :-1]).logits
        targets = sequences[:, 1:]
        scores = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        scores = scores.cpu().double()  # there: Apple's GPUs have no float64
        return [
            float(chosen[: self._length(row) + 1].sum()) for chosen, row in zip(scores, targets.tolist(), strict=True)
        ]


def pad_token_id(model: Any, tokenizer: Any) -> int:
    """Find the token that fills rows up: any will do where nobody names one, for the mask hides it.

    >>> from types import SimpleNamespace
    >>> pad_token_id(SimpleNamespace(config=SimpleNamespace(pad_token_id=None)), SimpleNamespace(pad_token_id=1))
    1
    """
    return int(_first((model.config, tokenizer), "pad_token_id") or 0)


def _first(holders: Sequence[Any], name: str) -> Any:
    """Return the first value that is set."""
    return next((value for holder in holders if (value := getattr(holder, name, None)) is not None), None)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while.

    Args:
        model: every module gets its own flag back afterwards: part of a model may be frozen.

    Yields:
        Nothing.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _generation_settings(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Put the model's own settings aside: `generate` fills from them whatever the given settings leave open."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own
