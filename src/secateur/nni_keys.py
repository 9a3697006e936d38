"""What an entry of NNI 3.0's config_list may say, and what each key that is none of ours is called here. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from secateur.registry import suggest

Finding = tuple[tuple[str | int, ...], str]

SELECTION = ("op_names", "op_names_re", "op_types")
EXCLUSION = ("exclude_op_names", "exclude_op_names_re", "exclude_op_types")
TARGETS = ("target_names", "target_settings")
SETTINGS = (
    "sparse_ratio",
    "sparse_threshold",
    "max_sparse_ratio",
    "min_sparse_ratio",
    "global_group_id",
    "dependency_group_id",
    "internal_metric_block",
    "granularity",
    "apply_method",
    "align",
)
KEYS = (*SELECTION, *EXCLUSION, *TARGETS, *SETTINGS)
GRANULARITIES = ("default", "out_channel", "in_channel", "per_channel")
TARGET_NAMES = ("weight", "bias")
BIAS_FOLLOWS = {"align": {"module_name": None, "target_name": "weight", "dims": (0,)}}  # NNI's default for a bias

_QUANTISES = "quantises, and this prunes. int8 is an export stage's: export: {to: ctranslate2, int8: true}."
_DISTILS = "distils, and this prunes. A train stage does it: train: {teacher: given, distillation: {hidden: 1.0}}."
_ACTIVATIONS = (
    "masks what flows through a layer, and masks here lie on weights. To remove heads or neurons by their outputs, "
    "write groups: [{unit: ffn_neuron, score: apoz, sparsity: ...}] (or unit: head, score: activation_mean); to rank "
    "rows of weights by the outputs that they give, nni_pruner: {name: activation_apoz_rank}."
)
ELSEWHERE = {
    **dict.fromkeys(("quant_dtype", "quant_scheme", "fuse_names", "quant_types", "quant_bits"), _QUANTISES),
    **dict.fromkeys(("lambda", "link"), _DISTILS),
    "sparsity": "is of NNI before 3.0. Write sparse_ratio.",
    "sparsity_per_layer": "is of NNI before 3.0. Write sparse_ratio.",
    "total_sparsity": "is of NNI before 3.0. Write sparse_ratio and global_group_id.",
    "max_sparsity_per_layer": "is of NNI before 3.0. Write max_sparse_ratio.",
    "op_partial_names": 'is of NNI before 3.0. Write op_names_re: [".*name.*"].',
    "exclude": "is of NNI before 3.0. Write exclude_op_names, exclude_op_names_re or exclude_op_types.",
}
_METHODS = {
    "bypass": "lets everything through, and no mask would act. Remove the entry.",
    "add": "adds to activations, and masks here multiply weights. Write mul, or remove it.",
    **dict.fromkeys(("movement_mul", "movement_add", "slim_mul"), "is set by the pruner. Name it as the pruner."),
    **dict.fromkeys(("clamp_round", "qat_clamp_round"), _QUANTISES),
    **dict.fromkeys(("mse", "kl"), _DISTILS),
}
_AROUND = "is a schedule around a pruner. Write {name: level, schedule: %s, interval_steps: ..., total_times: ...}."
# Names of pruners that are no presets: those of NNI before 3.0, and the two that go around another.
NO_PRESETS = {
    "agp": _AROUND % "agp",
    "linear": _AROUND % "linear",
    "lottery_ticket": "is a schedule around a pruner. Write {name: level, schedule: lottery_ticket, "
    "total_iteration: ...} and a train block in the stage.",
    "taylor_fo_weight": "is taylor since NNI 3.0.",
    "admm": "is not there. The nearest are movement, and score: obs in groups.",
    "simulated_annealing": "searches sparsities: secateur search does.",
    "auto_compress": "searches sparsities: secateur search does.",
    "amc": "searches sparsities: secateur search does.",
}
# Pruners that judge the rows of a linear layer's weight by what the layer gives, of calibration rows.
OF_OUTPUTS = ("activation_apoz_rank", "activation_mean_rank")
_ALIGN = ("module_name", "target_name", "dims")


def findings(config_list: Any) -> Iterator[Finding]:
    """Check what can be checked without the model.

    Args:
        config_list: plain values of any kind.

    Yields:
        The path, from the entry's index on, and the message of each fault.

    >>> list(findings([{"op_types": ["Linear"], "sparse_ratio": 0.5, "quant_dtype": "int8"}]))[0][0]
    (0, 'quant_dtype')
    >>> list(findings([{"op_types": ["Linear"], "sparse_ratio": 0.5}]))
    []
    """
    if not _is_list(config_list) or not config_list:
        yield (), "must be a list of at least one mapping, as NNI takes it."
        return
    for index, entry in enumerate(config_list):
        if not isinstance(entry, Mapping):
            yield (index,), f"must be a mapping, not {entry!r}. Keys here: {', '.join(KEYS)}."
            continue
        for path, message in _entry(entry):
            yield (index, *path), message


def output_findings(entry: Mapping[str, Any]) -> Iterator[Finding]:
    """Check what the pruners OF_OUTPUTS cannot read of an entry: anything but whole output channels.

    Args:
        entry: of a config_list; other faults of it are told elsewhere.

    Yields:
        The path within the entry and the message of each fault.

    >>> [path for path, _ in output_findings({"op_types": ["Linear"], "granularity": "in_channel"})]
    [('granularity',)]
    """
    own = entry.get("target_settings")
    blocks: list[tuple[tuple[str, ...], Any]] = [((), entry)]
    if isinstance(own, Mapping):
        blocks += [(("target_settings", str(target)), settings) for target, settings in own.items()]
    for where, settings in blocks:
        wanted = settings.get("granularity", "default") if isinstance(settings, Mapping) else "default"
        if wanted not in ("default", "out_channel"):
            told = "a channel's output judges the row of weights that gives it, and nothing smaller or larger."
            yield (*where, "granularity"), f"{told} Write out_channel, or remove it."


def settings_of(entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Write out what an entry asks of each target, as NNI merges it.

    A key beside `op_names` goes to every target that has it by default (a weight has all but `align`, a bias `align`
    alone); `target_settings` then add to that or change it.

    Args:
        entry: without faults.

    Returns:
        weight, bias -> key -> value; only those of `target_names`, if they are given.

    >>> settings_of({"op_types": ["Linear"], "sparse_ratio": 0.5, "target_names": ["weight"]})
    {'weight': {'sparse_ratio': 0.5}}
    """
    merged: dict[str, dict[str, Any]] = {
        "weight": {key: entry[key] for key in SETTINGS if key in entry and key != "align"},
        "bias": {"align": entry.get("align", BIAS_FOLLOWS["align"])},
    }
    for target, settings in (entry.get("target_settings") or {}).items():
        merged[target].update(settings)
    wanted = entry.get("target_names") or TARGET_NAMES
    return {target: settings for target, settings in merged.items() if target in wanted}


def _entry(entry: Mapping[str, Any]) -> Iterator[Finding]:
    yield from _unknown(entry, KEYS)
    if not any(key in entry for key in SELECTION):
        yield (), f"selects nothing: give one of {', '.join(SELECTION)}."
    for key in (*SELECTION, *EXCLUSION, "target_names"):
        if key in entry:
            yield from _texts(entry[key], key)
    for key in ("op_names_re", "exclude_op_names_re"):
        texts = entry.get(key)
        for text in texts if isinstance(texts, (list, tuple)) else ():
            if isinstance(text, str) and (trouble := _pattern_trouble(text)):
                yield (key,), f"{text!r} is no regular expression: {trouble}."
    yield from _settings(entry, ())
    yield from _targets(entry)


def _targets(entry: Mapping[str, Any]) -> Iterator[Finding]:
    """What `target_names` and `target_settings` say, and whether anything is asked for at all."""
    chosen = entry.get("target_names")
    for target in chosen if isinstance(chosen, (list, tuple)) else ():
        if isinstance(target, str) and target not in TARGET_NAMES:
            yield ("target_names",), _no_target(target)
    own = entry.get("target_settings")
    if own is None:
        own = {}
    if not isinstance(own, Mapping):
        yield ("target_settings",), f"must be a mapping from weight or bias to settings, not {own!r}."
        return
    for target, settings in own.items():
        where = ("target_settings", target)
        if target not in TARGET_NAMES:
            yield where, _no_target(target)
        elif _is_list(chosen) and chosen and target not in chosen:
            yield where, f"cannot act: target_names leave {target} out. Add it there, or remove this."
        elif not isinstance(settings, Mapping):
            yield where, f"must be a mapping of settings, not {settings!r}."
        else:
            yield from (((*where, *path), text) for path, text in _unknown(settings, SETTINGS))
            yield from _settings(settings, where)
    blocks = [entry, *(settings for settings in own.values() if isinstance(settings, Mapping))]
    if not any(key in block for block in blocks for key in ("sparse_ratio", "sparse_threshold", "align")):
        yield (), "asks for nothing: give sparse_ratio, sparse_threshold or align."


def _unknown(values: Mapping[str, Any], known: Sequence[str]) -> Iterator[Finding]:
    for key in values:
        if key in ELSEWHERE:
            yield (key,), ELSEWHERE[key]
        elif key not in known:
            yield (key,), f"unknown key. {suggest(str(key), known)}Keys here: {', '.join(known)}."


def _no_target(target: Any) -> str:
    if isinstance(target, str) and target.startswith(("_input_", "_output_")):
        return f"{target} {_ACTIVATIONS}"
    return f"no {target!r}. Choices: {', '.join(TARGET_NAMES)}."


def _texts(value: Any, key: str) -> Iterator[Finding]:
    if not _is_list(value) or not all(isinstance(text, str) for text in value):
        yield (key,), f"must be a list of texts, not {value!r}."
    elif not value:
        yield (key,), "is empty. Remove it."


def _settings(values: Mapping[str, Any], where: tuple[str, ...]) -> Iterator[Finding]:
    """What the settings of one target, or of all, say."""
    for key in ("sparse_ratio", "max_sparse_ratio", "min_sparse_ratio"):
        value = values.get(key)
        if value is not None and not (_is_number(value) and 0 <= value <= 1):
            yield (*where, key), f"must be a share from 0 to below 1, not {value!r}."
        elif value == 1 and key != "max_sparse_ratio":
            yield (*where, key), "1 leaves nothing. Cut layers instead: groups: [{unit: layer, ...}] and a cut stage."
        elif value == 0 and key == "max_sparse_ratio":
            yield (*where, key), "0 lets nothing go. Exclude the modules instead: exclude_op_names."
    ratio, threshold = values.get("sparse_ratio"), values.get("sparse_threshold")
    if threshold is not None and not _is_number(threshold):
        yield (*where, "sparse_threshold"), f"must be a number, not {threshold!r}."
    if ratio is not None and threshold is not None:
        yield (*where, "sparse_threshold"), "and sparse_ratio exclude each other. Keep one."
    least, most = values.get("min_sparse_ratio"), values.get("max_sparse_ratio")
    if least is not None and most is not None and _is_number(least) and _is_number(most) and least > most:
        yield (*where, "min_sparse_ratio"), f"{least:g} is above max_sparse_ratio, {most:g}."
    yield from _groups(values, where)
    yield from _granularity(values, where)
    method = values.get("apply_method")
    if method not in (None, "mul"):
        told = _METHODS.get(method) if isinstance(method, str) else None
        yield (*where, "apply_method"), f"{method} {told}" if told else f"no {method!r}. There is mul."
    if values.get("align") is not None:
        yield from _align(values["align"], (*where, "align"))


def _groups(values: Mapping[str, Any], where: tuple[str, ...]) -> Iterator[Finding]:
    for key in ("global_group_id", "dependency_group_id"):
        value = values.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, str))):
            yield (*where, key), f"must be a whole number or a text, not {value!r}."
        elif value is not None and values.get("sparse_threshold") is not None:
            yield (*where, key), "cannot act beside sparse_threshold: NNI multiplies two masks there. Keep one."
    bundle = values.get("dependency_group_id")
    if bundle is not None and values.get("global_group_id") is not None:
        yield (*where, "global_group_id"), "cannot act: NNI's code forgets it beside dependency_group_id. Keep one."
    for key in ("min_sparse_ratio", "max_sparse_ratio"):
        if bundle is not None and values.get(key) is not None:
            yield (*where, key), "cannot act: NNI's code forgets it beside dependency_group_id. Remove it."
    parts = values.get("internal_metric_block")
    if parts is not None and (isinstance(parts, bool) or not isinstance(parts, int) or parts < 1):
        yield (*where, "internal_metric_block"), f"must be a whole number from 1 on, not {parts!r}."
    elif parts is not None and bundle is None:
        yield (*where, "internal_metric_block"), "cannot act without dependency_group_id. Remove it."


def _granularity(values: Mapping[str, Any], where: tuple[str, ...]) -> Iterator[Finding]:
    value, path = values.get("granularity"), (*where, "granularity")
    if value is None or value in GRANULARITIES[:3]:
        return
    if value == "per_channel":
        yield path, "per_channel is for what flows through a layer; NNI refuses it for weights. Write out_channel."
    elif isinstance(value, str):
        yield path, f"no {value!r}. {suggest(value, GRANULARITIES)}Choices: {', '.join(GRANULARITIES)}, or [r, c]."
    elif not _is_list(value) or not value or not all(_is_size(item) for item in _kernel(value)[0]):
        yield path, f"must be a word or a list of block sizes such as [64, 64] (-1: the whole of it), not {value!r}."
    elif _kernel(value)[1] not in ("front", "back") or not _is_size(_kernel(value)[2]):
        yield path, f"must be [[sizes], front or back, the size to fill up with], not {value!r}."


def _kernel(value: Sequence[Any]) -> tuple[Sequence[Any], Any, Any]:
    """Take a list granularity apart: sizes, at which end the missing ones go, and what they are."""
    if not _is_list(value[0]):
        return value, "front", 1
    side = value[1] if len(value) > 1 else None
    filling = value[2] if len(value) > 2 else None
    return value[0] or ("",), side or "front", filling or 1


def block_of(granularity: Any, shape: Sequence[int]) -> tuple[int, ...] | None:
    """Turn a granularity into the block of a tensor that is removed at once.

    Args:
        granularity: without faults; not "default".
        shape: of the tensor.

    Returns:
        A size for each dimension of a tensor that has at least `rank_of` of them; None for single elements.

    >>> [block_of(granularity, (4, 6)) for granularity in ("out_channel", "in_channel", [2, -1], [2])]
    [(1, 6), (4, 1), (2, 6), (1, 2)]
    """
    if granularity is None:
        return None
    words = {"out_channel": ((1,), "back", -1), "in_channel": ((-1, 1), "back", -1)}
    sizes, side, filling = words[granularity] if isinstance(granularity, str) else _kernel(granularity)
    missing = (filling,) * (len(shape) - len(sizes))
    full = (*missing, *sizes) if side == "front" else (*sizes, *missing)
    return tuple(whole if size == -1 else size for size, whole in zip(full, shape, strict=False))


def rank_of(granularity: Any) -> int:
    """Count the dimensions that a granularity names: a tensor needs as many.

    >>> rank_of("in_channel"), rank_of([8]), rank_of(None)
    (2, 1, 0)
    """
    if granularity is None:
        return 0
    if isinstance(granularity, str):
        return {"in_channel": 2}.get(granularity, 1)
    return len(_kernel(granularity)[0])


def _align(value: Any, where: tuple[str, ...]) -> Iterator[Finding]:
    if not isinstance(value, Mapping) or set(value) != set(_ALIGN):
        yield where, f"must be a mapping with {', '.join(_ALIGN)}, not {value!r}."
        return
    if value["module_name"] is not None and not isinstance(value["module_name"], str):
        yield (*where, "module_name"), f"must be a module's name or null, not {value['module_name']!r}."
    if value["target_name"] not in TARGET_NAMES:
        yield (*where, "target_name"), _no_target(value["target_name"])
    dims = value["dims"]
    if not _is_list(dims) or not dims or not all(isinstance(dim, int) and not isinstance(dim, bool) for dim in dims):
        yield (*where, "dims"), f"must be a list of dimensions such as [0], not {dims!r}."


def _pattern_trouble(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        return str(error)
    return ""


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and (value == -1 or value > 0)
