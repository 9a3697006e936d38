"""What a run holds while it works: the live model, what the caller brought along, and the manifest that grows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from secateur.anatomy.roles import Anatomy
from secateur.artifacts.manifest import (
    write_manifest,
)
from secateur.errors import CheckpointError
from secateur.evaluation.metrics import UserMetric
from secateur.fields import load_split
from secateur.given import Classes
from secateur.masks.hold import Attachment, attach
from secateur.masks.mask import MaskSet
from secateur.processes import Processes
from secateur.recipe.schema import Recipe
from secateur.report.card import write_card
from secateur.reporter import Reporter
from secateur.run_folder import RunFolder
from secateur.tasks.labels import check_labels
from secateur.tasks.pairs import Pairs


@dataclass
class Live:
    """The model as the stages pass it on: fp32 weights with the masks attached.

    Args:
        model: a live encoder-decoder.
        masks: what is attached to it.
        head: its head's policy so far; see `planning.head_policy`.
        anatomy: its map; a cut changes it.
        tokenizer: its tokenizer; a cut that removes rows of the table trims it.
        attachment: undoes the attaching.
        is_cut: whether its shapes are other than the given model's.
    """

    model: Any
    masks: MaskSet
    head: str
    anatomy: Anatomy
    tokenizer: Any
    attachment: Attachment | None = None
    is_cut: bool = False

    def lay(self, masks: MaskSet) -> None:
        """Put on these masks instead of the present ones."""
        if self.attachment:
            self.attachment.detach()
        self.masks = masks
        self.attachment = attach(self.model, masks)


@dataclass(frozen=True)
class Inputs:
    """What a caller may bring along besides the recipe.

    Args:
        rows: split -> rows instead of the recipe's data.
        metrics: functions of the caller's own.
        callbacks: for the Hugging Face trainer.
        reporter: is told how the run goes.
        should_stop: asked at every step.
        device: cpu, cuda or mps.
        processes: which process this is, of how many that share the run.
    """

    rows: Mapping[str, Iterable[Mapping[str, Any]]]
    metrics: tuple[UserMetric, ...]
    callbacks: tuple[Any, ...]
    reporter: Reporter
    should_stop: Callable[[], bool] | None
    device: str
    processes: Processes

    def stopping(self) -> bool:
        """Ask whether the run is to stop, in any of its processes."""
        return self.processes.any(bool(self.should_stop and self.should_stop()))


@dataclass
class Run:
    """Everything that stays the same from stage to stage, and the manifest that grows.

    Args:
        recipe: with whole paths.
        folder: where it runs.
        inputs: what the caller brought along.
        anatomy: of the dense model.
        manifest: as it is written into the folder.
        classes: that the model names; None in seq2seq.
        pairs: split -> its rows, once they are read.
    """

    recipe: Recipe
    folder: RunFolder
    inputs: Inputs
    anatomy: Anatomy
    manifest: dict[str, Any]
    classes: Classes | None = None
    pairs: dict[str, Pairs] = field(default_factory=dict)

    @property
    def processes(self) -> Processes:
        """The processes that share this run."""
        return self.inputs.processes

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The manifest's stages."""
        return self.manifest["stages"]

    def load(self, split: str) -> Pairs:
        """Read a split once: train, validation or test as the recipe maps them, or a split's own name."""
        if split not in self.pairs:
            self.take(split, load_split(self.recipe, split, self.inputs.rows.get(split)))
        return self.pairs[split]

    def take(self, split: str, pairs: Pairs) -> None:
        """Keep rows that are read; of classes that the model does not know there must be none."""
        if self.classes:
            check_labels(pairs, self.classes.labels, split)
        self.pairs[split] = pairs
        self._record_rows(split, pairs)

    def _record_rows(self, split: str, pairs: Pairs) -> None:
        """Write down which rows were read, at once; a run that is gone on from must read the same."""
        data, found = self.manifest["data"], pairs.fingerprint()
        if data["hashes"].get(split, found) != found:
            raise CheckpointError(
                f"{split}: these are not the rows that the run was started with ({data['rows'][split]:,} then, "
                f"{len(pairs):,} now). Give it the same, start it anew with --overwrite, or choose another --out."
            )
        data["hashes"][split], data["rows"][split] = found, len(pairs)
        if pairs.num_skipped:
            data.setdefault("skipped", {})[split] = pairs.num_skipped
            self.inputs.reporter.noted(f"{split}: rows without a text, left out: {pairs.num_skipped:,}.")
        self.processes.first(lambda: write_manifest(self.folder.path, self.manifest))

    def write(self, status: str) -> None:
        """Write manifest and card as they are now."""
        self.manifest["status"] = status
        if self.processes.is_first:
            write_manifest(self.folder.path, self.manifest)
            write_card(self.folder.path)
