"""Build a summarisation set from a Debian package index: long description in, one-line synopsis out.

The index is what `apt-get update` left on a Debian or Ubuntu machine; nothing is downloaded. Rows are split by source
package, by a fixed hash, so that sister packages never stand on both sides and a newer index moves no package.

    python examples/debian_synopsis.py --out recipes/debian/data

The texts belong to the packages' authors, under free licences: look before you publish them. Needs Python alone.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import lzma
import re
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

LISTS = Path("/var/lib/apt/lists")  # where apt keeps its indexes
APT_HELPER = Path("/usr/lib/apt/apt-helper")  # part of apt: reads every compression that apt writes
SUFFIXES = ("", ".gz", ".xz", ".lz4", ".zst")

# The set's definition: other numbers are another set.
MIN_TEXT_WORDS, MAX_TEXT_WORDS = 12, 250
MIN_SUMMARY_WORDS, MAX_SUMMARY_WORDS = 2, 14
_SPLIT_SEED = 42
_VALIDATION_BELOW, _TEST_BELOW = 25, 60  # thousandths of the source packages: 2.5 % and 3.5 %
SPLITS = ("test", "validation", "train")  # a text that several hold stays in the first of them
MAX_PER_SOURCE = {"test": 1, "validation": 1, "train": 4}  # some sources build 200 packages of nearly one description

_SPACE = re.compile(r"[ \t\n]+")  # not str.split(): a no-break space is part of its text


class IndexFault(Exception):
    """The index cannot be read or holds nothing to build from; the message says what to do."""


@dataclass(frozen=True)
class Description:
    """One package's texts.

    Args:
        package: the binary package's name.
        source: the source package it is built from.
        text: the long description, one line a paragraph.
        summary: the synopsis.
    """

    package: str
    source: str
    text: str
    summary: str


def read_index(path: Path) -> str:
    """Read one index file, compressed or not.

    Args:
        path: its name ends as the compression does: nothing, .gz, .xz, .lz4 or .zst.

    Returns:
        Its text; bytes that are not UTF-8 (old third-party archives have some) come out as U+FFFD.

    Raises:
        IndexFault: it cannot be read or unpacked.
    """
    try:
        if path.suffix == ".gz":
            data = gzip.decompress(path.read_bytes())
        elif path.suffix == ".xz":
            data = lzma.decompress(path.read_bytes())
        elif path.suffix in (".lz4", ".zst"):
            data = _read_by_apt(path)
        else:
            data = path.read_bytes()
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise IndexFault(f"{path}: cannot be read: {reason}.") from error
    return data.decode("utf-8", errors="replace")


def _read_by_apt(path: Path) -> bytes:
    """Unpack what the standard library cannot."""
    if not APT_HELPER.exists():
        raise IndexFault(
            f"{path}: Python cannot unpack {path.suffix}, and {APT_HELPER} is not on this machine. Unpack the index "
            f"({'lz4' if path.suffix == '.lz4' else 'zstd'} -d FILE) and give its folder with --lists."
        )
    done = subprocess.run([str(APT_HELPER), "cat-file", str(path)], capture_output=True, check=False)
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip() or f"{APT_HELPER} failed"
        raise IndexFault(f"{path}: cannot be unpacked: {told.splitlines()[0]}")
    return done.stdout


def stanzas(index: str) -> Iterator[dict[str, str]]:
    r"""Cut an index into packages.

    Args:
        index: the text of a Packages or Translation file.

    Yields:
        field -> value, one mapping a package; lines that continue a value keep their first space.

    >>> list(stanzas("Package: a\nDescription: b\n c\n\nPackage: d\n"))
    [{'Package': 'a', 'Description': 'b\n c'}, {'Package': 'd'}]
    """
    fields: dict[str, str] = {}
    field = ""
    for line in index.split("\n"):
        if not line.strip():
            if fields:
                yield fields
            fields, field = {}, ""
        elif line[0] in " \t":
            if field:
                fields[field] += f"\n{line}"
        else:
            field, _, value = line.partition(":")
            fields[field] = value.strip()
    if fields:
        yield fields


def texts_of(description: str) -> tuple[str, str]:
    r"""Part a description into synopsis and long text.

    Args:
        description: the field as it stands: the synopsis, then lines that begin with a space; " ." parts paragraphs.

    Returns:
        The synopsis; the long description, one line a paragraph, white space made single.

    >>> texts_of("shears\n Cuts\n   roses.\n .\n Rusts.")
    ('shears', 'Cuts roses.\nRusts.')
    """
    summary, _, rest = description.partition("\n")
    paragraphs: list[list[str]] = [[]]
    for line in rest.split("\n"):
        if line.strip() == ".":
            paragraphs.append([])
        else:
            paragraphs[-1].append(line)
    lines = (_one_line("\n".join(paragraph)) for paragraph in paragraphs)
    return _one_line(summary), "\n".join(line for line in lines if line)


def _one_line(text: str) -> str:
    return _SPACE.sub(" ", text).strip(" ")


def is_short_summary(text: str, summary: str) -> bool:
    """Tell whether a row is of the set: long enough to need a summary, short enough to be one.

    >>> is_short_summary("word " * 12, "two words"), is_short_summary("word " * 11, "two words")
    (True, False)
    """
    return (
        MIN_TEXT_WORDS <= len(text.split()) <= MAX_TEXT_WORDS
        and MIN_SUMMARY_WORDS <= len(summary.split()) <= MAX_SUMMARY_WORDS
    )


def descriptions(packages: Iterable[str], translations: Iterable[str]) -> list[Description]:
    """Join the packages with their English descriptions.

    Args:
        packages: texts of Packages files; they say which source a package is built from, and some archives put the
            whole description there.
        translations: texts of Translation-en files.

    Returns:
        One row for each different description of a package, not yet chosen by length.
    """
    sources: dict[str, str] = {}
    found: dict[tuple[str, str], Description] = {}
    for index in packages:
        for fields in stanzas(index):
            name = fields.get("Package")
            if name:
                sources[name] = fields.get("Source", name).split(" ")[0]  # "name (version)" where versions differ
                _add(found, name, sources[name], fields.get("Description-en") or fields.get("Description", ""))
    for index in translations:
        for fields in stanzas(index):
            name = fields.get("Package", "")
            if name in sources:
                _add(found, name, sources[name], fields.get("Description-en", ""))
    return list(found.values())


def _add(found: dict[tuple[str, str], Description], name: str, source: str, description: str) -> None:
    summary, text = texts_of(description)
    if text:
        found.setdefault((name, text), Description(name, source, text, summary))


def split_of(source: str) -> str:
    """Say which split a source package belongs to; it depends on the name alone.

    >>> split_of("hello"), split_of("secateur")
    ('train', 'train')
    """
    part = _digest(source) % 1000
    return "validation" if part < _VALIDATION_BELOW else "test" if part < _TEST_BELOW else "train"


def _digest(name: str) -> int:
    return int(hashlib.sha256(f"{_SPLIT_SEED}:{name}".encode()).hexdigest(), 16)


def split_rows(rows: Iterable[Description]) -> dict[str, list[Description]]:
    """Choose the rows of each split.

    Args:
        rows: descriptions of any length.

    Returns:
        split -> its rows, ordered by the hash of the package's name, so that a slice is a random sample. No text comes
        twice, in one split or in two; validation and test have one package of a source, or large sources would weigh
        more than small ones, and training has four at most.
    """
    chosen: dict[str, list[Description]] = {split: [] for split in SPLITS}
    usable = (row for row in rows if is_short_summary(row.text, row.summary))
    ordered = sorted(usable, key=lambda row: (_digest(row.package), row.text))
    texts: set[str] = set()
    for split in SPLITS:
        taken: Counter[str] = Counter()
        for row in ordered:
            full = taken[row.source] == MAX_PER_SOURCE[split]
            if split_of(row.source) == split and not full and row.text not in texts:
                texts.add(row.text)
                taken[row.source] += 1
                chosen[split].append(row)
    return chosen


def write_split(path: Path, rows: Sequence[Description]) -> None:
    """Write rows as compressed JSON lines, equal rows as equal bytes.

    Args:
        path: ends in .jsonl.gz.
        rows: in the order of the file.

    Raises:
        IndexFault: it cannot be written.
    """
    lines = (
        json.dumps({"package": row.package, "text": row.text, "summary": row.summary}, ensure_ascii=False) + "\n"
        for row in rows
    )
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))  # the time would change the bytes
        partial.replace(path)
    except OSError as error:
        raise IndexFault(f"{path}: cannot be written: {error.strerror or error}.") from error


def index_files(lists: Path, kind: str) -> list[Path]:
    """Find the files of one kind, each index once, the least packed first.

    Args:
        lists: apt's folder of indexes.
        kind: "Packages" or "Translation-en".

    Returns:
        The files, ordered by name.
    """
    files: dict[str, Path] = {}
    for suffix in SUFFIXES:
        for path in lists.glob(f"*{kind}{suffix}"):
            files.setdefault(path.name.removesuffix(suffix), path)
    return [files[name] for name in sorted(files)]


def build(lists: Path, out: Path) -> dict[str, int]:
    """Read the index and write the three files.

    Args:
        lists: apt's folder of indexes.
        out: folder to write to; made when missing, its three files are replaced.

    Returns:
        split -> number of rows.

    Raises:
        IndexFault: there is no index, it holds no long descriptions, or a file cannot be read or written.
    """
    packages, translations = index_files(lists, "Packages"), index_files(lists, "Translation-en")
    if not packages:
        raise IndexFault(f"{lists}: no package index there (*_Packages). Run apt-get update, or give --lists FOLDER.")

    def texts(paths: Sequence[Path]) -> Iterator[str]:
        for path in paths:
            print(f"reading {path.name}", file=sys.stderr)
            yield read_index(path)

    found = descriptions(texts(packages), texts(translations))
    print(f"{len(found):,} descriptions", file=sys.stderr)
    rows = split_rows(found)
    if not rows["train"]:
        raise IndexFault(
            f"{lists}: no long descriptions there. apt fetches them as *Translation-en, unless it is told not to, as "
            "in most container images. Fetch them into a folder of your own: mkdir -p lists/partial; apt-get update "
            "-o Dir::State::lists=$PWD/lists -o Acquire::Languages=en; then give --lists lists."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise IndexFault(f"{out}: cannot be made: {error.strerror or error}.") from error
    for split, some in rows.items():
        write_split(out / f"{split}.jsonl.gz", some)
    return {split: len(some) for split, some in rows.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: none: those of the process.

    Returns:
        0, or 1 after a problem that was told.
    """
    parser = argparse.ArgumentParser(
        description="Build a summarisation set (train, validation, test .jsonl.gz) from this machine's package index.",
        epilog="Columns: package, text (the long description, one line a paragraph), summary (the synopsis).",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the three files")
    parser.add_argument("--lists", type=Path, default=LISTS, help="apt's folder of indexes (default: %(default)s)")
    given = parser.parse_args(arguments)
    try:
        counts = build(given.lists, given.out)
    except IndexFault as fault:
        print(fault, file=sys.stderr)
        return 1
    for split in reversed(SPLITS):
        print(f"{given.out / split}.jsonl.gz: {counts[split]:,} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
