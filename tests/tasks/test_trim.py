"""Trimmed tokenizers: counted texts give the same pieces, other texts still tokenize, and a folder keeps it all."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertTokenizer,
    ByT5Tokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5Tokenizer,
)

from secateur.errors import DataError
from secateur.tasks.cmudict import load_cmudict
from secateur.tasks.corrupt import sentinels_of
from secateur.tasks.encode import check_tokenizer
from secateur.tasks.pairs import load_pairs
from secateur.tasks.trim import check_floor, check_trimmable, floor_ids, trim_tokenizer
from secateur.tasks.vocabulary import Vocabulary, count_ids, needed_vocabulary

ROOT = Path(__file__).parents[2]
DEBIAN = ROOT.parent / "shared" / "data" / "debian-synopsis"
SPECIALS = ("<pad>", "</s>", "<unk>")
TEXTS = [
    f"The {kind} of {tool}: prune {what} in {when}, then {what} again."
    for kind, tool, what, when in zip(
        ("library", "shears", "manual", "garden"),
        ("saws", "knives", "loppers", "ladders"),
        ("roses", "hedges", "vines", "apple trees"),
        ("spring", "autumn", "winter", "summer"),
        strict=True,
    )
]


@dataclass(frozen=True)
class Case:
    """A tokenizer, the texts that it is trimmed for, and the trimmed one."""

    tokenizer: Any
    texts: list[str]
    floor: frozenset[int]
    vocabulary: Vocabulary
    trimmed: Any


def trim_for(tokenizer: Any, texts: list[str], *, rows: int | None = None) -> Case:
    counts = count_ids(tokenizer, texts, [], rows or len(tokenizer))
    floor = floor_ids(tokenizer, [0, 1])
    vocabulary = needed_vocabulary(counts, floor)
    return Case(tokenizer, texts, floor, vocabulary, trim_tokenizer(tokenizer, vocabulary.kept))


def sentencepiece_model(*, byte_fallback: bool) -> bytes:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 3),
        model_writer=model,
        model_type="unigram",
        vocab_size=400 if byte_fallback else 140,
        byte_fallback=byte_fallback,
        hard_vocab_limit=False,
        num_threads=1,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def pieces_of(model: bytes) -> list[tuple[str, float]]:
    import sentencepiece

    trained: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [(trained.id_to_piece(index), trained.get_score(index)) for index in range(trained.get_piece_size())]


def t5() -> Any:
    sentinels = [(f"<extra_id_{number}>", 0.0) for number in reversed(range(20))]
    return T5Tokenizer(vocab=[*pieces_of(sentencepiece_model(byte_fallback=False)), *sentinels], extra_ids=20)


def umt5() -> Any:
    """Bytes for unknown characters, sentinels as plain pieces, as mT5 and UMT5 have them."""
    sentinels = [(f"\u2581<extra_id_{number}>", 0.0) for number in reversed(range(5))]
    pieces = [*pieces_of(sentencepiece_model(byte_fallback=True)), *sentinels]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrap(tokenizer)


ENDED = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])


def wrap(tokenizer: Tokenizer, processor: Any = ENDED) -> Any:
    if processor is not None:
        tokenizer.post_processor = processor
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def unigram(pieces: list[tuple[str, float]], *, byte_fallback: bool = False) -> Any:
    vocabulary = [*((name, 0.0) for name in SPECIALS), *pieces]
    return wrap(Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=byte_fallback)))


def g2p() -> Any:
    return AutoTokenizer.from_pretrained(ROOT / "recipes" / "g2p" / "dense")


def debian() -> Any:
    return AutoTokenizer.from_pretrained(ROOT / "recipes" / "debian" / "start")


CASES: dict[str, Callable[[], Any]] = {"t5": t5, "umt5": umt5, "debian": debian, "g2p": g2p}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    texts = ["abandon", "it's", "AH B AE N D", "IH T S"] if request.param == "g2p" else TEXTS[:2]
    found = trim_for(CASES[request.param](), texts)
    assert len(found.trimmed) == len(found.vocabulary) < len(found.tokenizer)
    return found


def same(case: Case, texts: list[str]) -> None:
    """The same pieces, ids through the map, the same text back."""
    for text in texts:
        old, new = case.tokenizer(text), case.trimmed(text)
        assert old.tokens() == new.tokens()
        assert case.vocabulary.remap(old.input_ids).tolist() == new.input_ids
        assert old.attention_mask == new.attention_mask
        for skip in (True, False):
            assert case.tokenizer.decode(old.input_ids, skip_special_tokens=skip) == case.trimmed.decode(
                new.input_ids, skip_special_tokens=skip
            )


def equal(one: Any, other: Any) -> None:
    """Two tokenizers are one, whatever they are asked."""
    assert type(one) is type(other)
    assert one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
    assert one.get_vocab() == other.get_vocab()
    assert one.special_tokens_map == other.special_tokens_map
    assert one.all_special_ids == other.all_special_ids
    assert one.model_max_length == other.model_max_length
    assert one.model_input_names == other.model_input_names


def test_counted_texts_keep_their_pieces(case: Case) -> None:
    same(case, case.texts)


def test_tokens_keep_their_order_strings_and_roles(case: Case) -> None:
    old, new = case.tokenizer, case.trimmed
    kept = list(case.vocabulary.kept)
    assert type(old) is type(new)
    assert new.convert_ids_to_tokens(list(range(len(new)))) == old.convert_ids_to_tokens(kept)
    assert new.get_vocab() == {token: index for index, token in enumerate(old.convert_ids_to_tokens(kept))}
    assert new.special_tokens_map == old.special_tokens_map
    assert new.all_special_tokens == old.all_special_tokens
    assert (new.pad_token_id, new.eos_token_id, new.unk_token_id) == (0, 1, 2)
    check_tokenizer(new, T5Config(pad_token_id=0, eos_token_id=1))
    assert {i: str(t) for i, t in new.added_tokens_decoder.items()} == {
        int(case.vocabulary.old_to_new[i]): str(t) for i, t in old.added_tokens_decoder.items()
    }
    if "<extra_id_0>" in "".join(old.get_vocab()):
        assert sentinels_of(new) == case.vocabulary.remap(sentinels_of(old)).tolist()
        assert max(sentinels_of(new)) == len(new) - 1 and len(sentinels_of(new)) >= 5
    assert new(case.texts).input_ids[0][-1] == 1
    assert new.name_or_path == old.name_or_path


def test_a_folder_gives_the_same_tokenizer_back(case: Case, tmp_path: Path) -> None:
    case.trimmed.save_pretrained(tmp_path / "alone")
    assert {file.name for file in (tmp_path / "alone").iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    equal(AutoTokenizer.from_pretrained(tmp_path / "alone"), case.trimmed)
    # Beside a configuration of T5, transformers chooses the class anew.
    shutil.copytree(tmp_path / "alone", tmp_path / "beside")
    T5Config(vocab_size=len(case.trimmed)).save_pretrained(tmp_path / "beside")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "beside")
    equal(loaded, case.trimmed)
    same(replace(case, trimmed=loaded), case.texts)
    assert str(tmp_path) not in (tmp_path / "alone" / "tokenizer_config.json").read_text()


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.sampled_from([*"theprunsagdlik',.AEHNZT \n", "\u00e9", "\u732b", "\U0001f333"]), max_size=30))
def test_unseen_texts_still_tokenize(case: Case, text: str) -> None:
    old, new = case.tokenizer(text), case.trimmed(text)
    assert all(0 <= index < len(case.trimmed) for index in new.input_ids)
    floor = set(case.tokenizer.convert_ids_to_tokens(list(case.floor)))
    is_list = isinstance(case.tokenizer.backend_tokenizer.model, models.WordLevel)
    parts = old.tokens() if is_list else [c for token in old.tokens() if token not in floor for c in token]
    if 2 not in old.input_ids and floor.issuperset(parts):
        assert 2 not in new.input_ids
        assert case.trimmed.decode(new.input_ids) == case.tokenizer.decode(old.input_ids)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text("abcx", min_size=1, max_size=3), st.sampled_from([-1.0, -2.0, -3.0, -20.0, -41.0])),
    st.lists(st.text("abcxy", max_size=12), min_size=1, max_size=4),
    st.booleans(),
)
def test_any_unigram_keeps_the_pieces_of_what_was_counted(
    pieces: dict[str, float], texts: list[str], byte_fallback: bool
) -> None:
    # Few scores, so that paths tie; x and y often without a piece of their own, so that unknown ones compete.
    own = [("a", -3.0), *((piece, score) for piece, score in pieces.items() if piece not in ("a", "x"))]
    byte = [("<0x78>", -5.0), ("<0x79>", -5.0)] if byte_fallback else []
    case = trim_for(unigram([*own, *byte], byte_fallback=byte_fallback), texts)
    same(case, texts)


def wordpiece(pieces: list[str]) -> Any:
    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(pieces))
    return BertTokenizer(vocab={name: index for index, name in enumerate(names)})


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("abcx", min_size=1, max_size=3), max_size=12),
    st.lists(st.text("abcx", min_size=1, max_size=3), max_size=12),
    st.lists(st.text("abcxy ", max_size=12), min_size=1, max_size=4),
)
def test_any_wordpiece_keeps_the_pieces_of_what_was_counted(
    first: list[str], later: list[str], texts: list[str]
) -> None:
    # y never has a piece, and x often none for the inside of a word: some words are unknown.
    tokenizer = wordpiece(["a", "b", "c", "##a", "##b", "##c", *first, *(f"##{piece}" for piece in later)])
    case = trim_for(tokenizer, texts)
    same(case, texts)


def test_wordpiece_cuts_other_words_into_shorter_pieces(tmp_path: Path) -> None:
    words = ["prune", "##s", "##r", "##ing", "prun", "roses", *"prune", *(f"##{letter}" for letter in "prunesig")]
    case = trim_for(wordpiece(words), ["pruning prunes"])
    names = set(case.trimmed.get_vocab())
    assert "roses" not in names and {"prun", "##ing", "prune", "##s", "p", "##p"} <= names
    assert case.trimmed.tokenize("pruner roses") == ["prune", "##r", "[UNK]"]
    assert case.trimmed.tokenize("rune") == ["r", "##u", "##n", "##e"]
    case.trimmed.save_pretrained(tmp_path)
    BertConfig(vocab_size=len(case.trimmed)).save_pretrained(tmp_path)
    equal(AutoTokenizer.from_pretrained(tmp_path), case.trimmed)
    assert case.trimmed("prunes").input_ids == case.trimmed.convert_tokens_to_ids(["[CLS]", "prune", "##s", "[SEP]"])


def test_unknown_characters_do_not_become_cheaper() -> None:
    # "x" alone is unknown: 10 below the lowest score, which only the unused "zzz" has.
    tokenizer = unigram([("c", -3.0), ("d", -20.0), ("xc", -20.0), ("cd", -1.0), ("zzz", -30.5)])
    assert tokenizer.tokenize("xcd") == ["xc", "d"]
    without = unigram([("c", -3.0), ("d", -20.0), ("xc", -20.0), ("cd", -1.0)])
    assert without.tokenize("xcd") == ["x", "cd"]
    case = trim_for(tokenizer, ["xcd"])
    assert case.trimmed.tokenize("xcd") == ["xc", "d"] and "zzz" in case.trimmed.get_vocab()
    with pytest.raises(DataError, match=r"1 of the 6 tokens .* would go: 'zzz' \(7\)\. Keep at least these 6 rows"):
        trim_tokenizer(tokenizer, [0, 1, 2, 3, 4, 5])


def test_the_unknown_token_may_move() -> None:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("bb", -9.0), ("b", -3.0), ("<unk>", 0.0), ("zz", -10.0)]
    case = trim_for(wrap(Tokenizer(models.Unigram(pieces, unk_id=4))), ["byb"])
    assert case.vocabulary.kept == (0, 1, 3, 4, 5) and case.trimmed.unk_token_id == 3
    assert case.trimmed("byb").input_ids == [2, 3, 2, 1]
    same(case, ["byb", "y"])


def test_the_floor_is_what_every_text_may_need() -> None:
    tokenizer = unigram([("\u2581", -1.0), ("a", -2.0), ("\u2581b", -2.0), ("\u2581ab", -9.0), ("ab", -3.0)])
    tokenizer.add_tokens([AddedToken("trunk")])
    names = {tokenizer.convert_ids_to_tokens(index) for index in floor_ids(tokenizer)}
    assert names == {*SPECIALS, "\u2581", "a", "\u2581b", "\u2581ab", "trunk"}  # the last but one for its score
    assert floor_ids(tokenizer, [7]) - floor_ids(tokenizer) == {7}
    with_bytes = umt5()
    assert {with_bytes.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in range(256)} <= floor_ids(with_bytes)
    assert len(floor_ids(g2p())) == 3 + 29 + len("BDFGKLMNPRSTVWYZ")


def test_what_a_tokenizer_cannot_do_without_is_named() -> None:
    tokenizer = g2p()
    with pytest.raises(DataError, match=r"2 of the 48 tokens .* would go: '<unk>' \(2\), 'a' \(3\)\. Keep at least"):
        trim_tokenizer(tokenizer, [index for index in range(71) if index not in (2, 3)])
    with pytest.raises(DataError, match=r"9 of the 9 tokens .* '<pad>' \(0\).* and 1 more"):
        check_floor([], range(9), tokenizer)
    check_floor([1, 2], {2}, tokenizer)


def test_rows_without_a_token_may_stand_at_the_end_only() -> None:
    case = trim_for(g2p(), ["AH B AE"], rows=80)  # T5 has 32,128 rows for 32,100 tokens
    assert case.vocabulary.vocab_size == 80 and max(case.vocabulary.kept) < 71
    longer = trim_tokenizer(case.tokenizer, [*case.vocabulary.kept, 75, 79])
    equal(longer, case.trimmed)
    gap = wrap(Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "oak": 5}, unk_token="<unk>")))
    assert trim_tokenizer(gap, [0, 1, 2, 5]).convert_tokens_to_ids("oak") == 3
    with pytest.raises(DataError, match="no token for the id 4"):
        trim_tokenizer(gap, [0, 1, 2, 4, 5])


def test_used_pieces_may_go_too() -> None:
    case = trim_for(debian(), TEXTS)
    fewer = trim_tokenizer(case.tokenizer, sorted(floor_ids(case.tokenizer)))
    assert len(fewer) < len(case.trimmed)
    for text in TEXTS:
        ids = fewer(text).input_ids
        assert 2 not in ids and len(ids) > len(case.trimmed(text).input_ids)
        assert fewer.decode(ids, skip_special_tokens=True) == text


def test_a_sentencepiece_file_is_not_carried_on(tmp_path: Path) -> None:
    old = t5()
    old.save_pretrained(tmp_path / "old")
    (tmp_path / "old" / "spiece.model").write_bytes(sentencepiece_model(byte_fallback=False))
    case = trim_for(AutoTokenizer.from_pretrained(tmp_path / "old"), TEXTS[:1])
    case.trimmed.save_pretrained(tmp_path / "new")
    assert {file.name for file in (tmp_path / "new").iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    same(replace(case, tokenizer=old, trimmed=AutoTokenizer.from_pretrained(tmp_path / "new")), case.texts)


def test_what_an_earlier_call_switched_on_is_not_taken_over() -> None:
    tokenizer = g2p()
    fresh = trim_for(tokenizer, ["abbey"])
    tokenizer(["abbey", "a"], truncation=True, max_length=3, padding=True)
    before = tokenizer.backend_tokenizer.to_str()
    after = trim_tokenizer(tokenizer, fresh.vocabulary.kept)
    equal(after, fresh.trimmed)
    assert after.backend_tokenizer.truncation is None and after.backend_tokenizer.padding is None
    assert tokenizer.backend_tokenizer.to_str() == before


@pytest.mark.parametrize(
    "processor",
    [
        processors.TemplateProcessing(single="$A oak </s>", special_tokens=[("oak", 5), ("</s>", 1)]),
        processors.RobertaProcessing(("</s>", 1), ("oak", 5)),
        processors.BertProcessing(("</s>", 1), ("oak", 5)),
        processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(single="$A oak", special_tokens=[("oak", 5)]),
            ]
        ),
        None,
    ],
)
def test_ids_around_texts_are_renumbered(processor: Any) -> None:
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "elm": 3, "ash": 4, "oak": 5}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = wrap(inner, processor)
    tokenizer.add_special_tokens({"extra_special_tokens": ["oak"]})
    case = trim_for(tokenizer, ["ash ash"])
    assert case.vocabulary.kept == (0, 1, 2, 4, 5)
    same(case, ["ash ash", "oak"])


class Remote(PreTrainedTokenizerFast):
    """A class that is not one of transformers."""


def test_tokenizers_that_cannot_be_trimmed_are_refused() -> None:
    merges = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])))
    foreign = Remote(tokenizer_object=g2p().backend_tokenizer)
    for tokenizer, told in (
        (merges, "its model is BPE"),
        (foreign, "Remote: .* not of transformers"),
        (ByT5Tokenizer(), "ByT5Tokenizer: .* not a fast tokenizer"),
        (object(), "object: .* not a fast tokenizer"),
    ):
        for attempt in (check_trimmable, floor_ids, lambda given: trim_tokenizer(given, [0, 1])):
            with pytest.raises(DataError, match=f"{told}.*leave vocab_row out|{told}.*Leave vocab_row out"):
                attempt(tokenizer)


def test_a_post_processor_that_may_hold_ids_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = g2p()
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    described["post_processor"] = {"type": "Sequence", "processors": [{"type": "Grafting", "id": 3}]}
    monkeypatch.setattr("secateur.tasks.trim._describe", lambda tokenizer: described)
    with pytest.raises(DataError, match="post-processor Grafting may hold ids"):
        check_trimmable(tokenizer)


def test_a_class_that_builds_another_tokenizer_is_refused() -> None:
    tokenizer = t5()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()  # T5's class loads no such thing
    with pytest.raises(DataError, match=r"T5Tokenizer: .* when it is loaded \(normalizer\)"):
        trim_for(tokenizer, TEXTS)


def test_debian_descriptions_keep_their_pieces() -> None:
    if not DEBIAN.is_dir():
        pytest.skip("the Debian descriptions are not beside the repository (../shared/data/debian-synopsis)")
    pairs = load_pairs(DEBIAN, "validation[:300]", source="text", target="summary")
    texts = [text for row in pairs.rows() for text in row]
    case = trim_for(debian(), texts)
    assert len(case.vocabulary) < 6000 < len(case.tokenizer)
    same(case, texts)


def test_the_words_of_the_dictionary_keep_their_pieces() -> None:
    columns = load_cmudict("validation")
    words, phonemes = columns["word"][:60], [text for some in columns["phonemes"][:60] for text in some]
    case = trim_for(g2p(), [*words, *phonemes])
    assert 48 < len(case.vocabulary) < 71
    same(case, [*words, *phonemes, *columns["word"]])
    rare = case.trimmed("ZH OY").input_ids  # a list of words has no shorter pieces for what it lost
    assert set(rare) <= {2, *case.trimmed.get_vocab().values()}
