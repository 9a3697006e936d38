"""Export and pack stages of a run: write the artefact, compare it with its model, and count it."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from secateur.artefact import PACKED
from secateur.artifacts.manifest import artefact_hash
from secateur.artifacts.pack import is_packed, pack_folder, read_packed_facts
from secateur.errors import SecateurError
from secateur.exports.engines import export_model, open_engine
from secateur.exports.folder import is_export, read_facts
from secateur.exports.parity import check_parity, parity
from secateur.recipe.schema import Export, Pack
from secateur.tasks.encode import EncodedPairs


def export_stage(
    settings: Export, model: Path, place: Path, rows: EncodedPairs, *, max_new_tokens: int
) -> dict[str, Any]:
    """Export a model folder and compare the two on texts of the task.

    Args:
        settings: the stage.
        model: a plain folder.
        place: the stage's folder; an export of the same weights that stands there is kept.
        rows: token ids of texts for the comparison.
        max_new_tokens: the longest output that is compared.

    Returns:
        Facts for stage.json.

    Raises:
        SecateurError: the engine cannot hold the model, is not installed, or answers otherwise than the model.
    """
    out = place / settings.to
    facts = read_facts(out) if is_export(out) else None
    if facts is None or facts.source_hash != artefact_hash(str(model)) or facts.int8 != settings.int8:
        facts = export_model(model, out, target=settings.to, int8=settings.int8)
    try:
        found = parity(str(model), open_engine(out), rows.input_ids, rows.labels, max_new_tokens=max_new_tokens)
        check_parity(found, int8=settings.int8)
    except SecateurError:
        shutil.rmtree(out)  # so that a mended engine is asked again when the run goes on
        raise
    told = {"to": settings.to, "int8": settings.int8, "num_bytes": facts.num_bytes, "packages": dict(facts.packages)}
    return told | {"source_hash": facts.source_hash, "parity": asdict(found)}


def pack_stage(settings: Pack, model: Path, place: Path) -> dict[str, Any]:
    """Pack a model folder.

    Args:
        settings: the stage.
        model: a plain folder.
        place: the stage's folder; a packed file that stands there is kept.

    Returns:
        Facts for stage.json.

    Raises:
        CheckpointError: a weight cannot be rounded so, or the file cannot be written.
    """
    file = place / PACKED
    found = read_packed_facts(file) if is_packed(file) else pack_folder(model, file, values=settings.values)
    facts = asdict(found)
    return {key: value for key, value in facts.items() if key != "file"}
