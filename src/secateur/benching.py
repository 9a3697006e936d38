"""Time models in several engines in turns: quality, bytes and milliseconds of a row come from one artefact."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from secateur.artefact import Artefact, find_artefact
from secateur.artifacts.manifest import environment
from secateur.artifacts.pack import unpack_file
from secateur.errors import SecateurError
from secateur.evaluation.evaluate import evaluate_model
from secateur.evaluation.generate import HuggingFaceEngine
from secateur.exports.engines import export_model
from secateur.exports.folder import read_facts, usable_threads
from secateur.fields import evaluation_arguments, load_split
from secateur.files import check_new_folder, write_json
from secateur.measure import find_recipe
from secateur.recipe.schema import Recipe
from secateur.report.bench import write_report
from secateur.tasks.encode import tokenize

BENCH = "bench.json"
ENGINES = {
    "hf-fp32": ("transformers", False),
    "hf-bf16": ("transformers", False),
    "ct2-fp32": ("ctranslate2", False),
    "ct2-int8": ("ctranslate2", True),
    "onnx-fp32": ("onnx", False),
    "onnx-int8": ("onnx", True),
}
_clock = time.perf_counter


@dataclass(frozen=True)
class Entry:
    """One model in one engine: `artefact` is what is opened, `hash` and `num_bytes` are of what was measured."""

    model: str
    engine: str
    artefact: Artefact
    hash: str | None
    num_bytes: int | None


def bench(
    models: Sequence[str],
    recipe: Recipe | str | Path | None = None,
    *,
    out: str | Path | None = None,
    engines: Sequence[str] = tuple(ENGINES),
    dense: str | None = None,
    batches: Sequence[int] = (1, 8),
    threads: Sequence[int | None] = (1, None),
    repeats: int = 5,
    num_texts: int = 8,
    source_tokens: int = 256,
    new_tokens: int | None = None,
    overrides: Sequence[str] = (),
    split: str | None = None,
    quality: bool = False,
    memory: bool = True,
    on_turn: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Time every model in every engine on the CPU, greedy, in turns, so that drift of the machine hits all alike.

    A batch is written by all models and engines, one after the other, before the next batch is; the first round is not
    timed. Outputs are as they come: an engine stops at the end token, so two artefacts may write different numbers of
    tokens. `tokens_per_second` and `ms_per_token` count the tokens really written (the end token too, padding not);
    `times_faster` compares a batch's median milliseconds, `times_faster_per_token` tokens per second.

    Args:
        models: whatever `find_artefact` knows. A plain or packed model is exported for each engine; an export runs as
            itself only.
        recipe: says task, data and limits; by default that of the first model's run, and random tokens without one.
        out: a new or empty folder for bench.json, bench.md, bench.png and the exports; None writes nothing.
        engines: names of ENGINES; one that cannot be used is listed as skipped, with its reason.
        dense: which of `models` the baseline is: its fastest engine is what speed-ups are stated against.
        batches: numbers of texts at once, each at least 1.
        threads: numbers of CPU threads; None: all.
        repeats: timed rounds, at least 1.
        num_texts: texts of the split, spread over the lengths; a batch larger than that repeats them.
        source_tokens: of each random source, the end token counted; used without a recipe.
        new_tokens: limit of new tokens; by default the recipe's, 64 without one.
        overrides: `a.b=c`, as `--set` takes them.
        split: by default the recipe's.
        quality: also evaluate each artefact on the split through its engine; needs a recipe.
        memory: also measure peak memory, in a fresh process for each row.
        on_turn: is told what begins.

    Returns:
        What bench.json holds: rows, skipped engines with reasons, settings, the environment.

    Raises:
        SecateurError: no model, an unknown engine, a wrong number, quality without a recipe, or nothing could be run.
        CheckpointError: a model is missing or damaged, or `out` is not empty.
    """
    baseline = _check(models, engines, dense, {"batches": batches, "repeats": [repeats], "num_texts": [num_texts]})
    counts = list(dict.fromkeys(usable_threads(number) for number in threads))
    _positive("threads", counts)
    _positive("source_tokens, new_tokens", [source_tokens, new_tokens or 1])
    checked = find_recipe(models[0], recipe, overrides)
    if quality and checked is None:
        raise SecateurError("quality is measured on a recipe's split, and no recipe is known. Give one with --recipe.")
    limit = new_tokens or (checked.evaluation.max_new_tokens if checked else 64)
    wanted = split or checked.evaluation.split if checked else None
    pairs = load_split(checked, wanted) if checked and wanted else None
    texts = _spread(pairs.sources, num_texts) if pairs is not None else None
    trust = checked.trust_remote_code if checked else False
    if out is not None:
        check_new_folder(Path(out).expanduser())
    tell = on_turn or (lambda text: None)
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="secateur-")))
        exports = Path(out).expanduser() / "exports" if out is not None else place / "exports"
        entries, skipped = _entries(models, engines, place, exports, tell)
        rows: list[dict[str, Any]] = []
        figures: dict[int, Any] = {}
        for number in counts:
            with _opened(entries, number, trust, skipped) as opened:
                inputs = {
                    key: _inputs(engine, tokenizer, texts, checked, num_texts, source_tokens)
                    for key, (engine, tokenizer) in opened.items()
                }
                for size in batches:
                    tell(f"batch {size}, {number} threads")
                    timed = _rounds({key: engine for key, (engine, _) in opened.items()}, inputs, size, repeats, limit)
                    rows += [_row(entries[key], size, number, found) | {"entry": key} for key, found in timed.items()]
                if quality and checked and pairs is not None and not figures:
                    for key, (engine, tokenizer) in opened.items():
                        tell(f"quality of {entries[key].model} in {entries[key].engine}")
                        result = evaluate_model(
                            engine,
                            tokenizer,
                            pairs,
                            metrics=checked.evaluation.metrics,
                            **evaluation_arguments(checked, checked.evaluation),
                        )
                        figures[key] = {name: asdict(figure) for name, figure in result.figures.items()}
                if memory:
                    for row in (row for row in rows if row["threads"] == number):
                        tell(f"memory of {row['model']} in {row['engine']}")
                        row["peak_memory_mib"] = _memory(entries[row["entry"]], row, inputs[row["entry"]], limit, trust)
        if not rows:
            reasons = "; ".join(f"{item['model']} in {item['engine']}: {item['reason']}" for item in skipped)
            raise SecateurError(f"none of the engines could run a model: {reasons}")
        for row in rows:
            row["metrics"] = figures.get(row.pop("entry"), {})
        _compare(rows, baseline)
        content = {
            "format": "secateur-bench",
            "version": 1,
            "models": list(models),
            "dense": baseline,
            "inputs": f"{len(texts)} texts of {wanted}" if texts else f"{source_tokens} random tokens",
            "max_new_tokens": limit,
            "repeats": repeats,
            "rows": rows,
            "skipped": skipped,
            "environment": environment("cpu") | _packages(),
        }
        if out is not None:
            write_json(Path(out).expanduser() / BENCH, content)
            write_report(content, Path(out).expanduser())
    return content


def _check(
    models: Sequence[str], engines: Sequence[str], dense: str | None, numbers: Mapping[str, Sequence[int]]
) -> str:
    if not models or len(set(models)) < len(models):
        raise SecateurError(f"models: must be at least one, each once, and is {list(models)}.")
    unknown = [name for name in engines if name not in ENGINES]
    if unknown or not engines:
        raise SecateurError(
            f"engines: no such engine: {', '.join(unknown) or 'none given'}. There are: {', '.join(ENGINES)}."
        )
    for name, values in numbers.items():
        _positive(name, values)
    if dense is not None and dense not in models:
        raise SecateurError(f"dense: {dense} is none of the models: {', '.join(models)}.")
    return dense if dense is not None else models[0]


def _positive(name: str, values: Sequence[int]) -> None:
    if not values or min(values) < 1:
        raise SecateurError(f"{name}: must be numbers of at least 1, and is {list(values)}.")


def _spread(sources: Sequence[str], number: int) -> list[str]:
    ordered = sorted(sources, key=len)
    step = max(1, len(ordered) // number)
    return ordered[step // 2 :: step][:number]


def _entries(
    models: Sequence[str], engines: Sequence[str], place: Path, exports: Path, tell: Callable[[str], None]
) -> tuple[list[Entry], list[dict[str, str]]]:
    """Make whatever has to be timed; what cannot be made is listed with its reason."""
    entries: list[Entry] = []
    skipped: list[dict[str, str]] = []
    for index, model in enumerate(models):
        found = source = find_artefact(model)
        if found.kind in ("ctranslate2", "onnx"):
            int8 = read_facts(found.path).int8
            name = next(name for name, kind in ENGINES.items() if kind == (found.kind, int8))
            entries.append(Entry(model, name, found, found.hash, found.num_bytes))
            continue
        if found.kind == "packed":
            folder = place / f"{index}-unpacked"
            unpack_file(Path(found.path), folder)
            source = Artefact(str(folder), "transformers", found.hash, found.num_bytes)
        for name in engines:
            target, int8 = ENGINES[name]
            if target == "transformers":
                entries.append(Entry(model, name, source, found.hash, found.num_bytes))
                continue
            tell(f"export of {model} for {name}")
            folder = exports / f"{index + 1}-{name}"
            try:
                exports.mkdir(parents=True, exist_ok=True)
                export_model(source.path, folder, target=target, int8=int8)  # type: ignore[arg-type]  # "transformers" went its way above
                made = find_artefact(str(folder))
            except SecateurError as error:
                skipped.append({"model": model, "engine": name, "reason": str(error)})
                continue
            entries.append(Entry(model, name, made, made.hash, made.num_bytes))
    return entries, skipped


@contextmanager
def _opened(
    entries: Sequence[Entry], threads: int, trust: bool, skipped: list[dict[str, str]]
) -> Iterator[dict[int, tuple[Any, Any]]]:
    """Open all that can be opened; torch gets the threads too, and its own number back afterwards."""
    before = torch.get_num_threads()
    with ExitStack() as stack:
        found: dict[int, tuple[Any, Any]] = {}
        for key, entry in enumerate(entries):
            try:
                live, tokenizer = stack.enter_context(entry.artefact.opened(threads=threads, trust_remote_code=trust))
                found[key] = (_engine(entry.engine, live, tokenizer), tokenizer)
            except SecateurError as error:
                reason = {"model": entry.model, "engine": entry.engine, "reason": str(error)}
                skipped.extend([reason] if reason not in skipped else [])
        try:
            torch.set_num_threads(threads)
            yield found
        finally:
            torch.set_num_threads(before)


def _engine(name: str, live: Any, tokenizer: Any) -> Any:
    if ENGINES[name][0] != "transformers":
        return live
    return HuggingFaceEngine(live.to(torch.bfloat16) if name == "hf-bf16" else live, tokenizer)


def _inputs(
    engine: Any, tokenizer: Any, texts: Sequence[str] | None, checked: Recipe | None, number: int, length: int
) -> list[list[int]]:
    """Tokenize with the model's own tokenizer: a trimmed one has other ids for the same text."""
    if texts is not None and checked is not None:
        return tokenize(tokenizer, texts, checked.task.max_source_tokens)[0]
    facts = getattr(engine, "facts", None)
    size = facts.vocab_size if facts is not None else engine.model.config.vocab_size
    end = sorted(facts.eos_token_ids if facts is not None else engine.end_ids)[0]
    drawn = torch.Generator().manual_seed(0)
    return [
        [*torch.randint(min(3, size - 1), size, (length - 1,), generator=drawn).tolist(), end] for _ in range(number)
    ]


def _batches(rows: Sequence[list[int]], size: int) -> list[list[list[int]]]:
    """Cut into full batches, beginning anew where texts run out.

    >>> _batches([[1], [2], [3]], 2)
    [[[1], [2]], [[3], [1]]]
    """
    return [[rows[(start + at) % len(rows)] for at in range(size)] for start in range(0, len(rows), size)]


def _rounds(
    engines: Mapping[int, Any], inputs: Mapping[int, list[list[int]]], size: int, repeats: int, limit: int
) -> dict[int, list[tuple[float, float, int, int]]]:
    """Let all engines write each batch before any writes the next: (seconds, of the first token, tokens, longest)."""
    found: dict[int, list[tuple[float, float, int, int]]] = {key: [] for key in engines}
    batches = {key: _batches(inputs[key], size) for key in engines}
    for turn in range(repeats + 1):
        for index in range(max((len(item) for item in batches.values()), default=0)):
            for key, engine in engines.items():
                engine.generate(batches[key][index], max_new_tokens=1)  # caches hold the last engine
                started = _clock()
                engine.generate(batches[key][index], max_new_tokens=1)
                between = _clock()
                written = engine.generate(batches[key][index], max_new_tokens=limit)
                ended = _clock()
                lengths = [len(row.tokens) + (not row.truncated) for row in written]
                if turn:  # the first round warms up
                    found[key].append((ended - between, between - started, sum(lengths), max(lengths)))
    return found


def _row(entry: Entry, size: int, threads: int, found: Sequence[tuple[float, float, int, int]]) -> dict[str, Any]:
    seconds = sorted(item[0] for item in found)
    further = [1000 * (whole - first) / (longest - 1) for whole, first, _, longest in found if longest > 1]
    tokens = sum(item[2] for item in found)
    return {
        "model": entry.model,
        "engine": entry.engine,
        "hash": entry.hash,
        "num_bytes": entry.num_bytes,
        "batch": size,
        "threads": threads,
        "latency_ms": 1000 * statistics.median(seconds),
        "latency_p90_ms": 1000 * seconds[max(0, -(-9 * len(seconds) // 10) - 1)],
        "first_token_ms": 1000 * statistics.median(item[1] for item in found),
        "ms_per_token": statistics.median(further) if further else None,
        "tokens_per_second": tokens / sum(seconds),
        "tokens_per_text": tokens / len(found) / size,
        "peak_memory_mib": None,
    }


def _compare(rows: Sequence[dict[str, Any]], dense: str) -> None:
    """Say of each row how many times faster it is than the baseline's fastest engine in the same setting."""
    for row in rows:
        same = [item for item in rows if (item["batch"], item["threads"]) == (row["batch"], row["threads"])]
        mine = [item for item in same if item["model"] == dense]
        best = min(mine, key=lambda item: item["latency_ms"], default=None)
        quick = max((item["tokens_per_second"] for item in mine), default=None)
        row["times_faster"] = best["latency_ms"] / row["latency_ms"] if best else None
        row["times_faster_per_token"] = row["tokens_per_second"] / quick if quick else None
        row["compared_with"] = {"engine": best["engine"], "hash": best["hash"]} if best else None


def _memory(entry: Entry, row: Mapping[str, Any], inputs: list[list[int]], limit: int, trust: bool) -> float | None:
    """Load and write one batch in a fresh process; its peak resident memory in MiB, libraries and all."""
    asked = {
        "artefact": asdict(entry.artefact), "engine": entry.engine, "threads": row["threads"],
        "batch": _batches(inputs, row["batch"])[0], "limit": limit, "trust": trust,
    }  # fmt: skip
    command = [sys.executable, "-c", "from secateur import benching; benching.write_once()"]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=False)
    return float(done.stdout.split()[-1]) if done.returncode == 0 and done.stdout.split() else None


def write_once() -> None:
    """Write the batch that standard input asks for, and print this process's peak resident memory in MiB."""
    asked = json.load(sys.stdin)
    torch.set_num_threads(asked["threads"])
    artefact = Artefact(**asked["artefact"])
    with artefact.opened(threads=asked["threads"], trust_remote_code=asked["trust"]) as (live, tokenizer):
        _engine(asked["engine"], live, tokenizer).generate(asked["batch"], max_new_tokens=asked["limit"])
    # Not getrusage: its maximum is inherited from the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    print(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024)


def _packages() -> dict[str, str]:
    found = {}
    for name in ("ctranslate2", "onnxruntime"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


__all__ = ["BENCH", "ENGINES", "Entry", "bench", "write_once"]
