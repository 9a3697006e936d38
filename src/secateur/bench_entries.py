"""What a bench times: every model in every engine, exported where it must be, opened, and given its sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from secateur.artefact import Artefact, find_artefact
from secateur.artifacts.loading import load_tokenizer
from secateur.artifacts.manifest import artefact_hash
from secateur.artifacts.pack import unpack_file
from secateur.errors import CheckpointError, SecateurError
from secateur.evaluation.generate import HuggingFaceEngine
from secateur.exports.engines import export_model
from secateur.exports.folder import check_files, read_facts
from secateur.tasks.encode import check_ids, tokenize
from secateur.tasks.precision import computes_bf16

ENGINES = {
    "hf-fp32": ("transformers", False),
    "hf-bf16": ("transformers", False),
    "ct2-fp32": ("ctranslate2", False),
    "ct2-int8": ("ctranslate2", True),
    "onnx-fp32": ("onnx", False),
    "onnx-int8": ("onnx", True),
}
Skipped = list[dict[str, str]]
_NO_BF16 = "this processor has no instructions for bf16, and takes many times as long. Name the engine to time it."


@dataclass(frozen=True)
class Entry:
    """One model in one engine.

    Attributes:
        model: what it was asked for as.
        engine: a name of ENGINES.
        name: of its export and its figures in the bench's folder.
        artefact: what is opened; its hash and bytes are of what the figures are said of.
    """

    model: str
    engine: str
    name: str
    artefact: Artefact

    @property
    def named(self) -> dict[str, str | None]:
        """What the entry's rows begin with: which artefact they are of."""
        return {"model": self.model, "engine": self.engine, "name": self.name, "hash": self.artefact.hash}

    def skipped(self, error: SecateurError | str) -> dict[str, str]:
        """Say why it is left out."""
        return {"model": self.model, "engine": self.engine, "name": self.name, "reason": str(error)}


@dataclass(frozen=True)
class Work:
    """What every engine is asked for.

    Attributes:
        texts: sources, prefix applied; None for random tokens.
        num_texts: how many sources are drawn where there are no texts.
        source_tokens: the longest source; of random ones, each one's length; the end token counted.
        new_tokens: how many are written, the start token not counted.
        exactly: every output has so many tokens; else at most so many, up to the model's own end token.
    """

    texts: list[str] | None
    num_texts: int
    source_tokens: int
    new_tokens: int
    exactly: bool

    def write(self, engine: Any, batch: Sequence[Sequence[int]], new_tokens: int | None = None) -> list[Any]:
        """Let an engine write a batch, greedily; `new_tokens` stands in for the work's own."""
        limit = new_tokens or self.new_tokens
        return engine.generate(batch, max_new_tokens=limit, min_new_tokens=limit if self.exactly else 0)


def open_sources(found: Sequence[Artefact], place: Path, *, trust_remote_code: bool = False) -> list[Artefact]:
    """Unpack what is packed, and see that every model has its tokenizer, before work is put into the others.

    Args:
        found: the models.
        place: an existing folder for what is unpacked.
        trust_remote_code: whether code that comes with a model may run.

    Returns:
        One artefact a model, none of them packed; hash and bytes are still those of the packed file.

    Raises:
        CheckpointError: a file is damaged, or a model has no tokenizer.
    """
    sources = []
    for index, artefact in enumerate(found):
        source = artefact
        if artefact.kind == "packed":
            folder = place / f"{index + 1}-unpacked"
            unpack_file(Path(artefact.path), folder)
            source = Artefact(str(folder), "transformers", artefact.hash, artefact.num_bytes)
        load_tokenizer(source.path, trust_remote_code=trust_remote_code)
        sources.append(source)
    return sources


def of_use() -> list[str]:
    """List the engines that are timed when none is named: bf16 only where the processor has instructions for it.

    >>> {*ENGINES} - {*of_use()} <= {"hf-bf16"}
    True
    """
    return [name for name in ENGINES if name != "hf-bf16" or computes_bf16("cpu")]


def make_entries(
    models: Sequence[str],
    sources: Sequence[Artefact],
    engines: Sequence[str] | None,
    exports: Path,
    on_turn: Callable[[str], None],
) -> tuple[list[Entry], Skipped]:
    """Export what has to be timed; an export that is there already, of the same weights, is kept.

    Args:
        models: what they were asked for as.
        sources: what `open_sources` gave for them. An export runs in its own engine only, any other model in all.
        engines: names of ENGINES; None: all that are of use here.
        exports: folder of the exports; made where there is something to export.
        on_turn: is told what begins.

    Returns:
        The entries, and what cannot be made, with the reasons.
    """
    entries: list[Entry] = []
    skipped: Skipped = []
    for index, (model, source) in enumerate(zip(models, sources, strict=True)):
        for engine in [_own_engine(source)] if source.kind != "transformers" else engines or ENGINES:
            entry = Entry(model, engine, f"{index + 1}-{engine}", source)
            if engines is None and engine not in of_use():
                skipped.append(entry.skipped(_NO_BF16))
                continue
            if ENGINES[engine][0] == source.kind:
                entries.append(entry)
                continue
            try:
                made = _exported(entry, exports / entry.name, on_turn)
            except SecateurError as error:
                skipped.append(entry.skipped(error))
                continue
            entries.append(Entry(model, engine, entry.name, made))
    return entries, skipped


def _own_engine(export: Artefact) -> str:
    int8 = read_facts(export.path).int8
    return next(name for name, kind in ENGINES.items() if kind == (export.kind, int8))


def _exported(entry: Entry, folder: Path, on_turn: Callable[[str], None]) -> Artefact:
    target, int8 = ENGINES[entry.engine]
    wanted = (target, int8, artefact_hash(entry.artefact.path))
    try:
        facts = read_facts(folder)
        check_files(folder, facts)
        there = (facts.target, facts.int8, facts.source_hash) == wanted
    except CheckpointError:  # there is none, or a damaged one
        there = False
    if not there:
        on_turn(f"export of {entry.model} for {entry.engine}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        export_model(entry.artefact.path, folder, target=target, int8=int8)  # type: ignore[arg-type]  # never "transformers"
    return find_artefact(str(folder))


@contextmanager
def opened(entries: Sequence[Entry], *, threads: int, trust_remote_code: bool = False) -> Iterator[tuple[Any, Skipped]]:
    """Open all that can be opened; torch gets the threads too, and its own number back afterwards.

    Args:
        entries: what to open.
        threads: CPU threads of each engine.
        trust_remote_code: whether code that comes with a model may run.

    Yields:
        Entry -> (engine, tokenizer), and what cannot be opened, with the reasons.
    """
    before = torch.get_num_threads()
    skipped: Skipped = []
    with ExitStack() as stack:
        found: dict[Entry, tuple[Any, Any]] = {}
        for entry in entries:
            how = {"threads": threads, "trust_remote_code": trust_remote_code}
            try:
                live, tokenizer = stack.enter_context(entry.artefact.opened(**how))
                found[entry] = (_engine(entry.engine, live, tokenizer), tokenizer)
            except SecateurError as error:
                skipped.append(entry.skipped(error))
        try:
            torch.set_num_threads(threads)
            yield found, skipped
        finally:
            torch.set_num_threads(before)


def _engine(name: str, live: Any, tokenizer: Any) -> Any:
    if ENGINES[name][0] != "transformers":
        return live
    return HuggingFaceEngine(live.to(torch.bfloat16) if name == "hf-bf16" else live, tokenizer)


def sources_of(work: Work, engine: Any, tokenizer: Any) -> list[list[int]]:
    """Make an engine's sources with the model's own tokenizer: a trimmed one has other ids for the same text.

    Args:
        work: says which.
        engine: knows the vocabulary and the end token.
        tokenizer: the model's.

    Returns:
        One list of ids a text.

    Raises:
        DataError: the tokenizer is another model's.
    """
    facts = getattr(engine, "facts", None)
    size = facts.vocab_size if facts is not None else engine.model.config.vocab_size
    if work.texts is not None:
        rows, _ = tokenize(tokenizer, work.texts, work.source_tokens)
        check_ids(rows, size)
        return rows
    end = sorted(facts.eos_token_ids if facts is not None else engine.end_ids)[0]
    drawn = torch.Generator().manual_seed(0)
    lengths = [(work.source_tokens - 1,)] * work.num_texts
    return [[*torch.randint(min(3, size - 1), size, length, generator=drawn).tolist(), end] for length in lengths]


__all__ = ["ENGINES", "Entry", "Skipped", "Work", "make_entries", "open_sources", "opened", "sources_of"]
