"""The command line: exit codes, plain errors, no tracebacks; each verb is one call of the Python API."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from secateur import cli
from secateur.evaluation.formats import FORMATS

RECIPES = Path(__file__).parents[1] / "recipes"
TINY = str(RECIPES / "tiny" / "tie-both.yaml")
COMMAND = [sys.executable, "-m", "secateur"]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["secateur", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


@pytest.fixture(autouse=True)
def _signals():
    kept = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in kept:
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    done = subprocess.run(
        [*COMMAND, "run", TINY, "--out", str(folder), "--device", "cpu", "--threads", "1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "dense" in done.stdout and "retrained" in done.stdout and str(folder) in done.stdout
    return folder


def test_shapes_of_products_are_bounded_unless_the_user_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    name, ours = cli.MATMUL_CACHE
    monkeypatch.delenv(name, raising=False)
    call(monkeypatch, "validate", TINY)
    assert os.environ[name] == ours
    monkeypatch.setenv(name, "7")
    call(monkeypatch, "validate", TINY)
    assert os.environ[name] == "7"


def test_validate_says_what_it_read_and_imports_no_torch() -> None:
    code = (
        f"import sys; sys.argv = ['secateur', 'validate', {TINY!r}]\n"
        "from secateur import cli\n"
        "try:\n    cli.main()\n"
        "finally:\n    assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "valid, 3 stages" in done.stdout


def test_every_fault_of_a_recipe_at_once_with_exit_code_2(monkeypatch, capsys, tmp_path) -> None:
    recipe = tmp_path / "bad.yaml"
    recipe.write_text(Path(TINY).read_text(encoding="utf-8").replace("sparsity:", "sparcity:").replace("seq2seq", "x"))
    assert call(monkeypatch, "validate", str(recipe), "--set", "evaluation.num_bems=2") == 2
    told = capsys.readouterr().err
    assert "bad.yaml:" in told and 'Did you mean "sparsity"?' in told and 'Did you mean "num_beams"?' in told
    assert "Traceback" not in told


def test_every_verb_is_in_the_help(monkeypatch, capsys) -> None:
    assert call(monkeypatch, "--help") == 0
    told = capsys.readouterr().out
    verbs = [verb.__name__ for verb in cli.VERBS]
    assert {"predict", "compare", "evaluate", "import"} <= set(verbs)
    for verb in verbs:
        assert verb in told
        assert call(monkeypatch, verb, "--help") == 0
        assert "Example" in capsys.readouterr().out


def test_unknown_verb_and_missing_argument_are_usage_errors(monkeypatch, capsys) -> None:
    assert call(monkeypatch, "prun") == 2
    assert call(monkeypatch, "validate") == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["inspect", "evaluate"])
def test_a_model_that_is_not_there(monkeypatch, capsys, verb, tmp_path) -> None:
    assert call(monkeypatch, verb, str(tmp_path / "none")) == 1
    assert "no such folder" in capsys.readouterr().err


def test_a_fault_of_ours_goes_to_a_file(monkeypatch, capsys) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("made up")

    monkeypatch.setattr("secateur.recipe.load.load_recipe", broken)
    assert call(monkeypatch, "validate", TINY) == cli.INTERNAL
    told = capsys.readouterr().err
    assert "made up" in told and "Traceback" not in told
    details = Path(told.rsplit("Details: ", 1)[1].strip())
    assert "Traceback" in details.read_text()
    details.unlink()


def test_plan_as_text_and_json(monkeypatch, capsys) -> None:
    assert call(monkeypatch, "plan", TINY, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in found["stages"]] == ["dense", "lm-head", "retrain"]
    assert call(monkeypatch, "plan", TINY) == 0
    assert "tie: both" in capsys.readouterr().out


def test_plan_notes_what_the_run_would_stop_at(monkeypatch, capsys, tmp_path) -> None:
    changes = ("task.data.path=" + str(tmp_path / "none"), "stages.retrain.train.teacher=nobody")
    assert call(monkeypatch, "plan", TINY, *(part for change in changes for part in ("--set", change))) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Note: task.data.path:" in told and "no such file or folder" in told
    assert "Note: stages.retrain.train.teacher: nobody" in told
    (tmp_path / "train.jsonl").write_text('{"a": "b", "c": "d"}\n')
    assert call(monkeypatch, "plan", TINY, "--set", f"task.data.path={tmp_path}", "--set", "task.source=x") == 0
    assert "Note: task.data:" in capsys.readouterr().out


def test_a_recipe_that_does_not_fit_its_model(monkeypatch, capsys) -> None:
    change = "stages.lm-head.prune.groups=[{role: lm_head, sparsity: 0.5}, {role: norm, layers: [7], sparsity: 0.5}]"
    assert call(monkeypatch, "plan", TINY, "--set", change) == 2
    told = capsys.readouterr().err
    assert "tie: is required" in told and "layer 7" in told


def test_ls_lists_every_recipe_and_runs(monkeypatch, capsys, tiny_run) -> None:
    assert call(monkeypatch, "ls") == 0
    told = capsys.readouterr().out
    files = list(RECIPES.rglob("*.yaml"))
    assert len(files) == 32
    assert all(file.relative_to(RECIPES).as_posix() in told for file in files)
    assert call(monkeypatch, "ls", str(tiny_run.parent)) == 0
    assert "complete" in capsys.readouterr().out


def test_inspect_a_run(monkeypatch, capsys, tiny_run) -> None:
    assert call(monkeypatch, "inspect", str(tiny_run), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    table = next(weight for weight in found["weights"] if weight["path"] == "shared.weight")
    assert table["sparsity"] == pytest.approx(0.5, abs=1e-3)
    last = json.loads((tiny_run / "manifest.json").read_text())["stages"][-1]
    assert found["run_counts"]["counted_ratio"] == last["counts"]["counted_ratio"]
    assert call(monkeypatch, "inspect", str(tiny_run)) == 0
    assert "In its run, against the dense model: counted" in capsys.readouterr().out
    assert call(monkeypatch, "inspect", str(tiny_run / "model"), "--config-only") == 0
    assert "decoder.final_layer_norm.weight" in capsys.readouterr().out


def test_evaluate_gives_the_figures_of_the_run_again(monkeypatch, capsys, tiny_run, tmp_path) -> None:
    outputs = tmp_path / "outputs.jsonl"
    arguments = ("evaluate", str(tiny_run), "--device", "cpu", "--json", "--predictions", str(outputs))
    assert call(monkeypatch, *arguments) == 0
    found = json.loads(capsys.readouterr().out)
    last = json.loads((tiny_run / "manifest.json").read_text())["stages"][-1]
    assert found["metrics"] == last["metrics"] and found["hash"] == last["hash"]
    assert len(outputs.read_text().splitlines()) == found["rows"] == 32


def test_predict_to_the_screen_and_to_files(monkeypatch, capsys, tiny_run, tmp_path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("limits\nhouse\n")
    arguments = ("predict", str(tiny_run), str(words), "--device", "cpu")
    assert call(monkeypatch, *arguments) == 0
    shown = capsys.readouterr().out
    assert [json.loads(line)["source"] for line in shown.splitlines()] == ["limits", "house"]
    for form in FORMATS:
        out = tmp_path / f"out.{form}"
        assert call(monkeypatch, *arguments, "--format", form, "--out", str(out)) == 0
        assert f"2 texts: {out}" in capsys.readouterr().out
    assert (tmp_path / "out.jsonl").read_text() == shown
    assert (tmp_path / "out.course").read_text().startswith('"ID","Predict"\n"0","')
    assert call(monkeypatch, *arguments, "--format", "xml") == 1
    assert "There are: jsonl, csv, course" in capsys.readouterr().err


def test_compare_as_text_and_json(monkeypatch, capsys, tiny_run) -> None:
    stages = [str(tiny_run / name) for name in ("01-dense", "02-lm-head")]
    assert call(monkeypatch, "compare", *stages, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    last = json.loads((tiny_run / "manifest.json").read_text())["stages"]
    assert [model["metrics"] for model in found["models"]] == [entry["metrics"] for entry in last[:2]]
    assert found["models"][0]["differences"] is None
    assert found["models"][1]["differences"].keys() == last[1]["metrics"].keys()
    assert call(monkeypatch, "compare", *stages, "--metric", "bleu", "--metric", "per") == 0
    told = capsys.readouterr().out
    assert "bleu" in told and "lm-head" in told and any(word in told for word in ("better", "worse", "cannot tell"))
    assert call(monkeypatch, "compare", stages[0]) == 1
    assert "two or more" in capsys.readouterr().err


def test_a_run_is_not_overwritten_unasked(monkeypatch, capsys, tiny_run, tmp_path) -> None:
    assert call(monkeypatch, "run", TINY, "--out", str(tiny_run)) == 1
    assert "--resume" in capsys.readouterr().err
    (tmp_path / "mine.txt").write_text("mine")
    assert call(monkeypatch, "run", TINY, "--out", str(tmp_path), "--overwrite") == 1
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_interrupt_leaves_a_resumable_run(tmp_path) -> None:
    folder = tmp_path / "run"
    long = [*COMMAND, "run", TINY, "--out", str(folder), "--device", "cpu", "--set", "stages.dense.train.epochs=5000"]
    with subprocess.Popen(long, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        work = folder / "01-dense" / ".work"
        end = time.monotonic() + 120
        while not any(work.glob("checkpoint-*/COMPLETE")) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "--resume" in told and "Traceback" not in told
    assert json.loads((folder / "manifest.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "Give exactly one budget"),
        (["--counted", "0.3", "--latency-ms", "2"], "Give exactly one budget"),
        (["--counted", "0.3", "--keep-roles"], "Give exactly one budget"),
        (["--counted", "0.3", "--engine", "ct2-int8"], "--engine cannot act"),
        (["--latency-ms", "2", "--tie", "view"], "--tie cannot act"),
        (["--latency-ms", "2", "--by", "loss"], "--by cannot act"),
        (["--stored", "0.3", "--by", "lost"], "--by: no 'lost'"),
        (["--latency-ms", "2", "--score", "lamp"], "--score: no 'lamp'"),
        (["--stored", "0.3", "--ray"], "--ray cannot act"),
    ],
)
def test_a_search_that_contradicts_itself_is_refused(monkeypatch, capsys, tmp_path, options, told) -> None:
    assert call(monkeypatch, "search", "x", "--out", str(tmp_path / "out"), *options) == 1
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error and not (tmp_path / "out").exists()
