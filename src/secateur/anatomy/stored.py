"""Read about a model on disk without its weights: its configuration, and whether its head is a tensor of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.anatomy.families import FAMILIES
from secateur.anatomy.family import Family
from secateur.anatomy.fit import misfits, unknown_family
from secateur.errors import AnatomyError, CheckpointError
from secateur.files import read_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_HEAD = "lm_head.weight"


def config_file(model: str) -> Path:
    """Find the config.json of a folder, or fetch that of a hub id.

    Args:
        model: either.

    Returns:
        Where it is; a folder may lack it.

    Raises:
        CheckpointError: there is no such model.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder / "config.json"
    if folder.exists():
        raise CheckpointError(f"{model}: is a file. Give the folder that holds config.json and the weights.")
    if model.startswith((".", "/", "~")) or model.endswith("/") or model.count("/") > 1:
        raise CheckpointError(f"{model}: no such folder. In a recipe its path counts from the recipe's folder.")
    from transformers.utils.hub import cached_file

    try:
        file = cached_file(model, "config.json")
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{model}: no such folder here, and the hub did not give a model of that name ({reason}). "
            "Check the spelling or the connection, or give a local folder."
        ) from error
    assert file is not None  # cached_file raises for missing files unless told otherwise
    return Path(file)


def read_config(folder: str, *, trust_remote_code: bool = False) -> tuple[PretrainedConfig, dict[str, Any]]:
    """Read a model's configuration, and nothing of its weights but their names.

    Args:
        folder: a Hugging Face folder, or a hub id, of which only config.json is fetched.
        trust_remote_code: whether a configuration class that comes with the model may be run.

    Returns:
        The configuration, and the content of config.json, in which `tie_word_embeddings` says what the safetensors
        beside it say, when there are any: files written by transformers 5 tell it wrongly or not at all.

    Raises:
        CheckpointError: there is no such model, or its files cannot be read.
        AnatomyError: its family is unknown, or the configuration says what its rules do not understand.
    """
    file = config_file(str(folder))
    raw = read_json(file)
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file}: holds a {type(raw).__name__}, not the keys of a model's configuration.")
    if raw.get("model_type") not in FAMILIES:
        raise unknown_family(raw.get("model_type"), FAMILIES, where=str(file))
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(file.parent, trust_remote_code=trust_remote_code)
    except Exception as error:  # the strict classes raise several kinds, none of them ours
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{file}: is not a configuration of a {raw['model_type']} model: {reason}") from error
    if faults := misfits(FAMILIES[raw["model_type"]], config):
        raise AnatomyError(faults, f"{file}: no {raw['model_type']} model that is understood here:")
    tied = _stored_tie_of(file.parent, FAMILIES[raw["model_type"]])
    return config, raw if tied is None else raw | {"tie_word_embeddings": tied}


def aliases(family: Family) -> tuple[str, ...]:
    """Name the words' table of a family as its stacks do."""
    found = [rule.path.format(stack=stack) for rule in family.rules if rule.part == "table" for stack in rule.stacks]
    return tuple(found)


def _stored_tie_of(folder: Path, family: Family) -> bool | None:
    return stored_tie(folder, (family.table, *aliases(family))) if family.has_head else None


def stored_tie(folder: Path | str, tables: Sequence[str]) -> bool | None:
    """Tell from a folder's safetensors whether loading them ties the head to the embedding table.

    transformers ties two tables that it finds in a file only when their values are equal.

    Args:
        folder: a Hugging Face folder.
        tables: the names of the table.

    Returns:
        True or False; None when the folder's files do not tell.

    Raises:
        CheckpointError: a weight file is damaged.
    """
    folder = Path(folder)
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        files = {name: folder / file for name, file in dict(read_json(index).get("weight_map", {})).items()}
    elif single.is_file():
        files = dict.fromkeys(_tensor_names(single), single)
    else:
        return None
    tables = [name for name in tables if name in files]
    if _HEAD not in files or not tables:
        return True if tables or _HEAD in files else None
    if not (files[_HEAD].is_file() and files[tables[0]].is_file()):
        return None  # the hub's cache may hold an index without its weights
    return _equal(files[_HEAD], _HEAD, files[tables[0]], tables[0])


def _tensor_names(file: Path) -> list[str]:
    """List the tensors of a safetensors file: from its header alone, whose length is its first 8 bytes."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > file.stat().st_size:
                raise ValueError("its header is longer than the file")
            return [name for name in json.loads(stream.read(length)) if name != "__metadata__"]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read as safetensors: {error}. Write or fetch it again.") from error


def _equal(head_file: Path, head: str, table_file: Path, table: str) -> bool:
    """Tell whether two stored matrices hold the same values; the first rows nearly always settle it."""
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(head_file, "pt") as heads, safe_open(table_file, "pt") as tables:
            first, second = heads.get_slice(head), tables.get_slice(table)
            if first.get_shape() != second.get_shape() or not torch.equal(first[:1], second[:1]):
                return False
            return torch.equal(first[:], second[:])
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{table_file}: cannot be read as safetensors: {error}. Write or fetch it again."
        ) from error
