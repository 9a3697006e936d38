"""One picture, drawn without touching the caller's own figures."""

from __future__ import annotations

import struct
import subprocess
import sys

from secateur.report.picture import draw, points


def test_a_png_is_drawn(manifest, tmp_path):
    path = draw(manifest, tmp_path / "picture.png")
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    assert width > 1000
    assert height > 500


def test_points_are_the_models_states_on_one_split(manifest):
    names = [row.stage for row in points(manifest)]
    assert names[0] == "given"
    assert len(names) == 10
    assert "final" not in names
    manifest["stages"][3]["split"] = "test"
    assert len(points(manifest)) == 9


def test_nothing_is_drawn_of_nothing(manifest, tmp_path):
    assert draw({"stages": [], "dense": None}, tmp_path / "none.png") is None
    for entry in [manifest["dense"], *manifest["stages"]]:
        entry["metrics"] = {}
    assert draw(manifest, tmp_path / "none.png") is None
    assert not list(tmp_path.iterdir())


def test_one_stage_and_figures_without_interval_are_drawn(trained_only, interrupted, tmp_path):
    for entry in [trained_only["dense"], *trained_only["stages"]]:
        entry["metrics"]["rougeLsum"] |= {"low": None, "high": None}
    assert draw(trained_only, tmp_path / "a.png")
    assert draw(trained_only | {"stages": []}, tmp_path / "b.png")
    assert draw(interrupted, tmp_path / "c.png")


def test_pyplot_is_left_alone():
    program = "import sys\nfrom secateur.report.picture import draw\n" + (
        "figure = {'value': 1.0, 'low': 0.9, 'high': 1.1, 'unit': '%', 'higher_is_better': True}\n"
        "counts = {'counted_ratio': 1.0, 'stored_ratio': 1.0}\n"
        "draw({'stages': [{'name': 'a', 'kind': 'train', 'metrics': {'m': figure}, 'counts': counts}]}, sys.argv[1])\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, "/dev/null/x"], capture_output=True, text=True, check=False)
    assert "cannot be written" in done.stderr  # drawn, and then refused by the disk
    program = program.replace("sys.argv[1]", "__import__('tempfile').mkdtemp() + '/x.png'")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
