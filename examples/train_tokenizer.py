"""Train a small T5-like tokenizer on your own texts: the other half of a model that is trained from scratch.

    pip install sentencepiece
    python examples/train_tokenizer.py recipes/debian/data --source text --target summary --out recipes/debian/start

It writes tokenizer.json and tokenizer_config.json; a config.json beside them makes the folder a `model` for recipes
with `initialize: random`. Differs from T5's tokenizer in one point: the end of a line is a token, for paragraphs and
list items tell a reader much.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from secateur.errors import DataError, SecateurError
from secateur.tasks.pairs import load_pairs

SPECIALS = ("<pad>", "</s>", "<unk>")  # ids 0, 1, 2, as T5's
NUM_EXTRA_IDS = 100  # <extra_id_0> to <extra_id_99>, which stand for the spans that denoising cuts out
CHARACTER_COVERAGE = 0.9999  # characters rarer than that become <unk>
_LINE_END = "\u2581\n"  # one piece; what SentencePiece is shown instead is a letter of its own, as it cuts at "\n"
_SHOWN = "\ue000"


def normalizer() -> normalizers.Normalizer:
    r"""Say what happens to a text before it is cut: compatibility forms, single spaces, line ends as words.

    >>> normalizer().normalize_str("a  \ufb01g \n\n b")
    'a fig \n b'
    """
    return normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace(Regex(r"\s*\n\s*"), " \n "),
            normalizers.Replace(Regex(r"[^\S\n]+"), " "),
            normalizers.Strip(),
        ]
    )


def train_pieces(texts: Iterable[str], num_pieces: int) -> list[tuple[str, float]]:
    """Train a unigram model.

    Args:
        texts: any number; only what `normalizer` leaves of them counts.
        num_pieces: how many pieces there are to be, the three special tokens included.

    Returns:
        Pieces with their log-probabilities: first the special ones, then from the likeliest on. The same for the same
        texts, whatever the machine's number of cores.

    Raises:
        DataError: the texts have too few pieces or too many characters for that number.
        SecateurError: the package sentencepiece is missing.

    Source: Kudo 2018, arXiv:1804.10959, as SentencePiece does it.
    """
    try:
        import sentencepiece
    except ImportError as error:
        raise SecateurError("This needs the package sentencepiece: pip install sentencepiece.") from error
    normalize = normalizer().normalize_str
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(normalize(text).replace("\n", _SHOWN) for text in texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=num_pieces,
            character_coverage=CHARACTER_COVERAGE,
            normalization_rule_name="identity",  # done above, by the code that the tokenizer will use
            max_sentence_length=10**6,  # bytes; longer texts would be left out
            num_threads=1,  # sums of several threads differ from run to run
            pad_id=SPECIALS.index("<pad>"),
            eos_id=SPECIALS.index("</s>"),
            unk_id=SPECIALS.index("<unk>"),
            bos_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        told = str(error).strip().splitlines()[-1].rpartition("] ")[2]  # the check that failed stands before it
        raise DataError(f"No vocabulary of {num_pieces:,} pieces can be made of these texts: {told}") from error
    trained: Any = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [trained.id_to_piece(index) for index in range(trained.get_piece_size())]
    return [
        (_LINE_END if piece == _SHOWN else piece, round(trained.get_score(index), 6))  # a space stands before each
        for index, piece in enumerate(pieces)
    ]


def build_tokenizer(pieces: Sequence[tuple[str, float]], num_extra_ids: int = NUM_EXTRA_IDS) -> Tokenizer:
    """Make the tokenizer of a unigram model.

    Args:
        pieces: as `train_pieces` gives them.
        num_extra_ids: sentinels; they get the last ids, `<extra_id_0>` the very last, as in T5.

    Returns:
        A tokenizer that ends texts with `</s>`.
    """
    tokenizer = Tokenizer(models.Unigram(list(pieces), unk_id=SPECIALS.index("<unk>"), byte_fallback=False))
    tokenizer.normalizer = normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", SPECIALS.index("</s>"))]
    )
    extra_ids = [f"<extra_id_{number}>" for number in reversed(range(num_extra_ids))]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (*SPECIALS, *extra_ids)])
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, out: Path, *, num_extra_ids: int = NUM_EXTRA_IDS) -> None:
    """Write what `AutoTokenizer` needs.

    Args:
        tokenizer: of `build_tokenizer`.
        out: folder; made when missing, its tokenizer is replaced.
        num_extra_ids: as it was built with.

    Raises:
        DataError: it cannot be written.
    """
    config = {
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "extra_special_tokens": [f"<extra_id_{number}>" for number in range(num_extra_ids)],
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 512,
        "pad_token": "<pad>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "tokenizer.json").write_text(tokenizer.to_str() + "\n", encoding="utf-8")
        (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror or error}.") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: none: those of the process.

    Returns:
        0, or 1 after a problem that was told.
    """
    parser = argparse.ArgumentParser(description="Train a small T5-like unigram tokenizer on both columns of a set.")
    parser.add_argument("data", help="a folder with SPLIT.jsonl (.gz, .csv, .parquet), one such file, or a hub id")
    parser.add_argument("--split", default="train", help="what to train on; slices are allowed (default: %(default)s)")
    parser.add_argument("--source", required=True, help="the column that the model will read")
    parser.add_argument("--target", required=True, help="the column that it will write")
    parser.add_argument(
        "--vocabulary", type=int, default=8192, help="ids in all, extra ids included (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for tokenizer.json and tokenizer_config.json")
    given = parser.parse_args(arguments)
    if given.vocabulary <= NUM_EXTRA_IDS + len(SPECIALS):
        parser.error(f"--vocabulary {given.vocabulary} leaves no piece beside {NUM_EXTRA_IDS} extra ids and 3 specials")
    try:
        pairs = load_pairs(given.data, given.split, source=given.source, target=given.target)
        print(f"{len(pairs):,} rows; this takes a few minutes", file=sys.stderr)
        tokenizer = build_tokenizer(train_pieces(_texts(pairs.rows()), given.vocabulary - NUM_EXTRA_IDS))
        write_tokenizer(tokenizer, given.out)
    except SecateurError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{given.out}: {tokenizer.get_vocab_size():,} ids")
    return 0


def _texts(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for source, target in rows:
        yield source
        yield target


if __name__ == "__main__":
    sys.exit(main())
