"""Models as folders: a plain one that transformers loads, and what is needed beside it to go on training exactly."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)

from secateur.anatomy.check import family_of
from secateur.anatomy.families import FAMILIES
from secateur.anatomy.family import REMOVED_ROWS, WIDTHS
from secateur.anatomy.gaps import GAPS, Gaps, gaps_of, leave_out, narrow, widen
from secateur.anatomy.ragged import shape_ragged
from secateur.anatomy.stored import aliases, read_config
from secateur.errors import CheckpointError
from secateur.files import new_folder, read_json, sha256_file, write_json
from secateur.masks.mask import MaskSet
from secateur.masks.tie import HEAD, is_tied, table_of, untie
from secateur.quiet import quiet_transformers
from secateur.tasks.labels import name_labels

UNFOLDED = "head.safetensors"  # the head before the scale was folded into it; beside model/, only where that lost bits
WEIGHTS = "model/model.safetensors"
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.spm")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_model(
    path: str, *, trust_remote_code: bool = False, labels: Sequence[str] | None = None, seed: int = 0
) -> PreTrainedModel:
    """Load a checkpoint with fp32 weights, whatever dtype the file holds.

    Args:
        path: a hub id or a Hugging Face folder.
        trust_remote_code: whether code that comes with the checkpoint may run.
        labels: classes that a new head is made for, in the place of the checkpoint's own, if it has one; None: as the
            checkpoint is.
        seed: of a new head's weights.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        CheckpointError: no such model, or its files are damaged or incomplete.
        AnatomyError: it is of one of our families, and its configuration says what their rules do not understand.
    """
    if own := _load_own(path, trust_remote_code=trust_remote_code):
        if labels is not None:
            raise CheckpointError(f"{path}: was cut, and cannot get a new head. Start from the model before the cut.")
        return own
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
            if config.model_type in FAMILIES:
                family_of(config, where=path)
            if labels is not None:
                name_labels(config, labels)
            model, report = auto_class(config).from_pretrained(
                path,
                config=config,
                dtype=torch.float32,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below, by name
            )
    except (OSError, ValueError, RuntimeError, SafetensorError, KeyError, EOFError) as error:
        raise CheckpointError(f"{path}: the model cannot be loaded: {_first_line(error)}. {_AGAIN}") from error
    fresh = set() if labels is None else renew_head(model, seed=seed)
    unlike = [
        f"{key} has shape {list(found)}, not {list(told)}"
        for key, found, told in report["mismatched_keys"]
        if key not in fresh
    ]
    missing = [f"{key} is missing" for key in sorted(report["missing_keys"]) if key not in fresh]
    unknown = [
        f"{key} has no place"
        for key in sorted(report["unexpected_keys"])
        if not key.endswith(NEEDLESS) and (labels is None or _is_of_encoder(model, key))
    ]
    if faults := [*missing, *unlike, *unknown]:
        more = f", and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(
            f"{path}: the weights are not those of config.json: {', '.join(faults[:5])}{more}. {_AGAIN}"
        )
    return model


def auto_class(config: Any) -> Any:
    """Name the class of transformers that loads a configuration's model: what writes text, or what classifies it."""
    family = FAMILIES.get(config.model_type)
    return AutoModelForSeq2SeqLM if family is None or family.generates else AutoModelForSequenceClassification


def renew_head(model: Any, *, seed: int) -> set[str]:
    """Draw the weights of a classifier's head anew: what stands behind its encoder.

    Args:
        model: changed in place.
        seed: decides the weights, which have the spread that the configuration says; biases are 0.

    Returns:
        The names of the parameters.
    """
    drawn, fresh = torch.Generator().manual_seed(seed), set()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(f"{model.base_model_prefix}."):
                continue
            spread = model.config.initializer_range if parameter.ndim > 1 else 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=drawn) * spread)
            fresh.add(name)
    return fresh


def _is_of_encoder(model: Any, key: str) -> bool:
    """Whether a file's tensor belongs to the encoder, and not to a head that a new one replaces."""
    name = key.removeprefix(f"{model.base_model_prefix}.")
    parts = {child for child, _ in model.base_model.named_children()}
    return name.partition(".")[0] in parts and not name.endswith("position_ids")


_AGAIN = "Copy the folder again, or make it anew."
# What files of the T5 family hold beside the weights: other names of the shared table, and what old versions learned.
NEEDLESS = ("embed_tokens.weight", "lm_head.weight", "EncDecAttention.relative_attention_bias.weight")


def _load_own(path: str, *, trust_remote_code: bool) -> PreTrainedModel | None:
    """Load a folder of ours that transformers cannot: of widths of its own, or with gaps; None for any other."""
    file = Path(path) / "config.json"
    if not file.is_file() or not isinstance(raw := read_json(file), dict) or not {WIDTHS, GAPS} & set(raw):
        return None
    try:
        state = load_file(Path(path) / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: the model cannot be loaded: {_first_line(error)}. {_AGAIN}") from error
    own_head = read_config(path, trust_remote_code=trust_remote_code)[1].get("tie_word_embeddings") is False
    if not own_head:
        state.pop(HEAD, None)
    return fill_model(path, state, own_head=own_head, trust_remote_code=trust_remote_code)


def fill_model(
    path: str, state: Mapping[str, torch.Tensor], *, own_head: bool, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Make the model that a configuration describes, with weights from elsewhere.

    Args:
        path: a hub id or a folder with config.json; its weights are not read.
        state: every parameter under the first name of its tensor; copied into fp32.
        own_head: whether the head is a table of its own, whatever the configuration says; it is then in `state`.
        trust_remote_code: whether code that comes with the configuration may run.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        CheckpointError: names or shapes are not those of the configuration.
    """
    config, raw = read_config(path, trust_remote_code=trust_remote_code)
    model = _empty(config, raw)
    if own_head:
        untie(model)
    gaps = Gaps.of(config)
    _fill(model, widen(dict(state), model, gaps), path)
    leave_out(model, gaps)
    if not Path(path).is_dir() or (Path(path) / "generation_config.json").exists():
        with suppress(OSError):  # a hub id may have none
            model.generation_config = GenerationConfig.from_pretrained(path)
    return model.eval()


def _empty(config: Any, raw: dict[str, Any]) -> Any:
    """Make a model whose weights are about to be loaded, each layer as wide as it is."""
    if "scale_decoder_outputs" in raw:
        config.scale_decoder_outputs = raw["scale_decoder_outputs"]
    with torch.random.fork_rng():
        model = auto_class(config).from_config(config, dtype=torch.float32)
    shape_ragged(model)
    return model


def _fill(model: nn.Module, state: Mapping[str, torch.Tensor], place: Path | str) -> None:
    """Copy weights into a model; every one must be there, and no other."""
    # Parameters, each once, and the buffers that are saved.
    every = model.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in reversed(list(every.items()))}
    names = {name: every[name] for name in first.values()}
    if set(state) != set(names):
        odd = ", ".join(sorted(set(state) ^ set(names))[:5])
        raise CheckpointError(f"{place}: holds other parameters than its configuration says: {odd}. {_AGAIN}")
    with torch.no_grad():
        for name, parameter in names.items():
            if parameter.shape != state[name].shape:
                shapes = f"{list(state[name].shape)}, the configuration says {list(parameter.shape)}"
                raise CheckpointError(f"{place}: {name} has shape {shapes}.")
            parameter.copy_(state[name])


def random_model(
    path: str, *, seed: int, trust_remote_code: bool = False, labels: Sequence[str] | None = None
) -> PreTrainedModel:
    """Initialise a model from a configuration.

    Args:
        path: a hub id or a folder with config.json.
        seed: of torch's generator, whose state is restored afterwards.
        trust_remote_code: whether code that comes with the configuration may run.
        labels: classes that its head is made for; None: those of the configuration.

    Returns:
        The model, fp32, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: there is no such configuration.
    """
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no configuration there: {_first_line(error)}") from error
    if hasattr(config, WIDTHS):
        raise CheckpointError(f"{path}: is ragged, and a model that starts at random must be plain: every layer alike.")
    if labels is not None:
        name_labels(config, labels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return auto_class(config).from_config(config, dtype=torch.float32).eval()


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer that stands with a model.

    Args:
        path: a hub id or a Hugging Face folder.
        trust_remote_code: whether code that comes with it may run.

    Returns:
        A tokenizer of transformers.

    Raises:
        CheckpointError: there is none.
    """
    folder = Path(path)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
        # transformers 5 would make one up: a T5 tokenizer that knows no word.
        raise CheckpointError(
            f"{path}: holds no tokenizer. Save the model's tokenizer there with tokenizer.save_pretrained."
        )
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise CheckpointError(
            f"{path}: holds no tokenizer that can be loaded ({_first_line(error)}). Save the model's tokenizer there "
            "with tokenizer.save_pretrained."
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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
        raise CheckpointError(f"{folder}: cannot be written: {_first_line(error)}. Free space and resume.") from error


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
        from safetensors.torch import save

        from secateur.files import write_bytes

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
    model = _empty(config, facts["config"])
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
    _fill(model, widen(state, model, gaps), place)
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
