"""Models as folders: a plain one that transformers loads, and what is needed beside it to go on training exactly."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save, save_file
from torch import nn
from transformers import AutoConfig, GenerationConfig

from secateur.anatomy.families import FAMILIES
from secateur.anatomy.family import REMOVED_ROWS
from secateur.anatomy.gaps import GAPS, Gaps, gaps_of, narrow, widen
from secateur.anatomy.stored import aliases
from secateur.artifacts.loading import empty_model, fill_parameters, first_line
from secateur.errors import CheckpointError
from secateur.files import new_folder, read_json, sha256_file, write_bytes, write_json
from secateur.masks.mask import MaskSet
from secateur.masks.tie import HEAD, is_tied, table_of, untie
from secateur.quiet import quiet_transformers

UNFOLDED = "head.safetensors"  # the head before the scale was folded into it; beside model/, only where that lost bits
WEIGHTS = "model/model.safetensors"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def round_weights(model: nn.Module, dtype: str) -> None:
    """Round fp32 weights to what another dtype can hold; they stay fp32 tensors.

    Args:
        model: changed in place.
        dtype: fp32 (nothing happens), bf16 or fp16.
    """
    if dtype == "fp32":
        return
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(DTYPES[dtype]))


def _head_is_own(model: Any) -> bool:
    return FAMILIES[model.config.model_type].has_head and not is_tied(model)


def folds(config: Any) -> bool:
    """Whether the scale before the head must go into a head of its own: T5 alone reads it from the tie when it loads.

    Args:
        config: of the model.

    Returns:
        True where such a head is stored times d_model^-0.5.
    """
    return config.model_type == "t5" and bool(getattr(config, "scale_decoder_outputs", False))


def mark_own_head(raw: dict[str, Any], model_type: str) -> None:
    """Write into a config.json's content that the head is a table of its own, and that T5's scale is in it.

    Args:
        raw: the content, changed.
        model_type: of the configuration.
    """
    raw["tie_word_embeddings"] = False
    if model_type == "t5":
        raw["scale_decoder_outputs"] = False


def stored_dtype(folder: Path) -> str:
    """Tell what a folder stores its weights as.

    Args:
        folder: a Hugging Face folder.

    Returns:
        bf16 or fp16, where all floating-point tensors of its safetensors files are; fp32 for all others.
    """
    found: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            found |= {opened.get_slice(name).get_dtype() for name in opened.offset_keys()}
    floats = {name for name in found if "F" in name}
    return {"BF16": "bf16", "F16": "fp16"}.get(floats.pop(), "fp32") if len(floats) == 1 else "fp32"


def save_plain(model: Any, tokenizer: Any, folder: Path, *, masks: MaskSet, dtype: str = "fp32") -> None:
    """Write a folder that plain `from_pretrained` of transformers loads, zeros and all.

    A head that is masked through a view of the shared table becomes a table of its own, and a T5 head of its own takes
    the factor d_model^-0.5 that the model applies before it (the logits differ by rounding only). Both
    `tie_word_embeddings` and `scale_decoder_outputs` are then written as false, because the configuration class of
    transformers 5 forces the first to true and earlier versions read the second from it. Two kinds of models need
    `secateur.load` instead, and plain transformers refuses them for their shapes: those of widths that its
    configurations cannot say, and those with gaps (see `anatomy.gaps`), until they are cut.

    Args:
        model: live, masks attached.
        tokenizer: goes into the same folder.
        folder: final place; a folder that stands there is replaced in one step.
        masks: the live masks.
        dtype: what the weights are stored as: fp32, bf16 or fp16.

    Raises:
        CheckpointError: the place cannot be written.
    """
    own_head = masks.modes.get(HEAD) == "view" or _head_is_own(model)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for alias in aliases(FAMILIES[model.config.model_type]):
        state.pop(alias, None)
    if own_head:
        head = state[HEAD]
        if masks.modes.get(HEAD) == "view":
            head = head * masks.masks[HEAD].to(head.device)
        state[HEAD] = head * model.config.d_model**-0.5 if folds(model.config) else head
    else:
        state.pop(HEAD, None)
    gaps = gaps_of(model)
    state = narrow({name: tensor.to("cpu", DTYPES[dtype]) for name, tensor in state.items()}, model, gaps)
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    try:
        with new_folder(folder) as place, quiet_transformers():
            save_file(state, place / "model.safetensors", metadata={"format": "pt"})
            _save_config(model, place, own_head=own_head, dtype=dtype, gone=_gone_rows(model, masks))
            tokenizer.save_pretrained(place)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be written: {first_line(error)}. Free space and resume.") from error


def _gone_rows(model: Any, masks: MaskSet) -> list[int]:
    """List the tokens whose rows masks remove from every table: their logits are 0, which may be the highest."""
    tables = [masks.masks.get(table_of(model))]
    if _head_is_own(model):  # a view shows no row that the table has lost
        tables.append(masks.masks.get(HEAD))
    gone = [None if mask is None else ~mask.cpu().any(1) for mask in tables]
    if any(rows is None for rows in gone):
        return []
    return torch.stack([rows for rows in gone if rows is not None]).all(0).nonzero().flatten().tolist()


def _save_config(model: Any, place: Path, *, own_head: bool, dtype: str, gone: list[int]) -> None:
    model.config.save_pretrained(place)
    if getattr(model, "generation_config", None) is not None and model.can_generate():
        settings = copy.deepcopy(model.generation_config)
        settings.suppress_tokens = sorted({*(settings.suppress_tokens or []), *gone}) or None
        settings.save_pretrained(place)
    raw = read_json(place / "config.json")
    raw.pop(REMOVED_ROWS, None)
    raw.pop(GAPS, None)
    if gaps := gaps_of(model):
        raw[GAPS] = gaps.as_json()
    if gone:
        raw[REMOVED_ROWS] = gone
    raw["dtype"] = str(DTYPES[dtype]).removeprefix("torch.")
    raw["architectures"] = [type(model).__name__]
    if own_head and not FAMILIES[model.config.model_type].tie_covers_stacks:
        mark_own_head(raw, model.config.model_type)
    write_json(place / "config.json", dict(sorted(raw.items())))


def save_live(model: Any, stage_folder: Path, *, masks: MaskSet) -> dict[str, Any]:
    """Write what `load_live` needs beside a stage's plain model.

    Args:
        model: live, as `save_plain` was given it, weights in fp32.
        stage_folder: where model/ stands.
        masks: the live masks; written as masks.safetensors.

    Returns:
        JSON-ready facts for stage.json.

    Raises:
        CheckpointError: the place cannot be written.
    """
    masks.save(stage_folder / "masks.safetensors")
    own_head = _head_is_own(model)
    if own_head and folds(model.config):
        write_bytes(stage_folder / UNFOLDED, save({HEAD: model.get_parameter(HEAD).detach().cpu().contiguous()}))
    hashes = {name: sha256_file(stage_folder / name) for name in (WEIGHTS, UNFOLDED) if (stage_folder / name).exists()}
    return {"config": model.config.to_dict(), "own_head": own_head, "hashes": hashes}


def load_live(stage_folder: Path, facts: dict[str, Any], *, trust_remote_code: bool = False) -> tuple[Any, MaskSet]:
    """Load the model of a finished stage exactly as it was in memory, masks not yet attached.

    Args:
        stage_folder: a stage of a run.
        facts: what `save_live` returned.
        trust_remote_code: whether code that comes with the model may run.

    Returns:
        The model (fp32; tied or not as it was), and the masks that belong to it.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    place = stage_folder / "model"
    config = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
    # tie_word_embeddings stays true, as the configuration class forces it: without it the stacks' embeddings would not
    # be tied to the table either. An own head is untied below.
    model = empty_model(config, facts["config"])
    gaps = Gaps.of(config)
    if (place / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(place)
    if facts["own_head"]:
        untie(model)
    hashes = facts["hashes"]
    state = _read_tensors(stage_folder, WEIGHTS, hashes)
    masks = MaskSet.load(stage_folder / "masks.safetensors", owner=None)
    if masks.modes.get(HEAD) == "view":
        state.pop(HEAD, None)  # a view is made of the table and the mask; the plain folder's head is its product
    if (stage_folder / UNFOLDED).exists():
        state.update(_read_tensors(stage_folder, UNFOLDED, hashes))
    fill_parameters(model, widen(state, model, gaps), place)
    return model.eval(), masks


def _read_tensors(folder: Path, name: str, hashes: dict[str, str]) -> dict[str, torch.Tensor]:
    file = folder / name
    try:
        if sha256_file(file) != hashes.get(name):  # safetensors has no checksum of its own
            raise CheckpointError(f"{file}: damaged: not the bytes that the run wrote. Start it anew with --overwrite.")
        return load_file(file)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file}: no such file, so the run cannot go on. Start it anew with --overwrite."
        ) from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: damaged: {error}. Start the run anew with --overwrite.") from error
