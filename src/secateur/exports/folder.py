"""The folder of an exported model: written in one step, described by export.json, and checked before it is used."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from secateur.anatomy.family import REMOVED_ROWS
from secateur.anatomy.stored import read_config
from secateur.artifacts.loading import load_model, load_tokenizer
from secateur.artifacts.manifest import artefact_hash
from secateur.errors import CheckpointError, FaultsError
from secateur.evaluation.generate import HuggingFaceEngine
from secateur.files import new_folder, read_json, sha256_file, write_json
from secateur.recipe.names import Target

FORMAT = "secateur-export"
VERSION = 1
FACTS = "export.json"
# The largest number of a matrix in int8. A processor without VNNI adds two products of a byte, at most 255, and such a
# number in 16 bits, where 127 would overflow and 64 just fits; an export is shipped to any of them.
INT8_LEVELS = 64


class ExportError(FaultsError):
    """A model cannot be exported, or an export does not answer as its model does."""


@dataclass(frozen=True)
class Facts:
    """What export.json says.

    Attributes:
        target: the engine that runs the folder.
        int8: whether the matrices are stored and multiplied as int8.
        hash: of this folder's weight files: what figures of quality, bytes and milliseconds are said of.
        source_hash: of the weights that were exported.
        num_bytes: of the weight files.
        packages: version of every package that wrote the folder or is needed to run it.
        vocab_size: tokens that can be read and written.
        eos_token_ids: tokens that end a text.
        pad_token_id: what fills short rows.
        decoder_start_token_id: what every output starts with.
        suppress_tokens: tokens that are never written.
        config: the source's config.json.
        weights: names of the weight files.
        files: every file beside export.json -> its sha256.
    """

    target: Target
    int8: bool
    hash: str
    source_hash: str
    num_bytes: int
    packages: Mapping[str, str]
    vocab_size: int
    eos_token_ids: Sequence[int]
    pad_token_id: int
    decoder_start_token_id: int
    suppress_tokens: Sequence[int]
    config: Mapping[str, Any]
    weights: Sequence[str]
    files: Mapping[str, str]


@dataclass(frozen=True)
class Source:
    """A plain Hugging Face folder, opened for an export.

    Attributes:
        folder: where it stands.
        model: its encoder-decoder, fp32, on the CPU.
        tokenizer: its tokenizer.
        hash: of its weights.
        config: its config.json.
        engine: knows the tokens that start, end and pad.
    """

    folder: Path
    model: Any
    tokenizer: Any
    hash: str
    config: Mapping[str, Any]
    engine: HuggingFaceEngine


def require(package: str, *, extra: Target) -> Any:
    """Import a package that only exports need.

    Args:
        package: a module's dotted name.
        extra: the extra of ours that installs it.

    Returns:
        The module.

    Raises:
        ExportError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ExportError(
            [f"{package} is missing ({error}). Install it: pip install 'secateur[{extra}]'"], f"{extra} cannot be used:"
        ) from error


def open_source(folder: Path | str, cannot_hold: Callable[[Any], list[str]], *, engine: str) -> Source:
    """Load what is to be exported.

    Args:
        folder: a plain Hugging Face folder.
        cannot_hold: lists the reasons why an engine cannot hold a configuration.
        engine: the engine's name, for the message.

    Returns:
        The model and all that goes with it.

    Raises:
        ExportError: the engine cannot hold the model; all reasons at once.
        CheckpointError: there is no such folder, or it is foreign, half-written or damaged.
        AnatomyError: its family is unknown.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder. Give one that holds config.json and the weights; of a model on the hub, the "
            "folder that `hf download` writes."
        )
    if is_export(folder):
        raise CheckpointError(f"{folder}: is an export already. Give the Hugging Face folder that it was made from.")
    config, _ = read_config(str(folder))
    if not config.is_encoder_decoder:
        told = f"a {config.model_type} names classes, and the exports here are of models that write texts"
        raise ExportError([f"{told}. `secateur pack` makes a small file of any model."], f"{folder}: {engine}:")
    if reasons := cannot_hold(config):
        raise ExportError(reasons, f"{folder}: {engine} cannot hold this model:")
    weights = artefact_hash(str(folder))
    if weights is None:
        raise CheckpointError(f"{folder}: holds no weights (model.safetensors), so it is half-written or no model.")
    tokenizer = load_tokenizer(str(folder))
    model: Any = load_model(str(folder))
    if len(tokenizer) > model.config.vocab_size:
        raise ExportError(
            [
                f"its tokenizer knows {len(tokenizer)} tokens, its model embeds {model.config.vocab_size}. Save the "
                "tokenizer that belongs to the model."
            ],
            f"{folder}: cannot be exported:",
        )
    raw = read_json(folder / "config.json")
    return Source(folder, model, tokenizer, weights, raw, HuggingFaceEngine(model, tokenizer))


def write_export(
    source: Source,
    out: Path | str,
    *,
    target: Target,
    int8: bool,
    packages: Sequence[str],
    write: Callable[[Path], Sequence[str]],
) -> Facts:
    """Write an export in one step: weights, tokenizer, export.json.

    Args:
        source: what is exported.
        out: the final place; an export of ours that stands there is replaced.
        target: the engine.
        int8: for export.json.
        packages: names of the distributions whose versions are noted.
        write: writes the engine's files into the folder it is given, and returns the names of the weight files.

    Returns:
        The content of export.json.

    Raises:
        CheckpointError: something else stands at `out`, or it cannot be written.
    """
    out = Path(out)
    if out.exists() and not (is_export(out) or (out.is_dir() and not any(out.iterdir()))):
        raise CheckpointError(f"{out}: exists and is no export of ours. Remove it, or choose another place.")
    with new_folder(out) as place:
        weights = list(write(place))
        # Its files alone may not say which class reads them, where config.json did.
        source.tokenizer.save_pretrained(place)
        load_tokenizer(str(place))
        files = {file.name: sha256_file(file) for file in sorted(place.iterdir())}
        engine = source.engine
        suppressed = getattr(source.model.generation_config, "suppress_tokens", None) or []
        facts = Facts(
            target=target,
            int8=int8,
            hash=_hash_of(files, weights),
            source_hash=source.hash,
            num_bytes=sum((place / name).stat().st_size for name in weights),
            packages={name: version(name) for name in packages},
            vocab_size=source.model.config.vocab_size,
            eos_token_ids=sorted(engine.end_ids),
            pad_token_id=engine.pad_id,
            decoder_start_token_id=engine.start_id,
            suppress_tokens=sorted({*suppressed, *source.config.get(REMOVED_ROWS, ())}),
            config=source.config,
            weights=weights,
            files=files,
        )
        write_json(place / FACTS, {"format": FORMAT, "version": VERSION, **asdict(facts)})
    return facts


def _hash_of(files: Mapping[str, str], weights: Sequence[str]) -> str:
    return hashlib.sha256("".join(f"{name}\0{files[name]}\n" for name in sorted(weights)).encode()).hexdigest()


def is_export(folder: Path | str) -> bool:
    """Whether a folder carries an export.json of ours; it may be damaged all the same."""
    try:
        content = read_json(Path(folder) / FACTS)
    except CheckpointError:
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def read_facts(folder: Path | str) -> Facts:
    """Read a folder's export.json, and nothing else.

    Args:
        folder: an exported model.

    Returns:
        Its facts.

    Raises:
        CheckpointError: there is no such folder, it is no export of ours, or another version wrote it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder.")
    if not (folder / FACTS).is_file():
        raise CheckpointError(
            f"{folder}: holds no {FACTS}, so it is no export of ours, or a half-written one. Export the model again."
        )
    content = read_json(folder / FACTS)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{folder / FACTS}: is not what Secateur writes into an export.")
    if content.get("version") != VERSION:
        found = content.get("version")
        raise CheckpointError(f"{folder / FACTS}: has version {found}; this Secateur reads {VERSION}. Export it again.")
    names = {field.name for field in fields(Facts)}
    if missing := sorted(names - set(content)):
        raise CheckpointError(f"{folder / FACTS}: damaged: lacks {', '.join(missing)}. Export the model again.")
    return Facts(**{name: content[name] for name in names})


def check_files(folder: Path | str, facts: Facts) -> None:
    """Compare a folder's files with what its export.json says of them.

    Args:
        folder: an exported model.
        facts: what `read_facts` returned.

    Raises:
        CheckpointError: files are missing or changed; all of them at once.
    """
    folder = Path(folder)
    faults = [
        f"{name} is missing" if not (folder / name).is_file() else f"{name} is damaged or changed"
        for name, digest in facts.files.items()
        if not (folder / name).is_file() or sha256_file(folder / name) != digest
    ]
    if not set(facts.weights) <= set(facts.files) or _hash_of(facts.files, facts.weights) != facts.hash:
        faults.append(f"{FACTS} contradicts itself")
    if faults:
        raise CheckpointError(
            f"{folder}: is not the export that was written: {'; '.join(faults)}. Copy it again, or export the model "
            "again."
        )


def usable_threads(threads: int | None) -> int:
    """Turn a number of threads, or None for all processors that this process may use, into a number."""
    if threads is not None:
        return threads
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
