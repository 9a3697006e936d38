"""The card says what the manifest says, and nothing else is needed to write it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from secateur.errors import CheckpointError
from secateur.files import write_json
from secateur.report.card import card_text, write_card
from secateur.report.sections import cell, markdown_table


def section(text: str, heading: str) -> str:
    assert f"## {heading}\n" in text
    return text.split(f"## {heading}\n")[1].split("\n## ")[0]


def table_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_a_card_is_written_from_the_manifest_alone(manifest, tmp_path):
    write_json(tmp_path / "manifest.json", manifest)
    path = write_card(tmp_path)
    assert path == tmp_path / "card.md"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["card.md", "manifest.json", "picture.png"]
    text = path.read_text(encoding="utf-8")
    assert text == card_text(manifest, title=tmp_path.name, picture="picture.png")
    assert "![rougeLsum against the counts, stage by stage](picture.png)" in text
    assert 'AutoModelForSeq2SeqLM.from_pretrained("model")' in text


def test_the_stage_table_holds_every_stage_with_its_counts(manifest):
    lines = table_lines(section(card_text(manifest, title="run"), "Every stage"))
    assert len(lines) == 2 + 1 + len(manifest["stages"])
    assert (
        "0.2253 [0.2193, 0.2313] | 0.2626112 | 0.2626112 | 60,506,624 | 308 MB | 1 min 31 s | `0123456789ab` |"
        in lines[-2]
    )
    assert lines[-1].startswith("| final | test |")


def test_every_table_has_as_many_cells_in_every_line(manifest):
    for part in card_text(manifest, title="run").split("\n\n"):
        lines = table_lines(part)
        widths = {line.replace("\\|", "").count("|") for line in lines}
        assert len(widths) <= 1, part


def test_the_card_says_which_group_costs_most(manifest):
    text = card_text(manifest, title="run")
    assert (
        "**Which group costs most?** cross_attention 0.4 (stage cross-attention): rougeLsum got worse by 94.1 % right "
        "after pruning; 0.7 % is left after retraining, within the intervals (0.2311 → 0.0137 → 0.2294). "
        "Most of what stays lost is owed to self_attention 0.9: 2.9 %."
    ) in text
    lines = table_lines(section(text, "What each pruning cost"))
    assert lines[3] == "| cross-attention | cross_attention 0.4 | 0.2311 | 0.0137 | 94.1 % | 0.2294 | 93.3 % | 0.7 % |"


def test_larger_than_dense_is_said(manifest):
    notes = section(card_text(manifest, title="run"), "To keep in mind")
    assert (
        "This folder is larger than the dense one (308 MB against 242 MB): the head is stored as its own table."
        in notes
    )
    for entry in manifest["stages"]:
        entry["counts"]["num_bytes"] = 242_043_056
    assert "larger than the dense" not in card_text(manifest, title="run")


def test_outputs_stand_side_by_side_and_cannot_break_the_table(manifest):
    lines = table_lines(section(card_text(manifest, title="run"), "Outputs side by side"))
    assert lines[0] == "| source | reference | dense | final |"
    assert len(lines) == 2 + 5
    assert lines[2] == (
        "| summarize: bill 0 | a \\| summary 0 | dense \\*0\\* &lt;b&gt; x | retrain-lm-head \\*0\\* &lt;b&gt; x |"
    )


def test_signs_of_collapse_are_counted_per_stage(manifest):
    lines = table_lines(section(card_text(manifest, title="run"), "Signs of collapse"))
    assert "| cross-attention | 200 | 3 (1.5 %) | 150 (75.0 %) | 1 (0.5 %) |" in lines
    assert "| dense | 200 | 0 | 0 | 1 (0.5 %) |" in lines


def test_sparsity_by_role_and_by_matrix(manifest):
    part = section(card_text(manifest, title="run"), "Sparsity")
    assert "| self_attention | 1 | 12,582,912 | 11,324,621 | 0.9000 |" in part
    assert "<summary>Every matrix (4)</summary>" in part
    assert "| `lm_head.weight` | 16,449,536 | 13,159,629 | 0.8000 |" in part


def test_how_it_was_made(manifest):
    part = section(card_text(manifest, title="run"), "How it was made")
    for told in (
        "secateur run recipes/report/t5-small-billsum.yaml",
        "| seed | 42 |",
        "2.13.0",
        "abab",
        "cdcd",
        "num_beams 5",
    ):
        assert told in part


def test_an_interrupted_run_says_so_and_offers_no_model(interrupted):
    text = card_text(interrupted, title="run")
    assert "> **This run was interrupted: 2 stages are done" in text
    assert "from_pretrained" not in text
    assert "and was not retrained (0.2379 → 0.0343)." in text


def test_a_run_without_pruning_has_no_word_on_pruning(trained_only):
    text = card_text(trained_only, title="run")
    for heading in ("What each pruning cost", "Sparsity", "Which group"):
        assert heading not in text
    assert "| trained (dense) | validation |" in text


def test_a_run_that_just_began_and_one_without_figures(manifest):
    text = card_text({"status": "running", "model": "m", "stages": [], "dense": None}, title="run")
    assert "This run has not finished: 0 stages are done" in text
    for entry in [manifest["dense"], *manifest["stages"]]:
        for key in ("metrics", "examples", "collapse", "evaluation", "hash"):
            entry.pop(key)
    text = card_text(manifest, title="run")
    assert "Which group" not in text
    assert "Every stage" in text


def test_no_drop_is_told_as_none(manifest):
    for entry in manifest["stages"]:
        if entry["kind"] == "prune":
            entry["metrics"]["rougeLsum"]["value"] = 0.9
    assert "**Which group costs most?** None: rougeLsum did not get worse" in card_text(manifest, title="run")


def test_a_folder_without_our_manifest_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        write_card(tmp_path)
    write_json(tmp_path / "manifest.json", {"format": "other"})
    with pytest.raises(CheckpointError, match="is not the manifest of a Secateur run"):
        write_card(tmp_path)


def test_cells_are_one_line_and_cut():
    assert cell("x" * 400).endswith("…")
    assert len(cell("x" * 400)) == 300
    assert cell(" \n ") == "*(empty)*"
    assert cell("self_attention _x_") == "self_attention \\_x\\_"
    assert markdown_table(["a"], []) == "| a |\n| --- |"


def test_a_card_needs_no_torch():
    program = "import sys, secateur.report.card\nprint('torch' in sys.modules, 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
