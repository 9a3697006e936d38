"""What a comparison of a masked model with the one that was cut out of it found."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from secateur.errors import MaskError

SCORE_TOLERANCE = 1e-3  # nats per token


@dataclass(frozen=True)
class Proof:
    """What was compared, and how far apart the two models are.

    Attributes:
        rows: number of texts.
        largest_logit: largest absolute logit of the masked model.
        largest_difference: largest absolute difference of two logits; only rows of the table that stayed are compared.
        relative_difference: the second over the first.
        score_difference: largest difference of a target's log probability per token, in nats.
        same_tokens: share of the rows for which both write the same tokens greedily; a row whose first difference is
            a tie (nearer than the tolerance) counts as the same.
        distinct_tokens: how many different tokens the masked model wrote, all rows together. A model that was pruned
            hard writes few of them until it is retrained, and `same_tokens` then says little.
        same_choices: share of the targets' positions at which both find the same token the likeliest, given the target
            so far; a tie counts as the same.
        distinct_choices: how many different tokens these are.
            Of models that classify: the share of the texts that both put into the same class, and how many classes
            these are; `score_difference` is that of a class's log probability, and nothing is written.
        tolerance: the largest relative difference that passes.
    """

    rows: int
    largest_logit: float
    largest_difference: float
    relative_difference: float
    score_difference: float
    same_tokens: float
    distinct_tokens: int
    same_choices: float
    distinct_choices: int
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether nothing but rounding lies between the two."""
        figures = (self.largest_logit, self.largest_difference, self.score_difference)
        near = self.relative_difference <= self.tolerance and self.score_difference <= SCORE_TOLERANCE
        return all(map(math.isfinite, figures)) and near and self.same_tokens == self.same_choices == 1.0

    def as_json(self) -> dict[str, Any]:
        """The figures, for a manifest."""
        return asdict(self) | {"holds": self.holds}


def check_proof(proof: Proof) -> None:
    """Refuse a cut that changed more than rounding does.

    Args:
        proof: from `verify`.

    Raises:
        MaskError: it does not hold.
    """
    if not proof.holds:
        raise MaskError(
            f"The cut model is not the masked one: logits differ by {proof.largest_difference:.3g} where the largest "
            f"is {proof.largest_logit:.3g} (relative {proof.relative_difference:.2g}, at most {proof.tolerance:.2g}), "
            f"{proof.same_choices:.1%} of the targets' tokens are chosen alike, and {proof.same_tokens:.1%} of "
            f"{proof.rows} rows are written alike. Nothing was replaced. Please report this with the recipe."
        )
