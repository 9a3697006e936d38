"""An engine that runs the ONNX graphs: greedy and beam search in numpy, as transformers searches.

Letters in shapes: B sources, G beams, R = B x G rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.evaluation.engine import Generated
from secateur.exports.folder import check_files, read_facts, require, usable_threads
from secateur.exports.onnx_graph import DECODER, ENCODER

Array = NDArray[Any]
_IMPOSSIBLE = -1.0e9  # what transformers adds to the score of a beam that must not be chosen


class _Decoder:
    """The decoder's session and the caches of the batch that it is writing."""

    def __init__(self, session: Any, values: Any) -> None:
        self._session, self._values = session, values
        self._outputs = [item.name for item in session.get_outputs()]
        self._past = {
            item.name: (item.shape[1], item.shape[3]) for item in session.get_inputs() if item.name.startswith("past_")
        }
        self._feed: dict[str, Any] = {}

    def start(self, encoded: dict[str, Any], num_rows: int) -> None:
        """Take what the encoder gave, and empty caches."""
        self._feed = dict(encoded)
        for name, (heads, width) in self._past.items():
            self._feed[name] = self._values.ortvalue_from_numpy(np.zeros((num_rows, heads, 0, width), np.float32))

    def step(self, tokens: Array) -> Array:
        """Take one token per row; logits (R, V), which the caller may change."""
        self._feed["tokens"] = self._values.ortvalue_from_numpy(tokens)
        found = dict(zip(self._outputs, self._session.run_with_ort_values(self._outputs, self._feed), strict=True))
        for name in self._past:
            self._feed[name] = found[name.replace("past", "present")]
        return found["logits"].numpy()

    def reorder(self, rows: Array) -> None:
        """Let every row go on from what another has written."""
        if np.array_equal(rows, np.arange(len(rows))):
            return
        for name in self._past:
            self._feed[name] = self._values.ortvalue_from_numpy(self._feed[name].numpy()[rows])


class OnnxEngine:
    """Writes with a model that `export_onnx` wrote.

    Greedy and beam outputs are those of transformers (length_penalty 1, early_stopping False) up to rounding.

    Args:
        folder: the export.
        threads: processors to use; None for all that this process may use.

    Raises:
        CheckpointError: the folder is foreign, half-written or damaged.
        ExportError: ONNX Runtime is not installed.
    """

    def __init__(self, folder: Path | str, threads: int | None = None) -> None:
        folder = Path(folder)
        self.facts = read_facts(folder)
        check_files(folder, self.facts)
        runtime = require("onnxruntime", extra="onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = usable_threads(threads)
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._values = runtime.OrtValue

        def session(name: str) -> Any:
            return runtime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])

        self._encoder = session(ENCODER)
        self._encoded = [item.name for item in self._encoder.get_outputs()]
        self._decoder = _Decoder(session(DECODER), self._values)
        self._end = frozenset(self.facts.eos_token_ids)
        self._suppressed = list(self.facts.suppress_tokens)

    def _start(self, input_ids: Sequence[Sequence[int]], num_beams: int) -> Array:
        """Read a batch of sources, and give the first tokens, (R,)."""
        longest = max(len(row) for row in input_ids)
        ids = np.full((len(input_ids), longest), self.facts.pad_token_id, np.int64)
        mask = np.zeros(ids.shape, np.float32)
        for index, row in enumerate(input_ids):
            ids[index, : len(row)], mask[index, : len(row)] = row, 1
        given = {"input_ids": ids, "attention_mask": mask}
        values = {name: self._values.ortvalue_from_numpy(array) for name, array in given.items()}
        encoded = self._encoder.run_with_ort_values(self._encoded, values)
        num_rows = len(input_ids) * num_beams
        self._decoder.start(dict(zip(self._encoded, encoded, strict=True)), num_rows)
        return np.full(num_rows, self.facts.decoder_start_token_id, np.int64)

    def generate(
        self,
        input_ids: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        min_new_tokens: int = 0,
        num_beams: int = 1,
        return_scores: bool = False,
    ) -> list[Generated]:
        """Write one output per source; see `Engine.generate`."""
        tokens = self._start(input_ids, num_beams)
        if num_beams == 1:
            rows = self._greedy(tokens, max_new_tokens, min_new_tokens)
        else:
            rows = self._beams(tokens, max_new_tokens, min_new_tokens, num_beams)
        scores = self.score(input_ids, rows) if return_scores else [None] * len(rows)
        written = []
        for row, score in zip(rows, scores, strict=True):
            ended = bool(row) and row[-1] in self._end
            written.append(Generated(row[:-1] if ended else row, truncated=not ended, score=score))
        return written

    def _forbidden(self, num_written: int, min_new_tokens: int) -> list[int]:
        """Tokens that may not come next; the end tokens are among them until enough tokens are written."""
        return self._suppressed if num_written >= min_new_tokens else [*self._suppressed, *self._end]

    def _greedy(self, tokens: Array, max_new_tokens: int, min_new_tokens: int) -> list[list[int]]:
        """Write the likeliest token, row by row, up to the end token, which is kept."""
        rows: list[list[int]] = [[] for _ in tokens]
        ended = np.zeros(len(rows), bool)
        for num_written in range(max_new_tokens):
            logits = self._decoder.step(tokens)
            if forbidden := self._forbidden(num_written, min_new_tokens):
                logits[:, forbidden] = -np.inf
            tokens = logits.argmax(-1)
            for index in np.flatnonzero(~ended):
                rows[index].append(int(tokens[index]))
            ended |= [int(token) in self._end for token in tokens]
            if ended.all():
                break
        return rows

    def _beams(self, tokens: Array, max_new_tokens: int, min_new_tokens: int, num_beams: int) -> list[list[int]]:
        """Write with beams, one search per source over a common batch of rows."""
        ends = np.array(sorted(self._end))
        searches = [_Search(num_beams, max(2, 1 + len(self._end))) for _ in range(len(tokens) // num_beams)]
        for length in range(1, max_new_tokens + 1):
            logits = self._decoder.step(tokens)
            normalisers = _log_sum_exp(logits)
            if forbidden := self._forbidden(length - 1, min_new_tokens):
                logits[:, forbidden] = -np.inf  # what is left keeps its probability
            logits -= normalisers
            last = length == max_new_tokens
            for index, search in enumerate(searches):
                search.step(logits[index * num_beams : (index + 1) * num_beams], ends, last=last)
            # A search that can no longer improve goes on with the others, as transformers lets it, and changes nothing.
            if last or not any(search.may_improve for search in searches):
                break
            tokens = np.array([row[-1] for search in searches for row in search.rows])
            self._decoder.reorder(
                np.concatenate([search.origins + index * num_beams for index, search in enumerate(searches)])
            )
        return [search.best for search in searches]

    def score(self, input_ids: Sequence[Sequence[int]], target_ids: Sequence[Sequence[int]]) -> list[float]:
        """Sum the log probabilities of given targets, through the same steps that write.

        Args:
            input_ids: a batch, not padded.
            target_ids: one target per source, without the start token, with the end token where it is to count.

        Returns:
            One sum per row, in nats; nothing is suppressed.
        """
        tokens = self._start(input_ids, 1)
        scores = [0.0] * len(target_ids)
        for place in range(max(len(row) for row in target_ids)):
            logits = self._decoder.step(tokens)
            normalisers = _log_sum_exp(logits)
            tokens = np.array([row[place] if place < len(row) else self.facts.pad_token_id for row in target_ids])
            for index, row in enumerate(target_ids):
                if place < len(row):
                    scores[index] += float(logits[index, row[place]]) - float(normalisers[index, 0])
        return scores


def _log_sum_exp(logits: Array) -> Array:
    """Logarithm of the sum of exponentials: (R, V) to (R, 1)."""
    largest = logits.max(-1, keepdims=True)
    return largest + np.log(np.exp(logits - largest).sum(-1, keepdims=True))


@dataclass
class _Search:
    """One source's beam search, step by step as `GenerationMixin._beam_search` does it.

    Attributes:
        num_beams: rows that are being written.
        width: candidates looked at in each step, per row.
        rows: what is being written.
        origins: which row each went on from in the last step, (G,).
        may_improve: whether a running row could still beat the finished ones.
    """

    num_beams: int
    width: int
    rows: list[list[int]] = field(default_factory=list)
    origins: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    may_improve: bool = True
    _scores: Array = field(default_factory=lambda: np.zeros(0, np.float32))
    _finished: list[tuple[float, list[int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = [[] for _ in range(self.num_beams)]
        # All rows are alike at first, so only one of them may be continued.
        self._scores = np.full(self.num_beams, _IMPOSSIBLE, np.float32)
        self._scores[0] = 0

    def step(self, log_probabilities: Array, end: Array, *, last: bool) -> None:
        """Write one token more in every row.

        Args:
            log_probabilities: of the next token, fp32.
            end: tokens that end a row.
            last: every row ends here.
        """
        totals = (log_probabilities + self._scores[:, None]).ravel()
        num_candidates = min(self.width * self.num_beams, totals.size)
        best = np.argpartition(-totals, num_candidates - 1)[:num_candidates]
        best = best[np.argsort(-totals[best], kind="stable")]
        origins, tokens = np.divmod(best, log_probabilities.shape[1])
        scores = totals[best]
        ends = np.isin(tokens, end) | last
        length = len(self.rows[0]) + 1
        candidates = [[*self.rows[origin], int(token)] for origin, token in zip(origins, tokens, strict=True)]
        if self.may_improve:
            # Only the first `num_beams` candidates may end; the others are there so that enough rows go on.
            finished = [
                (float(scores[index]) / length, candidates[index]) for index in range(self.num_beams) if ends[index]
            ]
            merged = sorted([*self._finished, *finished], key=lambda item: -item[0])
            self._finished = merged[: self.num_beams]
        running = scores + np.where(ends, np.float32(_IMPOSSIBLE), np.float32(0))
        going_on = np.argsort(-running, kind="stable")[: self.num_beams]
        self.rows = [candidates[index] for index in going_on]
        self.origins, self._scores = origins[going_on], running[going_on]
        full = len(self._finished) == self.num_beams
        worst = self._finished[-1][0] if full else _IMPOSSIBLE
        self.may_improve &= bool(float(self._scores[0]) / length > worst)

    @property
    def best(self) -> list[int]:
        """The finished output with the highest log probability per token, its end token kept."""
        return self._finished[0][1]
