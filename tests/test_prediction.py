"""Texts without references: any kind of file, the recipe of the model's run, and nothing lost to a slip."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pandas
import pytest

import secateur
from secateur import artefact, prediction
from secateur.errors import CheckpointError, DataError, SecateurError
from secateur.evaluation.evaluate import read_predictions
from toy import Toy

TEXTS = ["a,b", "limits", "mathematics", "ü"]
STAGES = """
  - name: dense
    train: {epochs: 1, learning_rate: 1.0e-2, batch_size: 4, precision: fp32, dropout: 0.0}
  - name: final
    evaluate: {split: test}
"""


@pytest.fixture(scope="module")
def run(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.run(tmp_path_factory.mktemp("predict") / "run", initialize="pretrained", stages=STAGES).folder


def write_all(folder: Path) -> list[Path]:
    """The same texts in every kind of file that is read; a column more than is needed, and no references."""
    rows = [{"n": number, "word": text} for number, text in enumerate(TEXTS)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "a.jsonl").write_text(lines)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "a.txt").write_text("\n".join(TEXTS))
    with (folder / "a.csv").open("w", newline="") as stream:
        csv.DictWriter(stream, ["n", "word"]).writerows([{"n": "n", "word": "word"}, *rows])
    pandas.DataFrame(rows).to_parquet(folder / "a.parquet")
    return sorted(folder.iterdir())


def test_every_kind_of_file_gives_the_same(toy: Toy, run: Path, tmp_path: Path) -> None:
    files = write_all(tmp_path)
    assert len(files) == 5
    expected = secateur.predict(str(run), TEXTS, device="cpu")
    assert expected.sources == tuple(TEXTS) and len(expected.texts) == len(TEXTS)
    for file in files:
        assert secateur.predict(str(run), file, device="cpu") == expected


def test_outputs_are_those_of_an_evaluation(toy: Toy, run: Path) -> None:
    pairs, measured = read_predictions(run / "02-final" / "predictions.jsonl")
    assert list(secateur.predict(str(run), list(pairs.sources), device="cpu").predictions) == measured


def test_the_recipe_gives_prefix_and_lengths_and_can_be_changed(toy: Toy, run: Path) -> None:
    def predict(texts: list[str], *overrides: str) -> list[str]:
        return secateur.predict(str(run / "model"), texts, overrides=overrides, device="cpu").texts

    prefixed = predict(["b"], 'task.prefix="a c"')
    assert prefixed == predict(["a cb"])
    longer = secateur.predict(str(toy.start), ["b"], toy.recipe(STAGES), device="cpu")
    assert longer.sources == ("b",)
    assert max(item.num_tokens for item in longer.predictions) <= 3  # the toy's max_new_tokens


@pytest.mark.parametrize(("name", "form"), [("o.jsonl", None), ("o.csv", None), ("o.csv", "course"), ("o", "csv")])
def test_the_file_holds_what_is_returned(run: Path, tmp_path: Path, name: str, form: str | None) -> None:
    told: list[tuple[int, int]] = []
    out = tmp_path / "deep" / name
    found = secateur.predict(
        str(run), TEXTS, out=out, format=form, device="cpu", on_batch=lambda *done: told.append(done)
    )
    assert out.read_bytes().decode() == found.as_text(form or out.suffix.lstrip("."))
    assert [file.name for file in out.parent.iterdir()] == [name]
    assert told[-1] == (len(TEXTS), len(TEXTS))


def test_empty_lines_are_texts_and_the_last_line_break_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\r\ntwo\u2028three\n".encode())
    assert prediction.read_sources(tmp_path / "a.txt", "any") == ("one", "", "two\u2028three")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no texts"),
        ("a.txt", b"one\ntwo\xff\n", r"a\.txt:2: not UTF-8 text"),
        ("a.jsonl", b"", "holds no rows"),
        ("a.jsonl", b'{"words": "x"}', r"no column 'word'\. Did you mean \"words\"\? .*--set task\.source=COLUMN"),
        ("a.jsonl", b'{"word": "x"}\n{"word": 3}\n{}', r"line 2: must be text, and is int 3\.\nline 3: the text is"),
        ("a.jsonl", b'{"word": "\\ud800"}', "line 1: holds half a character"),
        ("a.jsonl", b'{"word": 1}\n' * 9, r"line 5: .*\n\.\.\. and 4 more rows"),
        ("a.jsonl", b"\x00\x80", "not UTF-8"),
        ("a.jsonl.gz", b"\x1f\x8bno", "not a whole gzip file"),
        ("a.parquet", b"PAR1", "not a whole parquet file"),
        ("a.pdf", b"%PDF", r"Files of texts end in \.jsonl, .*\.txt"),
    ],
)
def test_bad_files_are_told_plainly(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"(?s){message}"):
        prediction.read_sources(tmp_path / name, "word")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        prediction.read_sources(tmp_path / "none.jsonl", "word")
    with pytest.raises(DataError, match="is a folder"):
        prediction.read_sources(tmp_path, "word")


def test_slips_are_told_before_the_work(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(artefact, "load_model", never)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.json").write_text("{}")

    def refused(message: str, model: Path, texts: object, **options: object) -> None:
        with pytest.raises(SecateurError, match=message):
            secateur.predict(str(model), texts, **options)  # type: ignore[arg-type]

    refused('Did you mean "course"', run, ["a"], format="coarse")
    refused("no such folder", tmp_path / "none", ["a"])
    refused(r"belongs to no run.*--recipe FILE", tmp_path / "plain", ["a"])
    refused("there are no texts", run, [])
    refused("text 2: must be text", run, ["a", 2])
    refused("is the file that is read", run, tmp_path / "a.txt", out=tmp_path / "plain" / ".." / "a.txt")
    refused("is a folder", run, ["a"], out=tmp_path)
    assert (tmp_path / "a.txt").read_text() == "a"


def test_a_full_disk_leaves_the_old_file(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "o.jsonl").write_text("old")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("secateur.files.os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        secateur.predict(str(run), TEXTS, out=tmp_path / "o.jsonl", device="cpu")
    assert (tmp_path / "o.jsonl").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["o.jsonl"]
