"""The timing of a bench: engines take turns at every batch, and rows are compared with the fastest dense engine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from secateur.bench_entries import Entry, Work

_clock = time.perf_counter


class Turn(NamedTuple):
    """What one engine took for one batch: seconds, those up to the first token, tokens, those of the longest row."""

    seconds: float
    first_seconds: float
    num_tokens: int
    longest: int


def batches_of(rows: Sequence[list[int]], size: int) -> list[list[list[int]]]:
    """Cut into full batches, beginning anew where rows run out.

    >>> batches_of([[1], [2], [3]], 2)
    [[[1], [2]], [[3], [1]]]
    """
    return [[rows[(start + at) % len(rows)] for at in range(size)] for start in range(0, len(rows), size)]


def time_turns(
    engines: Mapping[Entry, Any], sources: Mapping[Entry, list[list[int]]], work: Work, *, size: int, repeats: int
) -> dict[Entry, list[Turn]]:
    """Let all engines write each batch before any writes the next, so that drift of the machine hits all alike.

    Args:
        engines: open ones.
        sources: the ids that each reads.
        work: says what they write.
        size: texts at once.
        repeats: rounds, after one that is not timed and warms up.

    Returns:
        For each engine one turn per round and batch.
    """
    found: dict[Entry, list[Turn]] = {entry: [] for entry in engines}
    batches = {entry: batches_of(sources[entry], size) for entry in engines}
    for turn in range(repeats + 1):
        for index in range(max((len(item) for item in batches.values()), default=0)):
            for entry, engine in engines.items():
                batch = batches[entry][index]
                work.write(engine, batch, 1)  # caches hold the last engine
                started = _clock()
                work.write(engine, batch, 1)
                between = _clock()
                written = work.write(engine, batch)
                ended = _clock()
                lengths = [len(row.tokens) + (not row.truncated) for row in written]
                if turn:
                    found[entry].append(Turn(ended - between, between - started, sum(lengths), max(lengths)))
    return found


def row_of(entry: Entry, turns: Sequence[Turn], *, size: int, threads: int) -> dict[str, Any]:
    """Sum up what one engine took.

    Args:
        entry: the engine.
        turns: at least one.
        size: texts at once.
        threads: CPU threads.

    Returns:
        A row of bench.json, but for memory, quality and comparison; `ms_per_token` is None where it cannot be told.
    """
    seconds = sorted(turn.seconds for turn in turns)
    further = [1000 * (turn.seconds - turn.first_seconds) / (turn.longest - 1) for turn in turns if turn.longest > 1]
    per_token = statistics.median(further) if further else 0.0
    num_tokens = sum(turn.num_tokens for turn in turns)
    return {
        **entry.named,
        "num_bytes": entry.artefact.num_bytes,
        "batch": size,
        "threads": threads,
        "latency_ms": 1000 * statistics.median(seconds),
        "latency_p90_ms": 1000 * seconds[max(0, -(-9 * len(seconds) // 10) - 1)],
        "first_token_ms": 1000 * statistics.median(turn.first_seconds for turn in turns),
        "ms_per_token": per_token if per_token > 0 else None,  # on a busy machine noise may be the larger
        "tokens_per_second": num_tokens / sum(seconds),
        "tokens_per_text": num_tokens / len(turns) / size,
    }


def compare_rows(rows: Sequence[dict[str, Any]], dense: str) -> None:
    """Say of each row how many times faster it is than the baseline's fastest engine in the same setting.

    Args:
        rows: of all settings; `times_faster`, `times_faster_per_token` and `compared_with` are added, None where the
            baseline has no row.
        dense: the baseline's name among the models.
    """
    for row in rows:
        same = [item for item in rows if (item["batch"], item["threads"]) == (row["batch"], row["threads"])]
        mine = [item for item in same if item["model"] == dense]
        best = min(mine, key=lambda item: item["latency_ms"], default=None)
        quick = max((item["tokens_per_second"] for item in mine), default=None)
        row["times_faster"] = best["latency_ms"] / row["latency_ms"] if best else None
        row["times_faster_per_token"] = row["tokens_per_second"] / quick if quick else None
        row["compared_with"] = {"engine": best["engine"], "hash": best["hash"]} if best else None


__all__ = ["Turn", "batches_of", "compare_rows", "row_of", "time_turns"]
