"""Time models in several engines in turns: quality, bytes and milliseconds of a row come from one artefact."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from secateur.artefact import find_artefact
from secateur.artifacts.manifest import environment
from secateur.bench_entries import ENGINES, Entry, Skipped, Work, make_entries, of_use, open_sources, opened, sources_of
from secateur.bench_folder import (
    BENCH,
    FORMAT,
    VERSION,
    cell_file,
    held_folder,
    quality_file,
    read_cell,
    read_quality,
)
from secateur.bench_memory import peak_memory_mib
from secateur.bench_timing import compare_rows, row_of, time_turns
from secateur.errors import SecateurError
from secateur.evaluation.evaluate import evaluate_model
from secateur.evaluation.metrics import settings_of
from secateur.exports.folder import usable_threads
from secateur.fields import evaluation_arguments, load_split, needed, refuse_classes
from secateur.files import read_json, write_json
from secateur.measure import find_recipe
from secateur.recipe.schema import Evaluation, Recipe
from secateur.report.bench import write_report
from secateur.tasks.pairs import Pairs, spread

NEW_TOKENS, SOURCE_TOKENS = 64, 256  # where no recipe says how many


def bench(
    models: Sequence[str],
    recipe: Recipe | str | Path | None = None,
    *,
    out: str | Path | None = None,
    engines: Sequence[str] | None = None,
    dense: str | None = None,
    batches: Sequence[int] = (1, 8),
    threads: Sequence[int | None] = (1, None),
    repeats: int = 5,
    num_texts: int = 8,
    source_tokens: int | None = None,
    new_tokens: int | None = None,
    exactly: bool = True,
    overrides: Sequence[str] = (),
    split: str | None = None,
    quality: bool = False,
    memory: bool = True,
    on_turn: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Time every model in every engine on the CPU, greedy, in turns, so that drift of the machine hits all alike.

    A batch is written by all models and engines, one after the other, before the next batch is; the first round is not
    timed. By default every output has exactly `new_tokens` tokens, so that a model which ends its texts earlier, or
    never, is not the faster or the slower for it. `tokens_per_second` and `ms_per_token` count the tokens really
    written (the end token too, padding not); `times_faster` compares a batch's median milliseconds,
    `times_faster_per_token` tokens per second. Quality is always of outputs as they come.

    Every setting of batch and threads, and the quality of every artefact, is saved in `out` as it is done; a bench that
    was stopped goes on with the next one. One that is done may be asked for other batches, threads or another baseline,
    and for quality or memory; whatever is there is kept, and reported too.

    Args:
        models: whatever `find_artefact` knows. A plain or packed model is exported for each engine; an export runs as
            itself only.
        recipe: says task, data and limits; by default that of the first model's run, and random tokens without one.
        out: the bench's folder, for bench.json, bench.md, bench.png and the exports: new, empty, or that of the same
            bench, which it goes on with; None keeps nothing.
        engines: names of ENGINES; one that cannot be used is listed as skipped, with its reason. None: all; hf-bf16 is
            then skipped too where the processor has no instructions for bf16.
        dense: which of `models` the baseline is: its fastest engine is what speed-ups are stated against.
        batches: numbers of texts at once, each at least 1.
        threads: numbers of CPU threads; None: all.
        repeats: timed rounds, at least 1.
        num_texts: texts of the split, spread over the lengths; a batch larger than that repeats them.
        source_tokens: of each random source, the end token counted; by default 256. Only without a recipe.
        new_tokens: how many tokens are written; by default the recipe's limit, 64 without one.
        exactly: no engine may write an end token, so that every output has `new_tokens`; False: outputs as they come,
            at most so long.
        overrides: `a.b=c`, as `--set` takes them.
        split: by default the recipe's; needs a recipe.
        quality: also evaluate each artefact on the split through its engine, greedily like what is timed; needs a
            recipe.
        memory: also measure peak memory, in a fresh process for each row; None where the system does not tell it.
        on_turn: is told what begins.

    Returns:
        What bench.json holds: rows, skipped engines with reasons, settings, the environment.

    Raises:
        SecateurError: no model, an unknown engine, a wrong number, quality without a recipe, or nothing could be run.
        CheckpointError: a model is missing, damaged or without a tokenizer, or `out` is foreign or holds another bench.
    """
    baseline = _check(models, ENGINES if engines is None else engines, dense)
    counts = list(dict.fromkeys(usable_threads(number) for number in threads))
    sizes = list(dict.fromkeys(batches))
    numbers = {"num_texts": num_texts, "repeats": repeats, "source_tokens": source_tokens, "new_tokens": new_tokens}
    for name, values in {"batches": sizes, "threads": counts, **{key: [item] for key, item in numbers.items()}}.items():
        _positive(name, values)
    found = [find_artefact(model) for model in models]
    checked = find_recipe(models[0], recipe, overrides)
    refuse_classes(checked, "bench: it times what is generated")
    if (quality or split) and checked is None:
        what = "quality is measured on a recipe's split" if quality else f"split {split} is of a recipe's data"
        raise SecateurError(f"{what}, and no recipe is known. Give one with --recipe.")
    if source_tokens is not None and checked is not None:
        raise SecateurError(
            "source_tokens cannot act: the recipe's texts are read. Set task.max_source_tokens to cut them."
        )
    greedy = checked.evaluation.model_copy(update={"num_beams": 1}) if checked else None
    wanted = split or checked.evaluation.split if checked else None
    pairs = load_split(checked, wanted) if checked and wanted else None
    work = Work(
        texts=spread(pairs.texts, num_texts) if pairs is not None else None,
        num_texts=num_texts,
        source_tokens=checked.task.max_source_tokens if checked else source_tokens or SOURCE_TOKENS,
        new_tokens=new_tokens or (needed(checked.evaluation.max_new_tokens) if checked else NEW_TOKENS),
        exactly=exactly,
    )
    about = {
        "format": FORMAT,
        "version": VERSION,
        "models": list(models),
        "hashes": [artefact.hash for artefact in found],
        "dense": baseline,
        "engines": list(of_use() if engines is None else engines),
        "inputs": f"{len(work.texts)} texts of {wanted}" if work.texts else f"{work.source_tokens} random tokens",
        "data_hash": pairs.fingerprint() if pairs is not None else None,
        "num_texts": num_texts,
        "source_tokens": work.source_tokens,
        "new_tokens": work.new_tokens,
        "exactly": exactly,
        "repeats": repeats,
        "metrics": settings_of(checked.evaluation.metrics) if checked else None,
        "evaluation": evaluation_arguments(checked, greedy) if checked and greedy else None,
        "environment": environment("cpu") | _packages(),
    }
    tell = on_turn or (lambda text: None)
    trust = checked.trust_remote_code if checked else False
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="secateur-")))
        folder = Path(out).expanduser().resolve() if out is not None else place / "bench"
        sources = open_sources(found, place, trust_remote_code=trust)
        stack.enter_context(held_folder(folder, about))
        entries, skipped = make_entries(models, sources, engines, folder / "exports", tell)
        for number in counts:
            _time(folder, entries, work, sizes, number, repeats=repeats, trust=trust, tell=tell)
        files = [cell_file(folder, size, number) for number in counts for size in sizes]
        timed = {row["name"] for file in files for row in read_json(file)["rows"]}
        if not timed:
            reasons = "; ".join(
                f"{item['model']} in {item['engine']}: {item['reason']}" for item in [*skipped, *_not_opened(files)]
            )
            raise SecateurError(f"none of the engines could run a model: {reasons}")
        measured = {entry.name: entry for entry in entries if entry.name in timed}
        if memory:
            for file in files:
                _measure_memory(file, measured, work, trust=trust, tell=tell)
        if quality and checked and greedy and pairs is not None:
            for entry in measured.values():
                skipped += _measure_quality(folder, entry, checked, greedy, pairs, threads=max(counts), tell=tell)
        files += _further(folder, files, entries)
        skipped += _not_opened(files)
        content = about | {"rows": _rows(folder, files, entries), "skipped": skipped}
        compare_rows(content["rows"], baseline)
        write_json(folder / BENCH, content)
        if out is not None:
            write_report(content, folder)
    return content


def _check(models: Sequence[str], engines: Collection[str], dense: str | None) -> str:
    if not models or len(set(models)) < len(models):
        raise SecateurError(f"models: must be at least one, each once, and is {list(models)}.")
    unknown = [name for name in engines if name not in ENGINES]
    if unknown or not engines or len(set(engines)) < len(engines):
        wrong = f"no such engine: {', '.join(unknown)}" if unknown else "must be at least one, each once"
        raise SecateurError(f"engines: {wrong}. There are: {', '.join(ENGINES)}.")
    if dense is not None and dense not in models:
        raise SecateurError(f"dense: {dense} is none of the models: {', '.join(models)}.")
    return dense if dense is not None else models[0]


def _positive(name: str, values: Sequence[int | None]) -> None:
    if not values or any(value is not None and value < 1 for value in values):
        raise SecateurError(f"{name}: must be numbers of at least 1, and is {list(values)}.")


def _time(
    folder: Path,
    entries: Sequence[Entry],
    work: Work,
    sizes: Sequence[int],
    threads: int,
    *,
    repeats: int,
    trust: bool,
    tell: Callable[[str], None],
) -> None:
    """Measure what is not there yet of a number of threads, and save each batch size as it is done."""
    mended = _mended(folder, entries, sizes, threads, trust=trust)
    missing = [size for size in sizes if read_cell(folder, size, threads, entries, mended) is None]
    if not missing:
        return
    with opened(entries, threads=threads, trust_remote_code=trust) as (found, skipped):
        sources = {}
        for entry, pair in found.items():
            try:
                sources[entry] = sources_of(work, *pair)
            except SecateurError as error:
                skipped.append(entry.skipped(error))
        engines = {entry: found[entry][0] for entry in sources}
        for size in missing:
            tell(f"batch {size}, {threads} threads")
            timed = time_turns(engines, sources, work, size=size, repeats=repeats)
            rows = [row_of(entry, turns, size=size, threads=threads) for entry, turns in timed.items()]
            write_json(cell_file(folder, size, threads), {"rows": rows, "skipped": skipped})


def _mended(folder: Path, entries: Sequence[Entry], sizes: Sequence[int], threads: int, *, trust: bool) -> set[str]:
    """Name what could not be opened when a cell was measured, and can be now: a file that was copied again."""
    files = [file for size in sizes if (file := cell_file(folder, size, threads)).exists()]
    left_out = {item["name"] for item in _not_opened(files)}
    again = [entry for entry in entries if entry.name in left_out]
    if not again:
        return set()
    with opened(again, threads=threads, trust_remote_code=trust) as (found, _):
        return {entry.name for entry in found}


def _further(folder: Path, files: Sequence[Path], entries: Sequence[Entry]) -> list[Path]:
    """List the cells of an earlier question about the same entries: they stand in the report too."""
    found = []
    for file in sorted({*folder.glob("cells/*.json")} - {*files}):
        rows = read_json(file)["rows"]
        if rows and read_cell(folder, rows[0]["batch"], rows[0]["threads"], entries):
            found.append(file)
    return found


def _not_opened(files: Sequence[Path]) -> Skipped:
    """List what could not be opened for some cell, each once."""
    found: Skipped = []
    for item in (item for file in files for item in read_json(file)["skipped"]):
        found.extend([item] if item not in found else [])
    return found


def _measure_memory(
    file: Path, entries: Mapping[str, Entry], work: Work, *, trust: bool, tell: Callable[[str], None]
) -> None:
    """Add the peak memory to the rows of a cell that lack it, and save each."""
    cell = read_json(file)
    for row in (row for row in cell["rows"] if "peak_memory_mib" not in row):
        size, threads = row["batch"], row["threads"]
        tell(f"memory of {row['model']} in {row['engine']}, batch {size}, {threads} threads")
        entry = entries[row["name"]]
        try:
            peak = peak_memory_mib(entry, work, size=size, threads=threads, trust_remote_code=trust)
        except SecateurError as error:
            tell(str(error))
            continue  # the same command tries again
        row["peak_memory_mib"] = peak
        write_json(file, cell)


def _measure_quality(
    folder: Path,
    entry: Entry,
    recipe: Recipe,
    settings: Evaluation,
    pairs: Pairs,
    *,
    threads: int,
    tell: Callable[[str], None],
) -> Skipped:
    """Evaluate an artefact through its engine, unless it has been; give what could not be opened."""
    if read_quality(folder, entry) is not None:
        return []
    tell(f"quality of {entry.model} in {entry.engine}")
    with opened([entry], threads=threads, trust_remote_code=recipe.trust_remote_code) as (found, skipped):
        if skipped:
            return skipped
        engine, tokenizer = found[entry]
        result = evaluate_model(
            engine,
            tokenizer,
            pairs,
            metrics=settings.metrics,
            **evaluation_arguments(recipe, settings),
        )
    figures = {name: asdict(figure) for name, figure in result.figures.items()}
    write_json(quality_file(folder, entry), {**entry.named, "metrics": figures})
    return []


def _rows(folder: Path, files: Sequence[Path], entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Bring each artefact's milliseconds, memory and quality together; what was not measured is None or empty."""
    named = {entry.name: entry for entry in entries}
    rows = [{"peak_memory_mib": None, **row} for file in files for row in read_json(file)["rows"]]
    return [row | {"metrics": read_quality(folder, named[row["name"]]) or {}} for row in rows]


def _packages() -> dict[str, str]:
    found = {}
    for name in ("ctranslate2", "onnxruntime"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


__all__ = ["BENCH", "ENGINES", "NEW_TOKENS", "Entry", "Skipped", "bench"]
