"""Whole units in a run: choose them with what the task's texts tell, cut them out, and prove the cut."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.anatomy.check import anatomy_of
from secateur.anatomy.family import WIDTHS
from secateur.anatomy.roles import Anatomy, Weight
from secateur.anatomy.units import STRUCTURED, Place, places
from secateur.errors import DataError, MaskError
from secateur.fields import encode_rows
from secateur.masks.calibration import Batch, taylor_scores
from secateur.masks.mask import MaskSet, Mode
from secateur.masks.reconstruct import Choose, reconstruct
from secateur.masks.statistics import Statistics, gather_statistics, passes
from secateur.masks.structure import prune_units
from secateur.masks.unit_scores import OF_OUTPUTS, Evidence, outputs_of
from secateur.recipe.names import Width
from secateur.recipe.schema import Calibration, Group, Recipe
from secateur.retrain.distil import PROJECTION
from secateur.state import Live, Run
from secateur.surgery.cut import cut, named_tokens
from secateur.surgery.slices import remainder
from secateur.surgery.verify import check_proof, verify
from secateur.tasks.encode import Collator, EncodedPairs
from secateur.tasks.reading import batch_loss, is_classifier
from secateur.tasks.sampler import shuffled
from secateur.tasks.trim import check_trimmable, floor_ids, trim_tokenizer
from secateur.tasks.vocabulary import count_ids


def width_of(recipe: Recipe) -> Width:
    """Say how wide a cut makes the layers when it does not say itself: as the recipe's groups were pruned."""
    groups = [group for stage in recipe.stages if stage.prune for group in stage.prune.groups]
    return "ragged" if any(group.width != "uniform" for group in groups) else "uniform"


def prune_structured(
    state: Run, live: Live, group: Group, evidence: Evidence, already: MaskSet
) -> tuple[dict[str, Tensor], dict[str, Mode]]:
    """Choose the units of a group that stay.

    Args:
        state: the run.
        live: the model.
        group: of whole units.
        evidence: from `gather_evidence` for all groups of the stage.
        already: masks of earlier stages and of the groups before this one.

    Returns:
        Masks by name, and how each is laid on.

    Raises:
        SecateurError: the score cannot judge the units, or the numbers leave none.
    """
    anatomy = _anatomy(live)
    masks = prune_units(
        live.model,
        anatomy,
        places_of(anatomy, group),
        already=already,
        sparsity=group.sparsity,
        score=group.score,
        width=group.width,
        max_sparsity=group.max_sparsity,
        min_keep=group.min_keep,
        evidence=evidence,
        seed=state.recipe.seed,
    )
    return masks, {path: already.modes.get(path, "hold") for path in masks}


def _anatomy(live: Live) -> Anatomy:
    """Map the model as it is now; a projection that distillation trains beside it is no part of it."""
    modules: dict[str, Any] = live.model._modules
    projection = modules.pop(PROJECTION, None)
    try:
        return anatomy_of(live.model)
    finally:
        if projection is not None:
            modules[PROJECTION] = projection


def places_of(anatomy: Anatomy, group: Group) -> tuple[Place, ...]:
    """Find the places that a group of whole units removes them from."""
    return places(anatomy, group.unit, role=group.role, stack=group.stack, layers=group.layers)


def gather_evidence(state: Run, live: Live, chosen: Sequence[Group], calibration: Calibration) -> Evidence:
    """Find out what the scores of a stage need to know beside the weights, once for all of its groups.

    Args:
        state: the run; its training rows give gradients and counts.
        live: the model, with the masks of earlier stages.
        chosen: all groups of the stage.
        calibration: how many rows give gradients.

    Returns:
        Gradients' scores for groups that ask for taylor, what the outputs of heads and neurons are for those that judge
        by them, counts of the table's rows for those by frequency.

    Raises:
        DataError: rows of the table are to go, and the tokenizer cannot be trimmed.
    """
    groups = [group for group in chosen if group.unit in STRUCTURED]
    if not groups:
        return Evidence()
    anatomy = _anatomy(live)
    found = {place: None for group in groups if group.score == "taylor" for place in places_of(anatomy, group)}
    read = {
        weight: names
        for group in groups
        for place in (places_of(anatomy, group) if group.score in OF_OUTPUTS else ())
        for weight, names in outputs_of(place, group.score).items()
    }
    taylor, counts, floor = {}, None, frozenset[int]()
    outputs = gather(state, live, read, calibration)
    if found:
        state.load("train")  # in every process, before the first one works alone
        # Sums on a GPU may differ in their last bits from process to process, and then the masks would.
        taylor = state.processes.first(lambda: _taylor(state, live, tuple(found), calibration))
    if any(group.score == "frequency" for group in groups):
        check_trimmable(live.tokenizer)
        pairs, config = state.load("train"), live.model.config
        sources, targets = zip(*pairs.rows(), strict=True)
        targets = () if is_classifier(live.model) else targets  # names of classes, of which no token is read
        counts = torch.from_numpy(count_ids(live.tokenizer, sources, targets, config.vocab_size))
        floor = floor_ids(live.tokenizer, named_tokens(live.model))
        if max(floor, default=-1) >= config.vocab_size:
            raise DataError(
                f"The tokenizer has a token of number {max(floor)}, and the model's table {config.vocab_size} rows: "
                "it is another model's. Save the model's own tokenizer beside it, or leave vocab_row out."
            )
    return Evidence(taylor, outputs, counts, floor)


def gather(
    state: Run, live: Live, wanted: Mapping[Weight, Collection[str]], calibration: Calibration
) -> dict[str, Statistics]:
    """Pass calibration rows through the live model, in the first process, and take notes for all.

    Args:
        state: the run; its training rows are passed.
        live: the model.
        wanted: what to note of which weights.
        calibration: how many rows.

    Returns:
        See `masks.statistics.gather_statistics`; empty when nothing is wanted.

    Raises:
        MaskError: there are no rows, or a number is not finite.
    """
    if not wanted:
        return {}
    state.load("train")  # in every process, before the first one works alone

    def work() -> dict[str, Statistics]:
        found: dict[str, Statistics] = {}
        with _on_device(state, live):
            for part in passes(wanted):
                found |= gather_statistics(
                    live.model, part, _batches(state, live, calibration), loss=_loss(calibration)
                )
        return found

    # Sums on a GPU may differ in their last bits from process to process, and then the masks would.
    return state.processes.first(work)


def _taylor(state: Run, live: Live, found: tuple[Place, ...], calibration: Calibration) -> dict[Place, Tensor]:
    with _on_device(state, live):
        return taylor_scores(live.model, found, _batches(state, live, calibration), loss=_loss(calibration))


def make_up(
    state: Run,
    live: Live,
    masks: Mapping[Weight, Tensor],
    calibration: Calibration,
    choose: Choose | None = None,
) -> dict[str, Tensor]:
    """Remove weights of the live model and adjust what stays of their layers; see `masks.reconstruct`.

    Args:
        state: the run; its training rows tell what the layers read. The first process adjusts for all.
        live: the model, with the masks of everything else attached.
        masks: weight -> bool, True = keep.
        calibration: how many rows, and what layers should give.
        choose: see `masks.reconstruct`.

    Returns:
        By path, the masks that count.

    Raises:
        MaskError: there are no rows, or a number is not finite.
    """
    if not masks:
        return {}
    state.load("train")  # in every process, before the first one works alone

    def work() -> dict[str, tuple[Tensor, Tensor]]:
        with _on_device(state, live):
            batches = list(_batches(state, live, calibration))
            forward, aim = _loss(calibration), calibration.aim
            laid = reconstruct(live.model, masks, batches, forward=forward, aim=aim, choose=choose)
        return {
            weight.path: (live.model.get_parameter(weight.path).detach().cpu(), mask) for weight, mask in laid.items()
        }

    found = state.processes.first(work)
    for path, (value, _) in found.items():
        with torch.no_grad():
            live.model.get_parameter(path).copy_(value)
    return {path: mask for path, (_, mask) in found.items()}


@contextmanager
def _on_device(state: Run, live: Live) -> Iterator[None]:
    """Lend the model to the run's device; one that is being trained is there already, and stays."""
    home = live.model.get_input_embeddings().weight.device
    live.model.to(state.inputs.device)
    try:
        yield
    finally:
        live.model.to(home)


def _loss(calibration: Calibration) -> Callable[[nn.Module, Batch], Tensor]:
    return partial(batch_loss, precision=calibration.precision)


def _batches(state: Run, live: Live, calibration: Calibration) -> Iterator[Batch]:
    """Draw calibration rows from the training rows.

    Args:
        state: the run; its seed decides which rows.
        live: the model, whose tokenizer encodes them.
        calibration: how many, and how many at a time.

    Yields:
        Batches of rows of like length, on the run's device; see `Collator`.
    """
    train = state.load("train")
    picked = train.pick(shuffled(train.num_rows, seed=state.recipe.seed, epoch=0)[: calibration.rows])
    rows = encode_rows(state.recipe, picked, live.tokenizer, live.model)
    chosen = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    collate = Collator(live.tokenizer.pad_token_id)
    for start in range(0, len(chosen), calibration.batch_size):
        batch = collate([rows[index] for index in chosen[start : start + calibration.batch_size]])
        yield {name: tensor.to(state.inputs.device) for name, tensor in batch.items()}


def cut_live(live: Live, rows: EncodedPairs, *, width: Width) -> dict[str, Any]:
    """Replace the live model by the smaller one that its masks leave, once a proof says they compute the same.

    Args:
        live: the model; it is replaced, and its tokenizer trimmed where rows of the table went.
        rows: token ids of texts for the proof.
        width: uniform or ragged.

    Returns:
        JSON-ready facts: what is left, the proof, and whether plain transformers can load it.

    Raises:
        MaskError: there is nothing to cut, or the proof does not hold; the live model is as it was.
    """
    anatomy = anatomy_of(live.model)
    rest = remainder(anatomy, live.masks, width=width)
    if not rest.smaller(anatomy):
        raise MaskError(
            "The masks name nothing whole that could be cut: no head, neuron, layer, row or hidden dimension is gone "
            "in every place where one width must hold. Prune whole units first, or cut with width ragged."
        )
    found = cut(live.model, live.masks, rest)
    small = Live(found.model, MaskSet.empty(found.masks.owner), live.head, anatomy_of(found.model), live.tokenizer)
    small.lay(found.masks)
    proof = verify(live.model, small.model, rest, rows.input_ids, rows.labels, token_types=rows.token_type_ids)
    check_proof(proof)
    if len(rest.rows) < anatomy.table.shape[0]:
        live.tokenizer = trim_tokenizer(live.tokenizer, [row for row in rest.rows if row < len(live.tokenizer)])
    live.model, live.masks, live.attachment = small.model, small.masks, small.attachment
    live.anatomy, live.is_cut = small.anatomy, True
    plain = getattr(small.model.config, WIDTHS, None) is None
    return {"left": rest.as_json(), "proof": proof.as_json(), "plain": plain}


__all__ = ["cut_live", "gather", "gather_evidence", "make_up", "places_of", "prune_structured", "width_of"]
