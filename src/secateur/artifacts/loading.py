"""Models and tokenizers from folders: what transformers can load, what only we can, and what starts at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
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
from secateur.anatomy.family import WIDTHS
from secateur.anatomy.gaps import GAPS, Gaps, leave_out, widen
from secateur.anatomy.ragged import shape_ragged
from secateur.anatomy.stored import read_config
from secateur.errors import CheckpointError
from secateur.files import read_json
from secateur.masks.tie import HEAD, untie
from secateur.quiet import quiet_transformers
from secateur.tasks.labels import name_labels

TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.spm")
# What files of the T5 family hold beside the weights: other names of the shared table, and what old versions learned.
NEEDLESS = ("embed_tokens.weight", "lm_head.weight", "EncDecAttention.relative_attention_bias.weight")
_AGAIN = "Copy the folder again, or make it anew."


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
        raise CheckpointError(f"{path}: the model cannot be loaded: {first_line(error)}. {_AGAIN}") from error
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


def _load_own(path: str, *, trust_remote_code: bool) -> PreTrainedModel | None:
    """Load a folder of ours that transformers cannot: of widths of its own, or with gaps; None for any other."""
    file = Path(path) / "config.json"
    if not file.is_file() or not isinstance(raw := read_json(file), dict) or not {WIDTHS, GAPS} & set(raw):
        return None
    try:
        state = load_file(Path(path) / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: the model cannot be loaded: {first_line(error)}. {_AGAIN}") from error
    own_head = read_config(path, trust_remote_code=trust_remote_code)[1].get("tie_word_embeddings") is False
    if not own_head:
        state.pop(HEAD, None)
    return fill_model(path, state, own_head=own_head, trust_remote_code=trust_remote_code)


def fill_model(
    path: str,
    state: Mapping[str, torch.Tensor],
    *,
    own_head: bool,
    buffers: Mapping[str, torch.Tensor] | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Make the model that a configuration describes, with weights from elsewhere.

    Args:
        path: a hub id or a folder with config.json; its weights are not read.
        state: every parameter under the first name of its tensor; copied into fp32.
        own_head: whether the head is a table of its own, whatever the configuration says; it is then in `state`.
        buffers: what the family saves beside its parameters; what is missing there is 0. None: it is in `state`.
        trust_remote_code: whether code that comes with the configuration may run.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        CheckpointError: names or shapes are not those of the configuration.
    """
    config, raw = read_config(path, trust_remote_code=trust_remote_code)
    model = empty_model(config, raw)
    if own_head:
        untie(model)
    gaps = Gaps.of(config)
    if buffers is not None:
        own = dict(model.named_buffers())
        missing = {name: torch.zeros_like(own[name]) for name in FAMILIES[config.model_type].row_buffers}
        state = {**missing, **buffers, **state}
    fill_parameters(model, widen(dict(state), model, gaps), path)
    leave_out(model, gaps)
    if not Path(path).is_dir() or (Path(path) / "generation_config.json").exists():
        with suppress(OSError):  # a hub id may have none
            model.generation_config = GenerationConfig.from_pretrained(path)
    return model.eval()


def empty_model(config: Any, raw: dict[str, Any]) -> Any:
    """Make a model whose weights are about to be loaded, each layer as wide as it is.

    Args:
        config: of the model.
        raw: its content on disk, which may say what the configuration class forgets.

    Returns:
        The model, fp32, with weights that mean nothing.
    """
    if "scale_decoder_outputs" in raw:
        config.scale_decoder_outputs = raw["scale_decoder_outputs"]
    with torch.random.fork_rng():
        model = auto_class(config).from_config(config, dtype=torch.float32)
    shape_ragged(model)
    return model


def fill_parameters(model: nn.Module, state: Mapping[str, torch.Tensor], place: Path | str) -> None:
    """Copy weights into a model; every one must be there, and no other.

    Args:
        model: changed in place.
        state: every parameter, and every buffer that is saved, under the first name of its tensor.
        place: where they are from, for the message.

    Raises:
        CheckpointError: names or shapes are not the model's.
    """
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
        raise CheckpointError(f"{path}: no configuration there: {first_line(error)}") from error
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
            f"{path}: holds no tokenizer that can be loaded ({first_line(error)}). Save the model's tokenizer there "
            "with tokenizer.save_pretrained."
        ) from error


def first_line(error: BaseException) -> str:
    r"""Take the first line of an error's message, or its kind where it has none.

    >>> first_line(ValueError("no such key\nmore")), first_line(KeyError())
    ('no such key', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
