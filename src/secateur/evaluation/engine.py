"""What evaluation asks of anything that writes text: a live model today, an exported one tomorrow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Generated:
    """What an engine wrote for one row.

    Args:
        tokens: ids, without the start token and up to the end token, which is left out.
        truncated: True when no end token came within the allowed tokens.
        score: log probability of the tokens and the end token, summed, in nats; None when it was not asked for.
    """

    tokens: list[int]
    truncated: bool
    score: float | None = None


class Engine(Protocol):
    """Writes token ids for a batch of sources."""

    def generate(
        self,
        input_ids: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        min_new_tokens: int = 0,
        num_beams: int = 1,
        return_scores: bool = False,
    ) -> list[Generated]:
        """Write one output per source.

        Args:
            input_ids: a batch, not padded, at least one row.
            max_new_tokens: the longest output; the start token is not counted, the end token is.
            min_new_tokens: tokens before which no end token is written, at most `max_new_tokens`. Where both are equal,
                every output has exactly so many tokens, no end token among them.
            num_beams: 1 is greedy.
            return_scores: also give the log probabilities.

        Returns:
            One output per source, in order.
        """
        ...
