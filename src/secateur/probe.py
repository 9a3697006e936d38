"""A dense model that is pruned, measured and restored, again and again; nothing is trained and nothing written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.anatomy.check import anatomy_of
from secateur.anatomy.roles import Weight
from secateur.artifacts.loading import load_model, load_tokenizer
from secateur.evaluation.evaluate import evaluate_model
from secateur.fields import encode_rows, evaluation_arguments
from secateur.losses import DenseOutputs, compare, note_dense
from secateur.masks.group import choose_again, prune_group
from secateur.masks.mask import MaskSet
from secateur.masks.scores import ADJUSTING, needs
from secateur.masks.statistics import Statistics
from secateur.masks.tie import untie
from secateur.plan_groups import Target, head_policy, target_of
from secateur.processes import Processes
from secateur.recipe.names import Scope, Tie
from secateur.recipe.schema import Calibration, Group, Recipe
from secateur.reporter import Reporter
from secateur.run_folder import RunFolder
from secateur.shaping import gather, make_up
from secateur.state import Inputs, Live, Run
from secateur.tasks.encode import EncodedPairs
from secateur.tasks.pairs import Pairs


@dataclass(frozen=True)
class Subject:
    """A group whose sensitivity is measured: its name, and the recipe's group without a sparsity."""

    name: str
    group: Group

    @property
    def key(self) -> str:
        """The name as part of a file's."""
        return self.name.replace(" ", "-")


@contextmanager
def pruned(
    state: Run,
    live: Live,
    target: Target,
    *,
    sparsity: float,
    score: str,
    scope: Scope,
    statistics: Mapping[str, Statistics],
    calibration: Calibration,
) -> Iterator[MaskSet]:
    """Prune weights of a dense model for a while; afterwards every weight is what it was, bit for bit.

    Args:
        state: the run; its seed is that of scores that draw numbers.
        live: the dense model, without masks.
        target: the weights, and how they are masked.
        sparsity: share of them that goes.
        score: of single weights; what those of ADJUSTING do not remove they adjust.
        scope: one threshold for all of them, for each, or for each of their rows.
        statistics: what the score asks, of the dense model.
        calibration: rows that what stays is adjusted on.

    Yields:
        The masks.

    Raises:
        MaskError: the score cannot judge the weights.
    """
    masks = prune_group(
        live.model,
        target.weights,
        already=MaskSet.empty(),
        sparsity=sparsity,
        score=score,
        scope=scope,
        seed=state.recipe.seed,
        statistics=statistics,
    )
    found = MaskSet(masks, dict.fromkeys(masks, target.mode), live.masks.owner)
    with restored(live, found):
        if score in ADJUSTING and target.mode == "hold":

            def again(weight: Weight, aim: Tensor, inverse: Tensor, mask: Tensor) -> Tensor:
                told = statistics[weight.path]
                return choose_again(weight, aim, inverse, mask, score=score, scope=scope, statistics=told)

            wanted = {weight: masks[weight.path] for weight in target.weights}
            laid = make_up(state, live, wanted, calibration, again if calibration.aim == "dense" else None)
            found = MaskSet(laid, found.modes, found.owner)
        live.lay(found)
        yield found


@contextmanager
def restored(live: Live, masks: MaskSet) -> Iterator[None]:
    """Let masks be laid on a dense model for a while; afterwards it has none, and every weight is what it was.

    Args:
        live: the dense model.
        masks: names the weights that may change.
    """
    before = {path: live.model.get_parameter(path).detach().clone() for path in masks.masks}
    try:
        yield
    finally:
        live.lay(MaskSet.empty(live.masks.owner))
        with torch.no_grad():
            for path, value in before.items():
                live.model.get_parameter(path).copy_(value)


class Probe:
    """A dense model that is pruned, measured and restored, again and again."""

    def __init__(
        self,
        state: Run,
        live: Live,
        pairs: Pairs,
        metrics: Sequence[str],
        calibration: Calibration,
        subjects: Sequence[Subject],
    ) -> None:
        self.state, self.live, self.pairs, self.metrics = state, live, pairs, metrics
        self.calibration, self.subjects = calibration, subjects
        self.rows: EncodedPairs = encode_rows(state.recipe, pairs, live.tokenizer, live.model)
        self._statistics: dict[str, Statistics] | None = None
        self._dense: DenseOutputs | None = None

    def measure(self, subject: Subject | None, sparsity: float) -> dict[str, Any]:
        """Measure the model with one group pruned, or dense."""
        if self._dense is None:
            self._dense = note_dense(self.state, self.live, self.rows)
        if subject is None:
            return {"loss": self._dense.loss, "metrics": self._quality()}
        after = all(weight.stack == "decoder" or weight.role == "lm_head" for weight in self._weights(subject))
        with self._pruned(subject, sparsity) as removed:
            lost = compare(self.state, self.live, self.rows, self._dense, same_encoder=after)
            return {
                "name": subject.name,
                "sparsity": sparsity,
                "num_elements": sum(weight.numel for weight in self._weights(subject)),
                "num_removed": removed,
                "loss": lost.loss,
                "divergence": lost.divergence,
                "metrics": self._quality(),
            }

    def _weights(self, subject: Subject) -> tuple[Weight, ...]:
        return target_of(subject.group, self.live.anatomy, self.live.head).weights

    def _known(self) -> Mapping[str, Statistics]:
        """What calibration rows tell of the dense model, gathered once, when a score first asks."""
        if self._statistics is None:
            asked = [(self._weights(subject), needs(subject.group.score)) for subject in self.subjects]
            wanted = {weight: names for weights, names in asked if names for weight in weights}
            self._statistics = gather(self.state, self.live, wanted, self.calibration)
        return self._statistics

    @contextmanager
    def _pruned(self, subject: Subject, sparsity: float) -> Iterator[int]:
        live, group = self.live, subject.group
        target = target_of(group, live.anatomy, live.head)
        with pruned(
            self.state,
            live,
            target,
            sparsity=sparsity,
            score=group.score,
            scope=group.scope,
            statistics=self._known(),
            calibration=self.calibration,
        ) as masks:
            yield masks.num_removed

    def _quality(self) -> dict[str, Any]:
        return quality(self.state, self.live, self.pairs, self.metrics) if self.metrics else {}


def quality(state: Run, live: Live, pairs: Pairs, metrics: Sequence[str]) -> dict[str, Any]:
    """Evaluate a model as it is, as the recipe says.

    Args:
        state: the run.
        live: the model; it is on the CPU afterwards.
        pairs: rows.
        metrics: at least one name.

    Returns:
        Metric -> figure, JSON-ready.
    """
    result = evaluate_model(
        live.model,
        live.tokenizer,
        pairs,
        metrics=metrics,
        **evaluation_arguments(state.recipe, state.recipe.evaluation),
        device=state.inputs.device,
    )
    live.model.to("cpu")
    return {name: asdict(figure) for name, figure in result.figures.items()}


class _Reader(Run):
    """A run without a manifest: what reads its rows leaves no trace."""

    def _record_rows(self, split: str, pairs: Pairs) -> None:
        pass


def open_dense(recipe: Recipe, path: str, folder: Path, *, device: str, tie: Tie = "view") -> tuple[Run, Live]:
    """Load a dense model, and what the functions of a run want to know; nothing is written.

    Args:
        recipe: says task and data; its paths are whole.
        path: a Hugging Face folder or a hub id.
        folder: of the measurement.
        device: cpu, cuda or mps.
        tie: untie gives the head a table of its own now.

    Returns:
        A run that has no manifest, and the model without masks.

    Raises:
        CheckpointError: there is no such model.
    """
    remote = recipe.trust_remote_code
    model = load_model(path, trust_remote_code=remote)
    anatomy = anatomy_of(model)
    head = head_policy(anatomy)
    if anatomy.head is not None and (head == "untied" or tie == "untie"):
        untie(model)  # guards one that is its own already: transformers ties it again at every occasion
        head = "untied"
    inputs = Inputs({}, (), (), Reporter(), None, device, Processes())
    state = _Reader(recipe, RunFolder(folder, recipe), inputs, anatomy, {})
    tokenizer = load_tokenizer(path, trust_remote_code=remote)
    return state, Live(model, MaskSet.empty(anatomy.fingerprint()), head, anatomy, tokenizer)
