"""A reader sees the old file or the new one, also when the disk is full; and hashes say what is in a folder."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secateur import files
from secateur.errors import CheckpointError


def full(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


@pytest.mark.parametrize(
    ("write", "value", "expected"),
    [
        (files.write_bytes, b"\x00\xff", b"\x00\xff"),
        (files.write_text, "é\n", "é\n".encode()),
        (files.write_json, {"b": 1, "a": "é"}, '{\n  "b": 1,\n  "a": "é"\n}\n'.encode()),
    ],
)
def test_writing_makes_the_folder_and_leaves_nothing_else(
    tmp_path: Path, write: Callable[[Path, Any], Path], value: Any, expected: bytes
) -> None:
    file = tmp_path / "new" / "file"
    for _ in range(2):
        assert write(file, value) == file
        assert file.read_bytes() == expected
        assert names(file.parent) == ["file"]
    assert file.stat().st_mode & 0o777 == 0o666 & ~files._UMASK


@pytest.mark.parametrize("function", ["replace", "fsync", "fdopen"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    file = files.write_text(tmp_path / "file", "old")
    monkeypatch.setattr(files.os, function, full)
    with pytest.raises(CheckpointError, match=r"file: cannot be written: No space left on device. Free space"):
        files.write_text(file, "new")
    monkeypatch.undo()
    assert file.read_text() == "old" and names(tmp_path) == ["file"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, no folder")
    with pytest.raises(CheckpointError, match="cannot be written"):
        files.write_text(tmp_path / "file" / "below", "text")
    with pytest.raises(CheckpointError, match="cannot be written"), files.new_folder(tmp_path / "file" / "below"):
        pass


def test_json_comes_back_and_faults_are_named(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, "é"]}
    assert files.read_json(files.write_json(tmp_path / "a.json", value)) == value
    with pytest.raises(CheckpointError, match=r"b\.json: no such file"):
        files.read_json(tmp_path / "b.json")
    for content in (b"{", b"\xff"):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"a\.json: cannot be read as JSON"):
            files.read_json(tmp_path / "a.json")


def test_a_new_folder_stands_whole_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "folder"
    for content in ("one", "two"):
        with files.new_folder(place) as inside:
            assert inside != place and inside.name.startswith(files.PARTIAL)
            (inside / "sub").mkdir()
            (inside / "sub" / content).write_text(content)
        assert names(place / "sub") == [content] and names(tmp_path) == ["folder"]
    assert place.stat().st_mode & 0o777 == 0o755
    with pytest.raises(KeyError), files.new_folder(place) as inside:
        (inside / "three").touch()
        raise KeyError
    assert names(place) == ["sub"] and names(tmp_path) == ["folder"]


@pytest.mark.parametrize("number", [1, 2])
def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    with files.new_folder(tmp_path / "folder") as inside:
        (inside / "old").touch()
    replace, calls = os.replace, []

    def failing(*args: Any) -> None:
        calls.append(args)
        if len(calls) == number:
            full()
        replace(*args)

    monkeypatch.setattr(files.os, "replace", failing)
    with pytest.raises(CheckpointError, match="No space left"), files.new_folder(tmp_path / "folder") as inside:
        (inside / "new").touch()
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["old"]


def test_leftovers_go_and_nothing_else_does(tmp_path: Path) -> None:
    (tmp_path / ".partial-a").touch()
    (tmp_path / ".partial-b").mkdir()
    (tmp_path / ".partial-b" / "inside").touch()
    (tmp_path / "partial-c").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".partial-d").touch()
    assert files.remove_partial(tmp_path) == 2
    assert names(tmp_path) == ["partial-c", "sub"] and names(tmp_path / "sub") == [".partial-d"]
    assert files.remove_partial(tmp_path / "missing") == 0


def test_hashes_tell_names_and_bytes_apart(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert files.sha256_file(tmp_path / "a") == abc
    seen = {files.sha256_folder(tmp_path)}
    (tmp_path / "a").write_bytes(b"abd")
    seen.add(files.sha256_folder(tmp_path))
    (tmp_path / "a").rename(tmp_path / "b")
    seen.add(files.sha256_folder(tmp_path))
    (tmp_path / "sub").mkdir()
    (tmp_path / "b").rename(tmp_path / "sub" / "b")
    seen.add(files.sha256_folder(tmp_path))
    assert len(seen) == 4
    only = files.sha256_folder(tmp_path, "*.safetensors")
    (tmp_path / "note.txt").touch()
    assert files.sha256_folder(tmp_path, "*.safetensors") == only


def test_what_stands_in_a_new_folder_can_be_read_by_others(tmp_path: Path) -> None:
    with files.new_folder(tmp_path / "model") as place:
        (place / "sub").mkdir()
        (place / "sub" / "weights").write_bytes(b"1")
        (place / "sub" / "weights").chmod(0o600)
    assert (tmp_path / "model" / "sub" / "weights").stat().st_mode & 0o777 == 0o666 & ~files._UMASK


def test_what_the_user_keeps_from_others_stays_so(tmp_path: Path) -> None:
    script = (
        "import os, sys; os.umask(0o077); from secateur import files; files.write_text(sys.argv[1] + '/file', '');\n"
        "with files.new_folder(sys.argv[1] + '/folder') as place: (place / 'file').touch()"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    for place, mode in (("file", 0o600), ("folder", 0o700), ("folder/file", 0o600)):
        assert (tmp_path / place).stat().st_mode & 0o777 == mode, place


def test_a_place_is_checked_before_the_work_and_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").write_text("old")
    files.check_writable(tmp_path / "old")
    files.check_writable(tmp_path / "new" / "file")
    assert names(tmp_path) == ["new", "old"] and names(tmp_path / "new") == []
    assert (tmp_path / "old").read_text() == "old"
    with pytest.raises(CheckpointError, match="is a folder"):
        files.check_writable(tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot be written: (Not a directory|File exists)"):
        files.check_writable(tmp_path / "old" / "file")
    monkeypatch.setattr(files.tempfile, "TemporaryFile", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        files.check_writable(tmp_path / "new" / "file")
