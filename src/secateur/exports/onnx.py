"""Export to ONNX Runtime: which models it can hold, and the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secateur.anatomy.families import FAMILIES
from secateur.exports.folder import Facts, open_source, require, write_export
from secateur.exports.onnx_graph import write_graphs
from secateur.exports.onnx_nodes import ACTIVATIONS


def cannot_hold(config: Any) -> list[str]:
    """List the reasons why our ONNX graphs cannot hold a model; layers of different widths are none.

    Args:
        config: a model's configuration.

    Returns:
        One full sentence each; none when they can.

    >>> from types import SimpleNamespace
    >>> cannot_hold(SimpleNamespace(model_type="t5", dense_act_fn="tanh"))[0][:42]
    "its feed-forward activation is 'tanh'; our"
    """
    model_type = getattr(config, "model_type", None)
    if model_type not in FAMILIES:
        return [f"its family is {model_type!r}. Families here: {', '.join(FAMILIES)}."]
    if not FAMILIES[model_type].generates:
        return ["it classifies, and only models that write text are exported. Load it with secateur.load."]
    if FAMILIES[model_type].layer_norm:
        return [
            f"its family is {model_type!r}, and our graphs are written for T5's norms and position biases. Export it "
            "to ctranslate2."
        ]
    if config.dense_act_fn not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        return [f"its feed-forward activation is {config.dense_act_fn!r}; our graphs know {known}."]
    return []


def export_onnx(folder: Path | str, out: Path | str, *, int8: bool) -> Facts:
    """Write a model as a folder that ONNX Runtime runs; see `onnx_graph` and `onnx_nodes` for what stands in it.

    Args:
        folder: a Hugging Face folder of a T5, mT5 or UMT5, plain or ragged.
        out: the final place, written in one step; an older export there is replaced.
        int8: store matrices as int8 with one scale per output (activations become int8 as the engine runs), else fp32.

    Returns:
        What export.json says.

    Raises:
        ExportError: a package is not installed, or the graphs cannot hold the model.
        CheckpointError: the folder is foreign or damaged, or `out` cannot be written.
        AnatomyError: the model's family is unknown.
    """
    for package in ("onnx", "onnxruntime"):
        require(package, extra="onnx")
    source = open_source(folder, cannot_hold, engine="our ONNX graphs")
    return write_export(
        source,
        out,
        target="onnx",
        int8=int8,
        packages=["onnx", "onnxruntime"],
        write=lambda place: write_graphs(source.model, place, int8=int8),
    )
