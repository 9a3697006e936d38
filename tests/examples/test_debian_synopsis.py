"""An invented package index gives the rows that the rules say, and every fault is one plain sentence."""

from __future__ import annotations

import doctest
import gzip
import hashlib
import lzma
import random
from pathlib import Path

import debian_synopsis
import pytest
from debian_synopsis import SPLITS, Description, descriptions, index_files, main, read_index, split_of, split_rows

from secateur.tasks.pairs import load_pairs

NUM_SOURCES = 400
WORDS = ("prune", "graft", "hedge", "root", "bough", "sap", "thorn", "bud", "leaf", "bark", "seed", "soil", "frost")


def words(number: int, seed: object) -> str:
    return " ".join(random.Random(str(seed)).choices(WORDS, k=number))


def package(name: str, source: str, summary: str) -> str:
    lines = [f"Package: {name}", "Version: 1-1", f"Description: {summary}", "Depends: libbough (>= 1),", " libsap"]
    return "\n".join([*lines, *([f"Source: {source} (1.0)"] if source != name else [])]) + "\n"


def translation(name: str, summary: str, lines: list[str]) -> str:
    digest = hashlib.md5(summary.encode(), usedforsecurity=False).hexdigest()
    body = "\n".join(f" {line}" for line in lines)
    return f"Package: {name}\nDescription-md5: {digest}\nDescription-en: {summary}\n{body}\n"


def write_index(lists: Path) -> None:
    """400 sources of six packages, of which the last has a text that is too short."""
    packages, translations = [], []
    for number in range(NUM_SOURCES):
        for part in range(6):
            name, source = f"bough{number}-{part}" if part else f"bough{number}", f"bough{number}"
            summary = words(4, f"summary {name}")
            text = words(3 if part == 5 else 20, name)
            packages.append(package(name, source, summary))
            translations.append(translation(name, summary, [text, ".", f"Of {source}."]))
    lists.mkdir(exist_ok=True)
    (lists / "garden.example_dists_spring_main_binary-all_Packages").write_text("\n".join(packages))
    (lists / "garden.example_dists_spring_main_i18n_Translation-en").write_text("\n".join(translations))


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("lists")
    write_index(place)
    return place


def test_its_examples_hold() -> None:
    result = doctest.testmod(debian_synopsis)
    assert result.attempted >= 4 and not result.failed


def test_the_three_files_are_read_as_a_data_set(lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--lists", str(lists), "--out", str(tmp_path / "data")]) == 0
    told = capsys.readouterr()
    assert "train.jsonl.gz: 1,5" in told.out and "2,400 descriptions" in told.err
    pairs = {
        split: load_pairs(str(tmp_path / "data"), split, source="text", target="summary", prefix="") for split in SPLITS
    }
    assert len(pairs["train"]) > 1000 and len(pairs["validation"]) > 2 and len(pairs["test"]) > 4
    for source, (target,) in zip(pairs["train"].sources, pairs["train"].references, strict=True):
        assert len(source.split()) == 22 and source.split("\n")[1].startswith("Of bough")
        assert len(target.split()) == 4


def test_two_builds_have_equal_bytes(lists: Path, tmp_path: Path) -> None:
    for out in ("a", "b"):
        assert main(["--lists", str(lists), "--out", str(tmp_path / out)]) == 0
    files = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert files == ["test.jsonl.gz", "train.jsonl.gz", "validation.jsonl.gz"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_splits_share_no_source_and_no_text(lists: Path) -> None:
    found = descriptions(*([read_index(file)] for kind in KINDS for file in index_files(lists, kind)))
    rows = split_rows(found)
    sources = {split: [row.source for row in some] for split, some in rows.items()}
    everything = [row.text for some in rows.values() for row in some]
    assert len(set(everything)) == len(everything)
    assert all(split_of(source) == split for split in SPLITS for source in sources[split])
    for split in SPLITS:
        most = max(sources[split].count(source) for source in set(sources[split]))
        assert most == (4 if split == "train" else 1)  # of the five that are long enough
    assert not any(row.package.endswith("-5") for some in rows.values() for row in some)
    names = [row.package for row in rows["train"]]
    assert names != sorted(names)
    assert split_rows(found[::-1]) == rows  # the order of the index does not matter


KINDS = ("Packages", "Translation-en")


def test_the_split_of_a_source_never_changes() -> None:
    # Written down once: another rule would be another test set, and old figures would no longer compare.
    splits = [split_of(f"bough{number}") for number in range(1000)]
    assert {split: splits.count(split) for split in SPLITS} == {"test": 43, "validation": 22, "train": 935}
    assert [number for number in range(100) if splits[number] == "test"] == [8, 60, 76]


def row(name: str, num_words: int = 12, summary: str = "two words", text: str | None = None) -> Description:
    return Description(name, name, words(num_words, name) if text is None else text, summary)


def test_rows_of_other_lengths_are_left_out() -> None:
    lengths = [row(f"a{number}", number) for number in (11, 12, 250, 251)]
    summaries = [row(f"b{number}", summary="word " * number) for number in (1, 2, 14, 15)]
    kept = {item.package for some in split_rows([*lengths, *summaries]).values() for item in some}
    assert kept == {"a12", "a250", "b2", "b14"}


def test_a_text_of_two_splits_stays_in_the_test() -> None:
    names = {split: next(f"bough{n}" for n in range(1000) if split_of(f"bough{n}") == split) for split in SPLITS}
    rows = split_rows([row(name, text=words(12, "same")) for name in names.values()])
    assert [len(rows[split]) for split in SPLITS] == [1, 0, 0]


def test_sources_come_from_the_field_with_its_version_cut_off() -> None:
    index = package("libbough1", "bough", "a b") + "\n" + package("bough", "bough", "c d")
    text = "\n".join([translation("libbough1", "a b", ["x"]), translation("bough", "c d", ["y"])])
    assert [(item.package, item.source) for item in descriptions([index], [text])] == [
        ("libbough1", "bough"),
        ("bough", "bough"),
    ]


def test_paragraphs_and_lists_become_lines() -> None:
    lines = ["Cuts  boughs:", "  * thin", "  * thick", ".", "and", "leaves.", ".", "."]
    (found,) = descriptions([package("a", "a", "b")], [translation("a", "b", lines)])
    assert found.text == "Cuts boughs: * thin * thick\nand leaves."


def test_whole_descriptions_in_the_index_itself_count_once() -> None:
    whole = "Package: a\nDescription: b\n Cuts boughs.\n"
    assert len(descriptions([whole, whole], [translation("a", "b", ["Cuts boughs."])])) == 1
    assert descriptions([], [translation("a", "b", ["Cuts boughs."])]) == []  # not a package that can be had


def test_compressed_indexes_are_read_as_plain_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "apt-helper"
    helper.write_text('#!/bin/sh\n[ "$1" = cat-file ] && exec gzip -dc < "$2"\n')
    helper.chmod(0o755)
    monkeypatch.setattr(debian_synopsis, "APT_HELPER", helper)
    text = package("a", "a", "caf\u00e9 b")
    data = text.encode()
    contents = {
        "": data,
        ".gz": gzip.compress(data),
        ".xz": lzma.compress(data),
        ".lz4": gzip.compress(data),
        ".zst": gzip.compress(data),
    }
    for suffix, content in contents.items():
        path = tmp_path / f"x_Packages{suffix}"
        path.write_bytes(content)
        assert read_index(path) == text
    assert index_files(tmp_path, "Packages") == [tmp_path / "x_Packages"]  # each index once


def failure(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return told.splitlines()[-1]


def test_faults_are_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    lists, out = tmp_path / "lists", tmp_path / "out"
    assert "no package index there" in failure(capsys, "--lists", lists, "--out", out)
    lists.mkdir()
    index = lists / "x_Packages"
    index.write_text(package("a", "a", "b c"))
    told = failure(capsys, "--lists", lists, "--out", out)
    assert "no long descriptions there" in told and "Acquire::Languages=en" in told
    for suffix, content in ((".gz", b"no gzip"), (".xz", b"no xz"), (".gz", gzip.compress(b"a" * 999)[:-9])):
        index.rename(lists / f"x_Packages{suffix}").write_bytes(content)
        index = lists / f"x_Packages{suffix}"
        assert f"{index.name}: cannot be read: " in failure(capsys, "--lists", lists, "--out", out)
    index = index.rename(lists / "x_Packages.lz4")
    monkeypatch.setattr(debian_synopsis, "APT_HELPER", tmp_path / "none")
    assert "Python cannot unpack .lz4" in failure(capsys, "--lists", lists, "--out", out)
    helper = tmp_path / "broken"
    helper.write_text("#!/bin/sh\necho 'E: not an index' >&2\nexit 100\n")
    helper.chmod(0o755)
    monkeypatch.setattr(debian_synopsis, "APT_HELPER", helper)
    assert "cannot be unpacked: E: not an index" in failure(capsys, "--lists", lists, "--out", out)
    assert not out.exists()


def test_an_out_that_cannot_be_written_is_told(lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be made" in failure(capsys, "--lists", lists, "--out", tmp_path / "file")
    (tmp_path / "out" / "test.jsonl.gz").mkdir(parents=True)
    assert "test.jsonl.gz: cannot be written" in failure(capsys, "--lists", lists, "--out", tmp_path / "out")
