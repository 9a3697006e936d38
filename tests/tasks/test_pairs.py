"""Every way to get pairs gives the same pairs; every fault is told plainly, with its place."""

from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from secateur.errors import DataError
from secateur.tasks.pairs import BUILTIN, Pairs, load_pairs, pairs_from_rows

ROWS = [{"text": f"source, {n}\u2028 ü", "summary": f'target "{n}"\nmore'} for n in range(40)]


def _write(folder: Path, split: str, suffix: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"{split}{suffix}"
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if suffix == ".jsonl":
        path.write_text(lines, encoding="utf-8")
    elif suffix == ".jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def _load(path: object, split: str = "train", **options: Any) -> Pairs:
    return load_pairs(str(path), split, **{"source": "text", "target": "summary", **options})


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".parquet"])
def test_every_format_gives_the_rows_in_order(tmp_path: Path, suffix: str) -> None:
    path = _write(tmp_path, "train", suffix, ROWS)
    expected = pairs_from_rows(ROWS, source="text", target="summary", prefix="do: ")
    assert expected.sources[1] == "do: source, 1\u2028 ü"
    assert expected.references[1] == ('target "1"\nmore',)
    for given in (tmp_path, path):
        pairs = _load(given, prefix="do: ")
        assert pairs == expected
        assert pairs.fingerprint() == expected.fingerprint()


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_list_of_targets_is_several_references(tmp_path: Path, suffix: str) -> None:
    _write(tmp_path, "test", suffix, [{"text": "a", "summary": ["x", "y"]}, {"text": "b", "summary": ["z"]}])
    pairs = _load(tmp_path, "test")
    assert pairs.references == (("x", "y"), ("z",))
    assert pairs.rows() == [("a", "x"), ("a", "y"), ("b", "z")]


def test_fingerprint_sees_text_order_and_grouping() -> None:
    variants = [
        Pairs(("a", "b"), (("x",), ("y",))),
        Pairs(("b", "a"), (("y",), ("x",))),
        Pairs(("a", "b"), (("x",), ("z",))),
        Pairs(("a", "b"), (("x", "y"), ("y",))),
        Pairs(("a",), (("x", "b"),)),
    ]
    assert len({pairs.fingerprint() for pairs in variants}) == len(variants)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train[:3]", range(3)),
        ("train[-5%:]", range(38, 40)),
        ("train[:95%]", range(38)),
        ("train[10:12]+train[-1:]", [10, 11, 39]),
        ("train[:1000]", range(40)),
    ],
)
def test_slices_are_those_of_datasets(tmp_path: Path, split: str, expected: Any) -> None:
    path = _write(tmp_path, "train", ".jsonl", ROWS)
    wanted = tuple(ROWS[index]["text"] for index in expected)
    assert _load(tmp_path, split).sources == wanted
    assert _load(path, split).sources == wanted


def test_two_splits_can_be_joined(tmp_path: Path) -> None:
    _write(tmp_path, "train", ".jsonl", ROWS[:3])
    _write(tmp_path, "test", ".csv", ROWS[3:5])
    assert len(_load(tmp_path, "train+test")) == 5


def test_a_file_is_its_own_split_and_no_other(tmp_path: Path) -> None:
    path = _write(tmp_path, "held-out", ".jsonl", ROWS)
    assert _load(path, "held-out") == _load(path, "train")
    with pytest.raises(DataError, match=r"no split 'test'.*'train' or 'held-out'"):
        _load(path, "test")


def _faulty(tmp_path: Path, name: str, content: bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a", "summary": "b"}\n\nnot json\n', r"a\.jsonl:3: not JSON"),
        ("a.jsonl", b'{"text": "a", "summary": "b"}\n[1]\n', r"a\.jsonl:2: must be an object"),
        ("a.jsonl", b'{"text": "a", "summary": "b"}\n\xff\n', r"a\.jsonl:2: not UTF-8"),
        ("a.jsonl", b'{"text": "\\ud83d", "summary": "b"}\n', r"line 1: column 'text' holds half a character"),
        ("a.jsonl", b"", "no rows"),
        (
            "a.jsonl",
            b'{"text": "a", "summary": "b"}\n{"text": "a"}\n',
            r"line 2: column 'summary' must be text.*missing",
        ),
        ("a.jsonl", b'{"text": 3, "summary": "b"}\n', r"line 1: column 'text' must be text, and is int 3"),
        ("a.jsonl", b'{"text": " ", "summary": "b"}\n', "line 1: column 'text' is empty. Remove the row, or fill it."),
        ("a.csv", b"text,summary\na,\n", "line 2: column 'summary' is empty"),
        ("a.jsonl", b'{"text": "a", "summary": []}\n', "line 1: column 'summary' is an empty list"),
        ("a.jsonl", b'{"text": "a", "summary": ["x", null]}\n', "line 1: column 'summary' must be a list of texts"),
        ("a.jsonl.gz", b"not gzip", "not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-9], "not a whole gzip file"),
        ("a.csv", b"text,summary\na,b,c\n", r"a\.csv:2: more values"),
        ("a.csv", b"text,summary\na\n", "line 2: column 'summary' must be text"),
        ("a.csv", b'text,summary\n"a,b\n', "not CSV"),
        ("a.parquet", b"PAR1 no", "not a whole parquet file"),
        ("a.txt", b"a", r"cannot be read\. Files end in \.jsonl"),
    ],
)
def test_faulty_files_are_told_with_the_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _load(_faulty(tmp_path, name, content))
    assert name in str(caught.value)


EMPTY = [
    {"text": "a", "summary": "b"},
    {"text": " ", "summary": "b"},
    {"text": "a"},
    {"text": "a", "summary": []},
    {"text": "a", "summary": ["b", ""]},
    {"text": "a", "summary": ["b", None]},
    {"text": "c", "summary": ["d", "e"]},
]


def test_rows_without_a_text_are_left_out_on_request() -> None:
    pairs = pairs_from_rows(EMPTY, source="text", target="summary", prefix="x: ", skip_empty=True)
    assert pairs == Pairs(("x: a", "x: c"), (("b",), ("d", "e"))) and pairs.num_skipped == 5
    with pytest.raises(DataError, match=r"`skip_empty: true` in task\.data leaves out the 5 empty\.$"):
        pairs_from_rows(EMPTY, source="text", target="summary")


def test_what_is_no_text_at_all_is_refused_all_the_same() -> None:
    rows = [*EMPTY, {"text": 3, "summary": "b"}]
    with pytest.raises(DataError, match="row 8: column 'text' must be text, and is int 3") as caught:
        pairs_from_rows(rows, source="text", target="summary", skip_empty=True)
    assert "row 2" not in str(caught.value)


@pytest.mark.parametrize("rows", [EMPTY[2:1:-1] + EMPTY[:1], [{"text": "a", "summary": float("nan")}, *EMPTY[:1]]])
def test_a_value_that_is_missing_is_no_text_wherever_it_stands(rows: list[dict[str, Any]]) -> None:
    pairs = pairs_from_rows(rows, source="text", target="summary", skip_empty=True)
    assert pairs == Pairs(("a",), (("b",),)) and pairs.num_skipped == 1


def test_rows_that_are_all_empty_are_no_data() -> None:
    with pytest.raises(DataError, match="all 2 rows have an empty text"):
        pairs_from_rows(EMPTY[1:3], source="text", target="summary", skip_empty=True)


@pytest.mark.parametrize("label", [None, " "])
def test_a_row_without_a_class_is_left_out_too(label: str | None) -> None:
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": label}]
    pairs = pairs_from_rows(rows, source="text", target="label", labels=True, skip_empty=True)
    assert pairs == Pairs(("a",), (("1",),)) and pairs.num_skipped == 1


def test_missing_columns_are_all_named_with_the_nearest(tmp_path: Path) -> None:
    path = _write(tmp_path, "train", ".csv", ROWS)
    with pytest.raises(DataError) as caught:
        _load(path, source="texts", target="sumary")
    assert str(caught.value).count("no column") == 2
    assert 'Did you mean "summary"?' in str(caught.value)
    assert "Columns there: text, summary." in str(caught.value)


def test_many_faulty_rows_are_counted_not_listed() -> None:
    with pytest.raises(DataError) as caught:
        pairs_from_rows([{"a": "x", "b": number} for number in range(12)], source="a", target="b")
    assert len(str(caught.value).splitlines()) == 7
    assert str(caught.value).endswith("and 7 more rows.")


def test_long_fields_of_csv_are_read_and_the_limit_is_put_back(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    path = _write(tmp_path, "train", ".csv", [{"text": "x" * (limit + 1), "summary": "y"}])
    assert len(_load(path).sources[0]) == limit + 1
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("path", "split", "message"),
    [
        ("FOLDER/nowhere.jsonl", "train", "no such file or folder"),
        ("./nowhere", "train", "no such file or folder"),
        ("/no/such/folder", "train", "no such file or folder"),
        ("FOLDER", "trian", r'no file trian.*Did you mean "train"\? Splits there: test, train\.'),
        ("FOLDER", "train[", "the split 'train\\[' cannot be read"),
        ("FOLDER", "train[:x]", "cannot be read"),
        ("FOLDER", "train[:0]", "no rows"),
        ("FOLDER", "test", "several|2 files"),
    ],
)
def test_wrong_places_and_splits(tmp_path: Path, path: str, split: str, message: str) -> None:
    _write(tmp_path, "train", ".jsonl", ROWS)
    _write(tmp_path, "test", ".jsonl", ROWS)
    if split == "test":
        _write(tmp_path, "test", ".csv", ROWS)
    with pytest.raises(DataError, match=message):
        _load(path.replace("FOLDER", str(tmp_path)), split)


def test_a_folder_without_data_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No data files are there"):
        _load(tmp_path)


def test_a_configuration_name_is_for_the_hub_only(tmp_path: Path) -> None:
    _write(tmp_path, "train", ".jsonl", ROWS)
    with pytest.raises(DataError, match="`name` chooses a configuration of a hub set"):
        _load(tmp_path, name="default")


def test_a_hub_id_goes_to_datasets_with_its_split(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(path: str, name: str | None = None, *, split: str) -> list[dict[str, str]]:
        calls.append((path, name, split))
        return ROWS

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    pairs = _load("FiscalNote/billsum", "train[-5%:]", name="default")
    assert calls == [("FiscalNote/billsum", "default", "train[-5%:]")]
    assert pairs == pairs_from_rows(ROWS, source="text", target="summary")


def test_a_hub_failure_is_plain_and_names_what_is_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(DataError, match=re.escape('offline Did you mean "cmudict"?')):
        _load("cmudct")


def test_built_in_sets_load_by_name_and_slice() -> None:
    assert list(BUILTIN) == ["cmudict"]
    pairs = load_pairs("cmudict", "validation[:7]", source="word", target="phonemes")
    assert len(pairs) == 7
    with pytest.raises(DataError, match=r"no split 'dev'\. There are: train, validation, test"):
        load_pairs("cmudict", "dev", source="word", target="phonemes")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,summary,text\nfirst,a,second\n", encoding="utf-8")
    with pytest.raises(DataError, match="several columns are called 'text'"):
        _load(tmp_path)
