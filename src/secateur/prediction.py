"""Let a model write, or name classes, for texts that have no references: `secateur predict`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.artefact import Artefact, find_artefact
from secateur.errors import CheckpointError, DataError
from secateur.evaluation.evaluate import answer
from secateur.evaluation.formats import FORMATS
from secateur.evaluation.generate import Prediction
from secateur.fields import evaluation_arguments
from secateur.files import check_writable, write_text
from secateur.measure import recipe_of
from secateur.recipe.open import open_recipe
from secateur.recipe.schema import Recipe
from secateur.registry import choose
from secateur.tasks.pairs import Source, check_columns, columns_of, source_of, with_prefix
from secateur.tasks.readers import SUFFIXES, read_file

PLAIN = ".txt"
_MAX_FAULTS = 5  # faulty rows that one message names


@dataclass(frozen=True)
class Predictions:
    """What was read and what was written.

    Args:
        sources: texts, or two each, as they were given, without the task's prefix.
        predictions: one per source, in order.
    """

    sources: tuple[Source, ...]
    predictions: tuple[Prediction, ...]

    @property
    def texts(self) -> list[str]:
        """The outputs alone."""
        return [prediction.text for prediction in self.predictions]

    def as_text(self, format: str) -> str:
        """Write them out as jsonl, csv, or the course's two columns; see `secateur.evaluation.formats`."""
        return choose(FORMATS, format, "format")(self.sources, self.predictions)


def predict(
    model: str,
    texts: str | Path | Iterable[Source],
    recipe: Recipe | str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    device: str = "auto",
    out: str | Path | None = None,
    format: str | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Write an output, or name the class, for every text of a file; no references are needed.

    Args:
        model: a run folder (its final model), a stage folder, a Hugging Face folder, an export, a packed file, or a
            hub id.
        texts: a file (.jsonl, .jsonl.gz, .csv or .parquet with the task's source column, or .txt with a text a line),
            or the texts themselves, without the task's prefix. A task that reads two texts a row takes a file with both
            columns, or pairs of texts.
        recipe: says source column, prefix, lengths and beams; by default the recipe of the run that `model` belongs to.
        overrides: `a.b=c`, as `--set` takes them.
        device: auto, cpu, cuda or mps.
        out: a file to write; it is replaced in one step when all is done, and is not the file that is read.
        format: of `out`: jsonl, csv, or course; by default csv where `out` ends in .csv, else jsonl.
        on_batch: is told (texts done, texts in all).

    Returns:
        The texts and their outputs, in the order given.

    Raises:
        RecipeError: the recipe is wrong.
        DataError: the file cannot be read, lacks a source column, or holds no texts; or the task reads two texts a row,
            and one is given.
        SecateurError: no such model, recipe or format, or `out` cannot be written.
    """
    form = choose_format(format, out)
    artefact = find_artefact(model)
    checked = open_recipe(recipe if recipe is not None else recipe_of(model), overrides)
    columns, prefix = checked.task.source, checked.task.prefix
    sources = read_sources(texts, columns) if isinstance(texts, str | Path) else _texts_given(texts, columns)
    if out is not None:
        _check_out(out, texts)
    written = write_outputs(
        artefact, checked, [with_prefix(source, prefix) for source in sources], device=device, on_batch=on_batch
    )
    found = Predictions(sources, tuple(written))
    if out is not None:
        write_text(out, found.as_text(form))
    return found


def choose_format(format: str | None, out: str | Path | None) -> str:
    """Check a format's name, or take the one that a file's name tells.

    Args:
        format: jsonl, csv, course, or None.
        out: the file to write, if any.

    Returns:
        The format.

    Raises:
        SecateurError: no such format.

    >>> choose_format(None, "outputs.csv"), choose_format(None, None), choose_format("course", "outputs.csv")
    ('csv', 'jsonl', 'course')
    """
    if format is None:
        return "csv" if str(out).lower().endswith(".csv") else "jsonl"
    choose(FORMATS, format, "format")
    return format


def write_outputs(
    artefact: Artefact,
    recipe: Recipe,
    sources: Sequence[Source],
    *,
    device: str = "auto",
    on_batch: Callable[[int, int], None] | None = None,
) -> list[Prediction]:
    """Load a model and let it write, or name classes, as a recipe's evaluation says.

    Args:
        artefact: what writes.
        recipe: gives lengths, beams and batch size.
        sources: texts, or two each, prefix applied, at least one.
        device: auto, cpu, cuda or mps.
        on_batch: is told (texts done, texts in all).

    Returns:
        One output per source.

    Raises:
        SecateurError: the model cannot be loaded, its tokenizer is another's, or a batch does not fit into the memory.
    """
    chosen, settings = artefact.device(device), recipe.evaluation
    with artefact.opened(trust_remote_code=recipe.trust_remote_code) as (writer, tokenizer):
        given = evaluation_arguments(recipe, settings)
        asked = {key: value for key, value in given.items() if key not in ("prefix", "seed")}
        return answer(writer, tokenizer, sources, **asked, device=chosen, on_batch=on_batch)


def read_sources(path: str | Path, column: str | Sequence[str]) -> tuple[Source, ...]:
    """Read the texts of a file; other columns may stand there and are not looked at.

    Args:
        path: ends in .jsonl, .jsonl.gz, .csv, .parquet, or .txt: there every line is a text, an empty one too.
        column: holds the texts, or the two that do; one means nothing for .txt.

    Returns:
        The texts, or two each, in the file's order.

    Raises:
        DataError: no such file, another kind of file, no such column, rows that are not text, or no rows.
    """
    names = columns_of(column)
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a folder: give a file in it" if path.is_dir() else "no such file"
        raise DataError(f"{path}: {what}.")
    if path.name.endswith(PLAIN):
        if len(names) > 1:
            raise DataError(
                f"{path}: holds one text a line, and the task reads two a row, {' and '.join(map(repr, names))}. Give "
                f"a file with both columns: {', '.join(SUFFIXES)}."
            )
        return _plain_lines(path)
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{path}: cannot be read. Files of texts end in {', '.join((*SUFFIXES, PLAIN))}.")
    rows = read_file(path, "train")
    if not rows:
        raise DataError(f"{path}: holds no rows.")
    one = "Choose one with --set task.source=COLUMN."
    advice = one if len(names) == 1 else "Choose two with --set 'task.source=[FIRST, SECOND]'."
    check_columns(rows[0][1], names, str(path), f" {advice}")
    for name in names:
        _check_texts([(place, row.get(name)) for place, row in rows], f"{path}, column {name!r}")
    return tuple(source_of([row[name] for name in names]) for _, row in rows)


def _plain_lines(path: Path) -> tuple[str, ...]:
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8 text ({error.reason}). Convert the file to UTF-8.") from error
    if not text.strip():
        raise DataError(f"{path}: holds no texts.")
    lines = text.replace("\r\n", "\n").split("\n")  # not splitlines: a text may hold U+2028
    return tuple(lines[:-1] if not lines[-1] else lines)


def _texts_given(texts: Iterable[Any], columns: str | Sequence[str]) -> tuple[Source, ...]:
    given, names = tuple(texts), columns_of(columns)
    if not given:
        raise DataError("there are no texts to write for.")
    if len(names) == 1:
        _check_texts([(f"text {number}", text) for number, text in enumerate(given, start=1)], "texts")
        return given
    rows = [(f"row {number}", row) for number, row in enumerate(given, start=1)]
    _tell([f"{place}: must be two texts, and is {row!r:.60}." for place, row in rows if not _is_two(row)], "texts")
    for side, name in enumerate(names):
        _check_texts([(place, row[side]) for place, row in rows], f"texts, {name}")
    return tuple((row[0], row[1]) for row in given)


def _is_two(row: Any) -> bool:
    return isinstance(row, tuple | list) and len(row) == 2


def _check_texts(values: Sequence[tuple[str, Any]], where: str) -> None:
    """Name what is not text, all at once."""
    _tell([f"{place}: {fault}" for place, value in values if (fault := _fault(value))], where)


def _tell(faults: Sequence[str], where: str) -> None:
    if faults:
        more = f"\n... and {len(faults) - _MAX_FAULTS} more rows." if len(faults) > _MAX_FAULTS else ""
        raise DataError(f"{where}:\n" + "\n".join(faults[:_MAX_FAULTS]) + more)


def _fault(value: Any) -> str:
    if value is None:
        return "the text is missing."
    if not isinstance(value, str):
        return f"must be text, and is {type(value).__name__} {value!r:.60}."
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"holds half a character ({value[error.start]!a}), which no file can hold."
    return ""


def _check_out(out: str | Path, texts: Any) -> None:
    """Refuse, before the work, a file that could not be written after it."""
    if isinstance(texts, str | Path) and Path(out).resolve() == Path(texts).expanduser().resolve():
        raise CheckpointError(f"{out}: is the file that is read. Choose another --out.")
    check_writable(out)
