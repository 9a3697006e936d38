"""One run at a time in a folder, and a process that ends leaves no lock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from secateur.artifacts.lock import lock_folder
from secateur.errors import CheckpointError

HOLD = """
import sys
from pathlib import Path
from secateur.artifacts.lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(CheckpointError, match="another run is at work there"), lock_folder(tmp_path):
            pass
        other.kill()
        other.wait()
    with lock_folder(tmp_path):
        pass


def test_the_lock_ends_with_its_block_however_it_ends(tmp_path: Path) -> None:
    with pytest.raises(KeyError), lock_folder(tmp_path):
        with pytest.raises(CheckpointError, match="another run"), lock_folder(tmp_path):
            pass
        raise KeyError
    with lock_folder(tmp_path):
        pass


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written"), lock_folder(tmp_path / "missing"):
        pass
