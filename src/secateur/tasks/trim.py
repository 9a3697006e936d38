"""A tokenizer with fewer ids: texts that need none of the others are cut into the same pieces as before.

Why that holds for a unigram model: a text's pieces are the path of the highest score. Without pieces that are not on
it, no other path gains, and equal scores are still decided by the longest piece. The one exception is the score of an
unknown character, 10 below the lowest score of ALL pieces: without the lowest, unknown characters become cheaper and
win against pieces that they lost to before. So a piece with that score stays, whatever its count.

Why it holds for WordPiece: from left to right, each piece is the longest that the word goes on with. Where that one
stays, it is still the longest.

Source: the models of the package tokenizers; unigram (`K_UNK_PENALTY`) after SentencePiece, Kudo 2018,
arXiv:1804.10959; WordPiece as in Devlin et al. 2019 (BERT), arXiv:1810.04805.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from secateur.errors import DataError
from secateur.tasks.vocabulary import Vocabulary

MODELS = ("Unigram", "WordPiece", "WordLevel")
PROCESSORS = ("TemplateProcessing", "BertProcessing", "RobertaProcessing", "ByteLevel", "Sequence")

_OUT = "Leave vocab_row out of the recipe."
_MAX_NAMED = 8  # tokens that one message names
_METASPACE = "\u2581"  # stands for a space, at the beginning of a word
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_SENTINEL = re.compile(f"{_METASPACE}?<extra_id_[0-9]+>")  # mT5's are plain pieces, with a word's beginning


def check_trimmable(tokenizer: Any) -> None:
    """Refuse a tokenizer of which nothing can be taken away, or which could not be loaded afterwards.

    Args:
        tokenizer: any object that tokenizes.

    Raises:
        DataError: it is no fast tokenizer, its class is not one of transformers, or its model is neither unigram nor
            WordPiece nor a list of words.
    """
    kind = type(tokenizer).__name__
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError(
            f"{kind}: its vocabulary cannot be trimmed: it is not a fast tokenizer (tokenizer.json). Save it with "
            "AutoTokenizer as a fast one, or leave vocab_row out of the recipe."
        )
    if type(tokenizer).__module__.partition(".")[0] != "transformers":
        raise DataError(
            f"{kind}: its vocabulary cannot be trimmed: the class is code of {type(tokenizer).__module__}, not of "
            f"transformers, and what it does with ids is not known. {_OUT}"
        )
    described = _describe(tokenizer)
    model = described["model"].get("type")
    if model not in MODELS:
        raise DataError(
            f"{kind}: its vocabulary cannot be trimmed: its model is {model}, whose pieces are found by way of other "
            f"pieces; {', '.join(MODELS)} can lose pieces. {_OUT}"
        )
    unknown = sorted(set(_processor_types(described["post_processor"])) - set(PROCESSORS))
    if unknown:
        raise DataError(
            f"{kind}: its vocabulary cannot be trimmed: the post-processor {', '.join(unknown)} may hold ids. Known "
            f"are {', '.join(PROCESSORS)}. {_OUT}"
        )


def floor_ids(tokenizer: Any, config_ids: Iterable[int] = ()) -> frozenset[int]:
    """List the ids that stay whatever the texts are, so that every text can still be tokenized.

    These are special and added tokens, sentinels, pieces that stand for bytes, single characters (the sign for a space
    too), the sign for a space, or for the inside of a word, with one character, and, in a unigram model, a piece of the
    lowest score: the file's first lines say why.

    Args:
        tokenizer: a Hugging Face tokenizer that passes `check_trimmable`.
        config_ids: ids that the model's configurations name: to begin the decoder with, to end and to pad with.

    Returns:
        The ids.

    Raises:
        DataError: the tokenizer cannot be trimmed.
    """
    check_trimmable(tokenizer)
    floor = {int(index) for index in (*config_ids, *tokenizer.all_special_ids, *tokenizer.added_tokens_decoder)}
    model = _describe(tokenizer)["model"]
    inside = model.get("continuing_subword_prefix", "")
    floor |= {index for token, index in tokenizer.get_vocab().items() if _stays(token.removeprefix(inside))}
    if model["type"] != "Unigram":
        return frozenset(floor | {index for token, index in model["vocab"].items() if token == model["unk_token"]})
    scores = [score for _, score in model["vocab"]]
    lowest = min(scores)
    floor |= set() if model["unk_id"] is None else {model["unk_id"]}
    if not any(scores[index] == lowest for index in floor if index < len(scores)):
        floor.add(scores.index(lowest))
    return frozenset(floor)


def _stays(token: str) -> bool:
    characters = token.removeprefix(_METASPACE)
    return len(token) == 1 or len(characters) == 1 or bool(_BYTE.fullmatch(token) or _SENTINEL.fullmatch(token))


def check_floor(kept: Collection[int], floor: Collection[int], tokenizer: Any) -> None:
    """Refuse to lose tokens that a tokenizer or its model cannot do without.

    Args:
        kept: old ids that are to stay.
        floor: old ids that must stay, from `floor_ids`.
        tokenizer: names the tokens in the message.

    Raises:
        DataError: some would go; the message names them.
    """
    lost = sorted(set(floor) - set(kept))
    if lost:
        names = ", ".join(f"{tokenizer.convert_ids_to_tokens(index)!r} ({index})" for index in lost[:_MAX_NAMED])
        more = f" and {len(lost) - _MAX_NAMED} more" if len(lost) > _MAX_NAMED else ""
        raise DataError(
            f"vocab_row: {len(lost)} of the {len(floor)} tokens that the tokenizer cannot do without would go: "
            f"{names}{more}. Keep at least these {len(floor)} rows: lower the sparsity."
        )


def trim_tokenizer(tokenizer: Any, kept: Sequence[int]) -> Any:
    """Make a tokenizer of some of the ids; the given one is not changed.

    Texts that need no other id are cut into the same pieces; others into shorter ones, or, where the model is a list of
    words, into unknown ones. Of the result, what `save_pretrained` writes is what `AutoTokenizer` loads: it went that
    way once. A spiece.model of the untrimmed tokenizer must not be copied beside it. Truncation and padding that an
    earlier call left switched on are not taken over.

    Args:
        tokenizer: a Hugging Face tokenizer that passes `check_trimmable`.
        kept: old ids, ascending, all of `floor_ids` among them. Rows of the model without a token may stand at the end.

    Returns:
        A tokenizer of the same class, ids 0 to n - 1 for the n kept tokens, in their order.

    Raises:
        DataError: the tokenizer cannot be trimmed, needs an id that is not kept, or is not the same after it was saved
            and loaded.
    """
    floor = floor_ids(tokenizer)
    check_floor(kept, floor, tokenizer)
    described = _describe(tokenizer)
    vocabulary = Vocabulary(tuple(map(int, kept)), vocab_size=max(*_ids_of(described), *kept) + 1)
    wanted = _trim(described, vocabulary)
    trimmed = _load(tokenizer, wanted)
    told = _describe(trimmed)
    changed = [part for part in wanted if told.get(part) != wanted[part]]
    if changed:
        raise DataError(
            f"{type(tokenizer).__name__}: its vocabulary cannot be trimmed: the class builds parts of the tokenizer "
            f"anew when it is loaded ({', '.join(changed)}), and they would not be what they are now. {_OUT}"
        )
    return trimmed


def _describe(tokenizer: Any) -> dict[str, Any]:
    """Give the content of its tokenizer.json, without what single calls switch on and off."""
    return json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}


def _ids_of(described: dict[str, Any]) -> set[int]:
    vocabulary = described["model"]["vocab"]
    own = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
    return {*own, *(token["id"] for token in described["added_tokens"])}


def _trim(described: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """Write another tokenizer.json, with the kept ids renumbered wherever ids stand."""
    known = _ids_of(described)
    gaps = [index for index in vocabulary.kept if index not in known]
    if gaps and gaps != list(vocabulary.kept[-len(gaps) :]):
        raise DataError(
            f"the tokenizer has no token for the id {gaps[0]}, and has tokens for ids after it: only the last rows can "
            "stand without one. Do not keep that row."
        )

    def new(index: int) -> int:
        return int(vocabulary.old_to_new[index])

    model = dict(described["model"])
    if model["type"] == "Unigram":
        model["vocab"] = [piece for index, piece in enumerate(model["vocab"]) if new(index) >= 0]
        model["unk_id"] = None if model["unk_id"] is None else new(model["unk_id"])
    else:
        model["vocab"] = {token: new(index) for token, index in model["vocab"].items() if new(index) >= 0}
    added = [token | {"id": new(token["id"])} for token in described["added_tokens"]]
    processor = _renumber(described["post_processor"], new)
    return described | {"model": model, "added_tokens": added, "post_processor": processor}


def _processor_types(processor: dict[str, Any] | None) -> list[str]:
    if processor is None:
        return []
    return [processor["type"], *(name for part in processor.get("processors", []) for name in _processor_types(part))]


def _renumber(processor: dict[str, Any] | None, new: Callable[[int], int]) -> dict[str, Any] | None:
    """Renumber the ids that a post-processor puts around texts."""
    if processor is None or processor["type"] == "ByteLevel":
        return processor
    if processor["type"] == "Sequence":
        return processor | {"processors": [_renumber(part, new) for part in processor["processors"]]}
    if processor["type"] == "TemplateProcessing":
        specials = {
            name: special | {"ids": [new(index) for index in special["ids"]]}
            for name, special in processor["special_tokens"].items()
        }
        return processor | {"special_tokens": specials}
    return processor | {end: [processor[end][0], new(processor[end][1])] for end in ("sep", "cls")}


def _load(tokenizer: Any, described: dict[str, Any]) -> Any:
    """Give the tokenizer that a description and the given one's settings make.

    It goes through a folder, for some classes (T5's) build their tokenizer anew from parts of tokenizer.json: only what
    was loaded once is sure to be what will be loaded.
    """
    with tempfile.TemporaryDirectory() as place:
        tokenizer.save_pretrained(place)
        Path(place, "tokenizer.json").write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")
        loaded = type(tokenizer).from_pretrained(place)
    loaded.name_or_path = loaded.init_kwargs["name_or_path"] = tokenizer.name_or_path
    return loaded
