"""The engines that exports run in, by name: write a folder for one, open a folder with the one that it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secateur.exports import ctranslate2, onnx
from secateur.exports.ctranslate2 import CTranslate2Engine
from secateur.exports.folder import Facts, read_facts, require
from secateur.exports.onnx_runner import OnnxEngine
from secateur.recipe.names import Target
from secateur.registry import choose

EXPORTERS = {"ctranslate2": ctranslate2.export_ctranslate2, "onnx": onnx.export_onnx}
LIMITS = {"ctranslate2": ctranslate2.cannot_hold, "onnx": onnx.cannot_hold}
ENGINES = {"ctranslate2": CTranslate2Engine, "onnx": OnnxEngine}
PACKAGES: dict[Target, tuple[str, ...]] = {"ctranslate2": ("ctranslate2",), "onnx": ("onnx", "onnxruntime")}


def export_model(folder: Path | str, out: Path | str, *, target: Target, int8: bool) -> Facts:
    """Write a model as a folder that another engine runs.

    Args:
        folder: a plain Hugging Face folder; for onnx a ragged one too.
        out: the final place, written in one step; an older export there is replaced.
        target: the engine.
        int8: store and multiply matrices as int8, else fp32.

    Returns:
        What export.json says.

    Raises:
        ExportError: a package is missing, or the engine cannot hold the model; all reasons at once.
        CheckpointError: the folder is foreign or damaged, or `out` cannot be written.
        AnatomyError: the model's family is unknown.
    """
    return choose(EXPORTERS, target, "export target")(folder, out, int8=int8)


def check_installed(target: Target) -> None:
    """See that an engine's packages are there, before work is put into what it will export.

    Args:
        target: the engine.

    Raises:
        ExportError: a package is not installed; the message says how to install it.
    """
    for package in PACKAGES[target]:
        require(package, extra=target)


def cannot_hold(config: Any, target: Target) -> list[str]:
    """List the reasons why an engine cannot hold a model, one sentence each.

    Args:
        config: a model's configuration.
        target: the engine.

    Returns:
        The reasons; none when it can.
    """
    return choose(LIMITS, target, "export target")(config)


def open_engine(folder: Path | str, threads: int | None = None) -> CTranslate2Engine | OnnxEngine:
    """Open an exported model with the engine that it was exported for.

    Args:
        folder: what `export_model` wrote.
        threads: processors to use; None for all that this process may use.

    Returns:
        An engine of `evaluation.engine`, which can score given targets too.

    Raises:
        CheckpointError: the folder is foreign, half-written or damaged.
        ExportError: the engine's package is not installed.
    """
    facts = read_facts(folder)
    return choose(ENGINES, facts.target, f"{folder}: export target")(folder, threads)
