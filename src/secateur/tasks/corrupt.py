"""Span corruption, the task T5 was pretrained with: spans of a text are cut out, and the model writes them.

Source: Raffel et al. 2020, arXiv:1910.10683, sec. 3.1.4 and 3.3.4 (rate 0.15, spans of 3 tokens on average).
Differs from their code: a text may begin with a span and end without one, where theirs never begins and always ends
with one; of all ways to place the spans each is equally likely. As in their code, and unlike the paper's figure 2, no
last sentinel closes the target: the end token does.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from secateur.errors import DataError
from secateur.tasks.encode import EncodedPairs, check_ids
from secateur.tasks.sampler import LengthSampler

RATE = 0.15  # share of a text's tokens that are cut out
MEAN_SPAN = 3.0  # tokens

_MIN_TOKENS = 2  # one to cut out and one to keep
_SENTINEL = re.compile("\u2581?<extra_id_([0-9]+)>")  # mT5 writes them with a word's beginning


def sentinels_of(tokenizer: Any) -> list[int]:
    """Find the tokens that stand for what is cut out: `<extra_id_0>`, `<extra_id_1>` and so on.

    Args:
        tokenizer: a Hugging Face tokenizer.

    Returns:
        Their ids, by number.

    Raises:
        DataError: it has none.
    """
    found = {
        int(match[1]): index for token, index in tokenizer.get_vocab().items() if (match := _SENTINEL.fullmatch(token))
    }
    if not found:
        raise DataError(
            "denoising: the tokenizer has no sentinel tokens (<extra_id_0>, <extra_id_1>, ...), which stand for the "
            "spans that are cut out. Remove denoising from the recipe, or use a tokenizer that has them: T5's, or one "
            "that examples/train_tokenizer.py makes."
        )
    return [found[number] for number in sorted(found)]


def count_spans(
    num_tokens: int, num_sentinels: int, *, rate: float = RATE, mean_span: float = MEAN_SPAN
) -> tuple[int, int]:
    """Say how many tokens are cut out of a text, in how many spans; both depend on its length alone.

    Args:
        num_tokens: of the text, end token not counted, at least 2.
        num_sentinels: at least 1; no more spans than these.
        rate: share of the tokens to cut out, above 0 and below 1; one is cut out and one kept at least.
        mean_span: tokens of a span on average, at least 1.

    Returns:
        Number of tokens, number of spans.

    Raises:
        ValueError: a number is out of its range.

    >>> count_spans(512, 100), count_spans(2, 100)
    ((77, 26), (1, 1))
    """
    if num_tokens < _MIN_TOKENS or num_sentinels < 1 or not 0.0 < rate < 1.0 or mean_span < 1.0:
        raise ValueError(
            f"span corruption needs 2 tokens, 1 sentinel, 0 < rate < 1 and mean_span >= 1, not {num_tokens}, "
            f"{num_sentinels}, {rate} and {mean_span}"
        )
    num_noise = min(max(round(num_tokens * rate), 1), num_tokens - 1)
    num_kept = num_tokens - num_noise
    return num_noise, min(max(round(num_noise / mean_span), 1), num_kept + 1, num_sentinels)


def corrupt_spans(
    ids: Sequence[int],
    generator: random.Random,
    *,
    sentinels: Sequence[int],
    end_id: int,
    rate: float = RATE,
    mean_span: float = MEAN_SPAN,
) -> tuple[list[int], list[int]]:
    """Cut spans out of a text; a sentinel stands for each of them, and no two are neighbours.

    Args:
        ids: of a text, at least 2, without the end token.
        generator: its state decides the spans, and moves on.
        sentinels: ids of the sentinels, in the order of their use.
        end_id: the token that ends source and target.
        rate: share of the tokens to cut out, above 0 and below 1.
        mean_span: tokens of a span on average, at least 1; longer where the sentinels run out.

    Returns:
        The source: the text with a sentinel for each span; the target: each sentinel, followed by its span. Both end
        with the end token.

    Raises:
        ValueError: a number is out of its range.

    >>> corrupt_spans([11, 12, 13, 14, 15, 16], random.Random(0), sentinels=[98, 99], end_id=1)
    ([11, 12, 13, 98, 15, 16, 1], [98, 14, 1])
    """
    num_noise, num_spans = count_spans(len(ids), len(sentinels), rate=rate, mean_span=mean_span)
    num_kept = len(ids) - num_noise
    cuts = [0, *sorted(generator.sample(range(1, num_noise), num_spans - 1)), num_noise]
    places = sorted(generator.sample(range(num_kept + 1), num_spans))  # kept tokens before each span: all different
    source: list[int] = []
    target: list[int] = []
    at = 0
    for index, sentinel in enumerate(sentinels[:num_spans]):
        start, stop = places[index] + cuts[index], places[index] + cuts[index + 1]
        source += [*ids[at:start], sentinel]
        target += [sentinel, *ids[start:stop]]
        at = stop
    return [*source, *ids[at:], end_id], [*target, end_id]


def longest_text(max_source_tokens: int, max_target_tokens: int, num_sentinels: int) -> int:
    """Say how long a text may be, that its corruption fits.

    Args:
        max_source_tokens: of the corrupted source, end token counted.
        max_target_tokens: of the target, sentinels and end token counted.
        num_sentinels: at least 1.

    Returns:
        Tokens, end token not counted.

    Raises:
        DataError: not even the shortest text fits.

    >>> longest_text(512, 114, 100)
    568
    """
    longest = 0
    for num_tokens in range(_MIN_TOKENS, 2 * max_source_tokens):
        num_noise, num_spans = count_spans(num_tokens, num_sentinels)
        source, target = num_tokens - num_noise + num_spans + 1, num_noise + num_spans + 1
        if source > max_source_tokens or target > max_target_tokens:
            break
        longest = num_tokens
    if not longest:
        raise DataError(
            f"denoising: max_source_tokens {max_source_tokens} and max_target_tokens {max_target_tokens} leave no "
            "room for a sentinel, a token and the end token. Make both 3 at least, or remove denoising."
        )
    return longest


def _generator(seed: int, epoch: int, row: int) -> random.Random:
    """Seed a generator of a row's own: it does not matter which rows were read before."""
    digest = hashlib.sha256(f"denoising:{seed}:{epoch}:{row}".encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


class DenoisedPairs(Dataset[dict[str, list[int]]]):
    """Training rows of which, for the first part of a training, some are replaced by their own span corruption.

    What is corrupted is a row's source and target in one; of a text that is too long, a part that begins anywhere. A
    row follows from (seed, epoch, index) alone, and is no longer than `max_source_tokens` and `max_target_tokens`.

    Args:
        rows: what there is to learn.
        sampler: the order of these rows: it says which of them come before the end of the first part.
        sentinels: ids of the sentinels.
        end_id: the token that ends sources and targets.
        max_source_tokens: as the rows were cut.
        max_target_tokens: as the rows were cut.
        share: of the rows in the first part that are replaced, above 0, at most 1.
        until: share of the training that is its first part, above 0, at most 1.
        epochs: of the whole training, above 0.
        seed: of the run.
    """

    def __init__(
        self,
        rows: EncodedPairs,
        sampler: LengthSampler,
        *,
        sentinels: Sequence[int],
        end_id: int,
        max_source_tokens: int,
        max_target_tokens: int,
        share: float,
        until: float,
        epochs: float,
        seed: int,
    ) -> None:
        self.rows = rows
        self.sampler = sampler
        self.sentinels = list(sentinels)
        self.end_id = end_id
        self.longest = longest_text(max_source_tokens, max_target_tokens, len(self.sentinels))
        self.share = share
        self.last_epoch = until * epochs
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the rows of an epoch, 0 for the first; it holds until the next call.

        Args:
            epoch: the sampler is set to it as well.
        """
        self.epoch = int(epoch)
        self.sampler.set_epoch(self.epoch)
        num_rows = len(self.rows)
        num_early = round(min(max(self.last_epoch - self.epoch, 0.0), 1.0) * num_rows)
        self._early = bytearray([num_early == num_rows]) * num_rows  # 1: the row is read in the first part
        if 0 < num_early < num_rows:
            for row in list(self.sampler)[:num_early]:
                self._early[row] = 1

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        row = self.rows[index]
        if not self._early[index]:
            return row
        generator = _generator(self.seed, self.epoch, index)
        ids = [*self._text(row["input_ids"]), *self._text(row["labels"])]
        if generator.random() >= self.share or len(ids) < _MIN_TOKENS:
            return row
        start = generator.randrange(max(len(ids) - self.longest, 0) + 1)
        source, target = corrupt_spans(
            ids[start : start + self.longest], generator, sentinels=self.sentinels, end_id=self.end_id
        )
        return {"input_ids": source, "labels": target}

    def _text(self, ids: list[int]) -> list[int]:
        return ids[:-1] if ids[-1] == self.end_id else ids


def denoise(
    rows: EncodedPairs,
    tokenizer: Any,
    *,
    sampler: LengthSampler,
    max_source_tokens: int,
    max_target_tokens: int,
    share: float,
    until: float,
    epochs: float,
    seed: int,
    vocab_size: int | None = None,
) -> DenoisedPairs:
    """Mix span corruption into the first part of a training.

    Args:
        rows: as `encode` made them with this tokenizer.
        tokenizer: a Hugging Face tokenizer with sentinels and an end token.
        sampler: the order of the rows; the lengths it goes by stay those of `rows`, which corruption changes little.
        max_source_tokens: the longest source, end token counted.
        max_target_tokens: the longest target, end token counted.
        share: of the rows in the first part that are replaced, above 0, at most 1.
        until: share of the training that is its first part, above 0, at most 1.
        epochs: of the whole training, above 0.
        seed: of the run.
        vocab_size: rows of the model's embedding table, to check the sentinels against.

    Returns:
        The same number of rows; `set_epoch` is to be called when an epoch begins.

    Raises:
        DataError: the tokenizer has no sentinels or no end token, the model does not embed them, or nothing fits into
            so few tokens.
    """
    sentinels = sentinels_of(tokenizer)
    check_ids([sentinels], vocab_size)
    if tokenizer.eos_token_id is None:
        raise DataError(
            "denoising: the tokenizer has no end token (eos_token), which ends what the model writes. Name it in "
            "tokenizer_config.json, or remove denoising from the recipe."
        )
    return DenoisedPairs(
        rows,
        sampler,
        sentinels=sentinels,
        end_id=tokenizer.eos_token_id,
        max_source_tokens=max_source_tokens,
        max_target_tokens=max_target_tokens,
        share=share,
        until=until,
        epochs=epochs,
        seed=seed,
    )
