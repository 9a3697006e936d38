"""Export to CTranslate2, and an engine that runs what was exported.

The converter that comes with CTranslate2 4.8 reads the model itself, and two things go wrong with transformers 5: it
scales the logits by `config.tie_word_embeddings`, which is forced to true for every T5 and mT5, and it writes no
layer-norm epsilon. Of BART and its kin it asks the configuration for settings that are not there any more, takes the
encoder's heads for the decoder's, and starts Marian from zeros where transformers starts from a token. So we fill its
specification from a model that we loaded, and reuse only its copying of the stacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secateur.anatomy.check import head_scale
from secateur.anatomy.families import FAMILIES
from secateur.anatomy.family import Family, Widths, expected, value
from secateur.anatomy.gaps import Gaps
from secateur.evaluation.engine import Generated
from secateur.exports.folder import (
    INT8_LEVELS,
    Facts,
    Source,
    check_files,
    open_source,
    read_facts,
    require,
    usable_threads,
    write_export,
)
from secateur.files import read_json

WEIGHTS = "model.bin"
VOCABULARY = "shared_vocabulary.json"
ACTIVATION_NAMES = {False: "dense_act_fn", True: "activation_function"}  # by whether norms are LayerNorms
ACTIVATIONS = (
    "gelu",
    "gelu_fast",
    "gelu_new",
    "gelu_python",
    "gelu_pytorch_tanh",
    "quick_gelu",
    "relu",
    "silu",
    "swish",
)


def cannot_hold(config: Any) -> list[str]:
    """List the reasons why CTranslate2 cannot hold a model.

    Args:
        config: a model's configuration.

    Returns:
        One full sentence each; none when it can.

    >>> from types import SimpleNamespace
    >>> cannot_hold(SimpleNamespace(model_type="bert"))
    ['it classifies, and only models that write text are exported. Families here: t5, mt5, umt5, bart, ...']
    """
    model_type = getattr(config, "model_type", None)
    writers = [name for name, family in FAMILIES.items() if family.generates]
    if model_type not in FAMILIES:
        return [f"its family is {model_type!r}. Families here: {', '.join(writers)}."]
    family = FAMILIES[model_type]
    if not family.generates:
        some = ", ".join(writers[:4])
        return [f"it classifies, and only models that write text are exported. Families here: {some}, ..."]
    reasons = []
    other = ", or export to onnx" if family.shares_bias or not family.layer_norm else ""
    if Gaps.of(config):
        reasons.append("masks removed hidden dimensions or layers that its norms leave out. Cut it first.")
    widths = Widths.of(config)
    if widths is not None and not (family.layer_norm and _is_even(widths)):
        reasons.append(
            "its layers differ in width, and CTranslate2 has one number of heads for all of a stack. Cut with width: "
            f"uniform{other}."
        )
    activation = getattr(config, ACTIVATION_NAMES[family.layer_norm])
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        reasons.append(f"its feed-forward activation is {activation!r}; CTranslate2 knows {known}.")
    d_model = value(config, family.sizes["d_model"][0], None)
    for size in _lone_heads(family, config, widths):
        if size != d_model:
            reasons.append(
                f"it has one head of {size} dimensions, and CTranslate2 takes one head to be as wide as the model "
                f"({d_model}). Keep two heads{other.replace('export to', 'use')}."
            )
    for stack, attribute in family.num_layers.items():
        if getattr(config, attribute) < 1:
            reasons.append(
                f"its {stack} has no layer, which CTranslate2 refuses to load. Keep one layer"
                f"{other.replace('export to', 'use')}."
            )
    return reasons


def _is_even(widths: Widths) -> bool:
    """Tell whether the layers of each stack are alike: in their neurons, and in the heads of all their attentions."""
    heads: dict[str, set[int]] = {}
    for key, layers in widths.heads.items():
        heads.setdefault(key.partition(".")[0], set()).update(map(len, layers))
    neurons = [set(layers) for layers in widths.neurons.values()]
    return all(len(counts) <= 1 for counts in (*heads.values(), *neurons))


def _lone_heads(family: Family, config: Any, widths: Widths | None) -> list[int]:
    """Elements of a head that is the only one of its attention, each size once."""
    if widths is not None and not family.layer_norm:
        return []  # refused already
    queries = [item for item in expected(family, config).values() if item.part == "q"]
    return sorted({item.shape[0] for item in queries if item.shape[0] == item.dims[0].size})


def export_ctranslate2(folder: Path | str, out: Path | str, *, int8: bool) -> Facts:
    """Write a model as a folder that CTranslate2 runs, without Secateur, torch or transformers.

    Args:
        folder: a Hugging Face folder of a model that writes text, of one of our families.
        out: the final place, written in one step; an older export there is replaced.
        int8: store matrices as int8 with one scale per row (the activations become int8 as the engine runs), else fp32.

    Returns:
        What export.json says.

    Raises:
        ExportError: the engine is not installed, or cannot hold the model.
        CheckpointError: the folder is foreign or damaged, or `out` cannot be written.
        AnatomyError: the model's family is unknown.
    """
    require("ctranslate2", extra="ctranslate2")
    source = open_source(folder, cannot_hold, engine="CTranslate2")
    with torch.no_grad():
        spec = _specification(source)
        spec.validate()
        spec.optimize(quantization="float32")
        if int8:
            _quantize(spec)

    def write(place: Path) -> list[str]:
        spec.save(str(place))
        return [WEIGHTS]

    return write_export(source, out, target="ctranslate2", int8=int8, packages=["ctranslate2"], write=write)


def _quantize(spec: Any) -> None:
    """Round the matrices of an engine's description to int8, as its own `optimize` does, but for the largest number."""
    specs = require("ctranslate2.specs.model_spec", extra="ctranslate2")

    def quantize(layer: Any, name: str, value: Any) -> None:
        key = name.rpartition("/")[2]
        if not isinstance(value, specs.Variable) or value.is_scalar() or not hasattr(layer, f"{key}_scale"):
            return
        matrix = value.numpy()
        largest = np.abs(matrix).max(1)
        scale = (INT8_LEVELS / np.where(largest == 0, 1.0, largest)).astype(np.float32)
        setattr(layer, key, specs.NumpyVariable(np.rint(matrix * scale[:, None]).astype(np.int8)))
        setattr(layer, f"{key}_scale", specs.NumpyVariable(scale))

    specs.visit_spec(spec, quantize)


def _specification(source: Source) -> Any:
    """Fill the engine's description of a model from a live one."""
    specs = require("ctranslate2.specs.transformer_spec", extra="ctranslate2")
    loaders = require("ctranslate2.converters.transformers", extra="ctranslate2")
    family = FAMILIES[source.model.config.model_type]
    spec = (_bart if family.layer_norm else _t5)(source.model, family, specs, loaders)
    _name_tokens(spec, source)
    return spec


def _t5(model: Any, family: Family, specs: Any, loaders: Any) -> Any:
    """Describe a T5 or its kin."""
    config = model.config
    spec = specs.TransformerSpec.from_config(
        (config.num_layers, config.num_decoder_layers),
        config.num_heads,
        activation=loaders._SUPPORTED_ACTIVATIONS[config.dense_act_fn],
        ffn_glu=config.is_gated_act,
        relative_attention_bias=True,
        rms_norm=True,
    )
    loader = loaders.T5Loader() if family.shares_bias else loaders.UMT5Loader()
    loader.set_stack(spec.encoder, model.encoder)
    loader.set_stack(spec.decoder, model.decoder, is_decoder=True)
    loader.set_linear(spec.decoder.projection, model.lm_head)
    scale = head_scale(family, config)
    if scale != 1.0:
        spec.decoder.scale_outputs = scale
    spec.config.layer_norm_epsilon = config.layer_norm_epsilon
    return spec


def _bart(model: Any, family: Family, specs: Any, loaders: Any) -> Any:
    """Describe a BART or its kin; the stacks may differ in heads and their size."""
    config, inner = model.config, model.model
    settings = {
        "pre_norm": not family.norm_last,
        "activation": loaders._SUPPORTED_ACTIVATIONS[config.activation_function],
        "layernorm_embedding": hasattr(inner.encoder, "layernorm_embedding"),
    }
    stacks = {}
    for name, kind in (("encoder", specs.TransformerEncoderSpec), ("decoder", specs.TransformerDecoderSpec)):
        layers = getattr(inner, name).layers
        stacks[name] = kind(len(layers), layers[0].self_attn.num_heads, **settings)
    spec = specs.TransformerSpec(**stacks)
    loader = loaders.BartLoader()
    loader.set_encoder(spec.encoder, inner.encoder)
    loader.set_decoder(spec.decoder, inner.decoder)
    loader.set_linear(spec.decoder.projection, model.lm_head)
    if bool(model.final_logits_bias.any()):
        spec.decoder.projection.bias = model.final_logits_bias.squeeze(0).numpy()
    for name, stack in stacks.items():
        live = getattr(inner, name)
        stack.scale_embeddings = float(getattr(live, "embed_scale", getattr(live.embed_tokens, "embed_scale", 1.0)))
        for layer, block in zip(stack.layer, live.layers, strict=True):
            layer.self_attention.queries_scale = block.self_attn.scaling  # the engine divides d_model by the heads
            if name == "decoder":
                layer.attention.queries_scale = block.encoder_attn.scaling
    spec.config.layer_norm_epsilon = inner.encoder.layers[0].final_layer_norm.eps
    return spec


def _name_tokens(spec: Any, source: Source) -> None:
    """Tell the engine the tokens' names, and which of them start and end a text."""
    tokens = vocabulary(source.tokenizer, source.model.config.vocab_size)
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    engine = source.engine
    spec.config.bos_token = tokens[engine.pad_id]
    spec.config.eos_token = tokens[min(engine.end_ids)]
    # The engine adds a token to the vocabulary when it finds no unknown token there; no id would stand for it.
    unknown = source.tokenizer.unk_token_id
    spec.config.unk_token = tokens[engine.pad_id if unknown is None else unknown]
    spec.config.decoder_start_token = tokens[engine.start_id]


def vocabulary(tokenizer: Any, vocab_size: int) -> list[str]:
    """Name every id, for an engine that is spoken to in tokens.

    Args:
        tokenizer: a Hugging Face tokenizer.
        vocab_size: rows of the embedding table; rows that no token has are named `<unused_ID>`.

    Returns:
        vocab_size names, no two alike.
    """
    names = [""] * vocab_size
    for token, index in tokenizer.get_vocab().items():
        names[index] = token
    taken = set(names)
    for index, name in enumerate(names):
        if not name:
            name = f"<unused_{index}>"
            while name in taken:
                name += "_"
            names[index] = name
            taken.add(name)
    return names


class CTranslate2Engine:
    """Writes with a model that `export_ctranslate2` wrote.

    Greedy outputs are those of transformers up to rounding. Its beam search is the engine's own: it ends a row as soon
    as `num_beams` outputs are finished, where transformers goes on while a longer one may still score higher, so that
    rows that end may differ. Both divide a finished output's log probability by its length.

    Args:
        folder: the export.
        threads: processors to use; None for all that this process may use.

    Raises:
        CheckpointError: the folder is foreign, half-written or damaged.
        ExportError: CTranslate2 is not installed.
    """

    def __init__(self, folder: Path | str, threads: int | None = None) -> None:
        folder = Path(folder)
        self.facts = read_facts(folder)
        check_files(folder, self.facts)
        ctranslate2 = require("ctranslate2", extra="ctranslate2")
        before = torch.get_num_threads()
        self._translator = ctranslate2.Translator(
            str(folder), device="cpu", inter_threads=1, intra_threads=usable_threads(threads)
        )
        # It sets OpenMP's number for this thread, which is torch's too: a training that follows would end with other
        # bits, or be slower. The translator's own threads keep theirs.
        torch.set_num_threads(before)
        self._tokens: list[str] = read_json(folder / VOCABULARY)
        self._ids = {token: index for index, token in enumerate(self._tokens)}
        self._end = [self._tokens[index] for index in self.facts.eos_token_ids]
        self._suppressed = [[self._tokens[index]] for index in self.facts.suppress_tokens] or None

    def _name(self, rows: Sequence[Sequence[int]]) -> list[list[str]]:
        return [[self._tokens[index] for index in row] for row in rows]

    def generate(
        self,
        input_ids: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        min_new_tokens: int = 0,
        num_beams: int = 1,
        return_scores: bool = False,
    ) -> list[Generated]:
        """Write one output per source; see `Engine.generate`."""
        results = self._translator.translate_batch(
            self._name(input_ids),
            beam_size=num_beams,
            length_penalty=1.0,
            max_input_length=0,  # it would cut sources at 1,024 tokens
            max_decoding_length=max_new_tokens,
            min_decoding_length=min_new_tokens,  # its own default forbids the empty output
            end_token=self._end,
            return_end_token=True,
            suppress_sequences=self._suppressed,
        )
        rows = [[self._ids[token] for token in result.hypotheses[0]] for result in results]
        scores = self.score(input_ids, rows) if return_scores else [None] * len(rows)
        written = []
        for row, score in zip(rows, scores, strict=True):
            ended = bool(row) and row[-1] in self.facts.eos_token_ids
            written.append(Generated(row[:-1] if ended else row, truncated=not ended, score=score))
        return written

    def score(self, input_ids: Sequence[Sequence[int]], target_ids: Sequence[Sequence[int]]) -> list[float]:
        """Sum the log probabilities of given targets.

        Args:
            input_ids: a batch, not padded.
            target_ids: one target per source, without the start token, with the end token where it is to count.

        Returns:
            One sum per row, in nats; nothing is suppressed.
        """
        # The engine ends every target; that step is not asked for where the target does not end.
        end = self._ids[self._end[0]]
        targets = [list(row[:-1]) if row and row[-1] == end else list(row) for row in target_ids]
        results = self._translator.score_batch(self._name(input_ids), self._name(targets), max_input_length=0)
        return [float(sum(result.log_probs[: len(row)])) for result, row in zip(results, target_ids, strict=True)]
