"""The verbs that make one artefact of another: cut, export, pack, unpack; and `load` for what transformers cannot."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from secateur.anatomy.check import anatomy_of
from secateur.anatomy.families import FAMILIES
from secateur.anatomy.fit import longest_text
from secateur.artefact import find_artefact
from secateur.artifacts.checkpoint import save_plain, stored_dtype
from secateur.artifacts.loading import load_model, load_tokenizer
from secateur.artifacts.manifest import resolve_model
from secateur.artifacts.pack import PackResult, UnpackResult, pack_folder, unpack_file
from secateur.errors import CheckpointError
from secateur.exports.engines import export_model, open_engine
from secateur.exports.folder import Facts, is_export
from secateur.exports.parity import Parity, check_parity, parity
from secateur.fields import encode_rows, load_split
from secateur.files import OnBytes, check_new_folder, silent
from secateur.masks.mask import MaskSet
from secateur.masks.tie import HEAD, is_tied, table_of
from secateur.measure import find_recipe
from secateur.plan_groups import head_policy
from secateur.recipe.names import PackedValues, Target, Width
from secateur.run_folder import MASKS, stage_of
from secateur.shaping import cut_live
from secateur.state import Live
from secateur.tasks.encode import EncodedPairs

NUM_ROWS, NEW_TOKENS = 32, 32  # of a proof or a comparison, and of each of its outputs
# Not *.safetensors: all files of that name in a model folder are its weights, for us (sizes, hashes, packing) as for
# others. In a run the masks stand beside the model's folder, and here there is no such place.
LEFT = "masks.safetensors.left"


def load(model: str | Path) -> Any:
    """Load any model that Secateur writes, ragged ones too, which plain transformers cannot.

    Args:
        model: a run folder (its final model), a stage folder, a model folder, a packed file, or a hub id.

    Returns:
        An encoder-decoder of transformers: fp32, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: there is no such model, it is damaged, or it is an export for another engine.
    """
    found = find_artefact(str(model))
    if found.kind not in ("transformers", "packed"):
        raise CheckpointError(f"{model}: is an export for {found.kind}, which transformers cannot load.")
    if found.kind == "transformers":  # not `opened()`, which asks for a tokenizer: a model is loaded without one too
        return load_model(found.path)
    with tempfile.TemporaryDirectory(prefix="secateur-") as place:
        unpack_file(Path(found.path), Path(place) / "model")
        return load_model(str(Path(place) / "model"))


def cut(
    model: str | Path,
    out: str | Path,
    *,
    masks: str | Path | None = None,
    width: Width = "uniform",
    recipe: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Cut out of a model what masks name whole, and prove that nothing else changed.

    Args:
        model: a stage folder, a run folder or a model folder; it is only read.
        out: the smaller model's folder, new or empty; its weights are stored in the dtype that `model` is stored in.
            Where masks on single weights are left, they stand in it as masks.safetensors.left, for `MaskSet.load` and
            `--masks`.
        masks: a mask file; by default the masks.safetensors that stands beside the model.
        width: uniform (plain transformers loads the result) or ragged (`secateur.load` does).
        recipe: says the task whose validation texts the proof is made on; by default that of the model's run, and
            random tokens where it belongs to none.
        overrides: `a.b=c`, as `--set` takes them.

    Returns:
        What is left of every kind of unit, the proof's figures, and whether plain transformers loads the result.

    Raises:
        MaskError: the masks belong to another model, name nothing whole, or the proof does not hold.
        CheckpointError: a file is missing or damaged, or `out` is not empty.
    """
    path, out = Path(resolve_model(str(model))), Path(out).expanduser()
    check_new_folder(out)
    if is_export(path):
        raise CheckpointError(f"{path}: is an export, which cannot be cut. Give the folder that it was made from.")
    file = Path(masks).expanduser() if masks is not None else _masks_beside(str(model), path)
    live_model, tokenizer = load_model(str(path)), load_tokenizer(str(path))
    anatomy = anatomy_of(live_model)
    found = MaskSet.load(file, owner=anatomy.fingerprint())
    if found.modes.get(HEAD) == "view" and not is_tied(live_model):
        # A plain folder stores the product of table and mask as a head of its own: the mask holds zeros there.
        head = found.masks[HEAD] & found.masks.get(table_of(live_model), found.masks[HEAD])
        found = MaskSet({**found.masks, HEAD: head}, {**found.modes, HEAD: "hold"}, found.owner)
    live = Live(live_model, MaskSet.empty(found.owner), head_policy(anatomy), anatomy, tokenizer)
    live.lay(found)
    done = cut_live(live, _rows(model, live, recipe, overrides), width=width)
    save_plain(live.model, live.tokenizer, out, masks=live.masks, dtype=stored_dtype(path))
    if len(live.masks):
        live.masks.save(out / LEFT)
    return done


def _masks_beside(model: str, path: Path) -> Path:
    for place in (stage_of(model) or path.parent, path):
        if (place / MASKS).is_file():
            return place / MASKS
    raise CheckpointError(f"{path}: no masks.safetensors stands beside it. Give the file with --masks.")


def _rows(model: str | Path, live: Live, recipe: str | Path | None, overrides: Sequence[str]) -> EncodedPairs:
    """Texts of the task, or, where none is known, random tokens."""
    checked = find_recipe(str(model), recipe, overrides)
    if checked is not None:
        pairs = load_split(checked, checked.evaluation.split).head(NUM_ROWS)
        return encode_rows(checked, pairs, live.tokenizer, live.model)
    drawn = torch.Generator().manual_seed(0)
    config = live.model.config
    size, end = config.vocab_size, config.eos_token_id
    ends = end[:1] if isinstance(end, list) else [] if end is None else [end]
    room = longest_text(FAMILIES[config.model_type], config) or 5 + NUM_ROWS
    lengths = [min(length, room - 1) for length in range(4, 4 + NUM_ROWS)]
    rows = [[*torch.randint(0, size, (length,), generator=drawn).tolist(), *ends] for length in lengths]
    return EncodedPairs(rows, [row[::-1][1:] for row in rows])


def export(
    model: str | Path,
    out: str | Path,
    *,
    to: Target,
    int8: bool = True,
    recipe: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Facts, Parity]:
    """Write a model for another engine, and compare the two.

    Args:
        model: a run folder, a stage folder or a model folder.
        out: the export's folder; new or empty.
        to: ctranslate2 or onnx.
        int8: store and multiply matrices as int8.
        recipe: as for `cut`.
        overrides: `a.b=c`, as `--set` takes them.

    Returns:
        What export.json says, and how far the export's answers are from the model's.

    Raises:
        ExportError: the engine cannot hold the model (all reasons), is not installed, or answers otherwise.
        CheckpointError: a file is missing or damaged, or `out` is not empty.
    """
    out = Path(out).expanduser()
    check_new_folder(out)
    path = resolve_model(str(model))
    facts = export_model(path, out, target=to, int8=int8)
    try:
        live_model = load_model(path)
        live = Live(live_model, MaskSet.empty(), "", anatomy_of(live_model), load_tokenizer(path))
        rows = _rows(model, live, recipe, overrides)
        room = longest_text(FAMILIES[live_model.config.model_type], live_model.config) or NEW_TOKENS + 1
        limit = min(NEW_TOKENS, room - 1)
        found = parity(live_model, open_engine(out), rows.input_ids, rows.labels, max_new_tokens=limit)
        check_parity(found, int8=int8)
    except BaseException:
        shutil.rmtree(out)  # what answers otherwise than its model, or was not compared, is not left to be shipped
        raise
    return facts, found


def pack(
    model: str | Path, out: str | Path, *, values: PackedValues = "fp32", on_bytes: OnBytes = silent
) -> PackResult:
    """Pack a model folder into one file in which zeros take no room; see `secateur.artifacts.pack.pack_folder`.

    Args:
        model: a run folder, a stage folder or a model folder.
        out: the file.
        values: fp32 (exact), fp16, bf16 or int8.
        on_bytes: is told (what is being done, bytes done, bytes in all).

    Returns:
        The file's figures.

    Raises:
        CheckpointError: there is no such model, or the file cannot be written.
    """
    return pack_folder(Path(resolve_model(str(model))), Path(out).expanduser(), values=values, on_bytes=on_bytes)


def unpack(file: str | Path, out: str | Path, *, on_bytes: OnBytes = silent) -> UnpackResult:
    """Restore the folder that a packed file holds.

    Args:
        file: what `pack` wrote.
        out: the folder; new or empty.
        on_bytes: is told (what is being done, bytes done, bytes in all).

    Returns:
        What was restored, and the rounding, if any.

    Raises:
        CheckpointError: the file is damaged or foreign, or `out` is not empty.
    """
    return unpack_file(Path(file).expanduser(), Path(out).expanduser(), on_bytes=on_bytes)


__all__ = ["cut", "export", "load", "pack", "unpack"]
