"""A train stage learns from a stage, from the given model or from any other; the teacher is known in its facts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BartConfig, BartForConditionalGeneration, M2M100Config, TrainerCallback

from classes import Classes
from secateur.artifacts.manifest import artefact_hash
from secateur.errors import CheckpointError, RecipeError, RunInterrupted
from secateur.exports.engines import export_model
from secateur.measure import plan
from secateur.pipeline import run
from secateur.planning import make_plan
from secateur.reporter import Reporter
from secateur.teaching import check_teachers
from toy import VOCABULARY, Toy

pytestmark = pytest.mark.usefixtures("no_card")

TEACH = "{epochs: 2, learning_rate: 5.0e-3, batch_size: 4, precision: fp32, dropout: 0.0, save_every: 2, TEACHER}"
STAGES = """
  - name: first
    train: {epochs: 1, learning_rate: 5.0e-3, batch_size: 4, precision: fp32, dropout: 0.0}
  - name: prune
    prune: {groups: [{role: feed_forward, sparsity: 0.5}]}
  - name: retrain
    train: TRAIN
""".replace("TRAIN", TEACH)
AFTER_CUT = """
  - name: prune
    prune: {groups: [{unit: layer, stack: encoder, sparsity: 0.0, score: spacing}, {unit: vocab_row, score: frequency}]}
  - name: cut
    cut: {rows: 3}
  - name: retrain
    train: TRAIN
""".replace("TRAIN", TEACH)


def with_teacher(text: str, teacher: object, **parts: object) -> str:
    extra = f"teacher: {teacher}"
    if parts:
        extra += f", distillation: {{{', '.join(f'{name}: {value}' for name, value in parts.items())}}}"
    return text.replace("TEACHER", extra)


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model" / "model.safetensors")


def test_a_stage_teaches_a_later_one(toy: Toy, tmp_path: Path) -> None:
    text = with_teacher(STAGES, "first", labels=0.5, hidden=0.1)
    run = toy.run(tmp_path / "run", stages=text, initialize="pretrained", keep="all")
    facts = run.manifest["stages"][-1]["train"]["teacher"]
    assert facts == {"model": "first", "hash": artefact_hash(str(tmp_path / "run" / "01-first" / "model"))}
    plain = with_teacher(STAGES, "null")
    toy.run(tmp_path / "plain", stages=plain, initialize="pretrained", keep="all")
    mine, others = weights(tmp_path / "run"), weights(tmp_path / "plain")
    assert any(not torch.equal(mine[name], others[name]) for name in mine)


def test_the_teachers_weights_stay_until_they_are_not_needed(toy: Toy, tmp_path: Path) -> None:
    text = with_teacher(STAGES, "first")
    steps: list[int] = []
    with pytest.raises(RunInterrupted):
        toy.run(
            tmp_path / "run",
            stages=text,
            initialize="pretrained",
            should_stop=lambda: steps.append(1) or len(steps) > 6,
        )
    assert not (tmp_path / "run" / "03-retrain" / "stage.json").exists()
    assert (tmp_path / "run" / "01-first" / "model").is_dir()
    toy.run(tmp_path / "run", stages=text, initialize="pretrained", resume=True)
    assert not (tmp_path / "run" / "01-first" / "model").exists()
    toy.run(tmp_path / "whole", stages=text, initialize="pretrained")
    mine, others = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.equal(mine[name], others[name]) for name in mine)


def test_the_given_model_and_any_other_may_teach(toy: Toy, tmp_path: Path) -> None:
    other = tmp_path / "model"
    shutil.copytree(toy.start, other)
    for name, teacher in (("given", "given"), ("other", other)):
        toy.run(tmp_path / name, stages=with_teacher(STAGES, teacher), initialize="pretrained")
    mine, others = weights(tmp_path / "given"), weights(tmp_path / "other")
    assert all(torch.equal(mine[name], others[name]) for name in mine)


def test_a_teacher_that_cannot_teach_is_told_of_before_the_run(toy: Toy, tmp_path: Path) -> None:
    export = tmp_path / "export"
    export_model(toy.start, export, target="ctranslate2", int8=True)
    for teacher, told in ((tmp_path / "none", "no such folder"), (export, "ctranslate2 export, which gives no logits")):
        with pytest.raises(CheckpointError, match=told):
            toy.run(tmp_path / "run", stages=with_teacher(STAGES, teacher), initialize="pretrained")
        assert not (tmp_path / "run" / "01-first").exists()


def test_a_teacher_that_reads_otherwise_is_told_of_before_the_run(toy: Toy, classes: Classes, tmp_path: Path) -> None:
    other, short = tmp_path / "other", tmp_path / "short"
    shutil.copytree(toy.start, other)
    tokens = json.loads((other / "tokenizer.json").read_text())
    tokens["model"]["vocab"]["other"] = tokens["model"]["vocab"].pop("a")
    (other / "tokenizer.json").write_text(json.dumps(tokens))
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = {"vocab_size": VOCABULARY, "d_model": 8, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, **layers}
    BartForConditionalGeneration(BartConfig(max_position_embeddings=8, **config)).save_pretrained(short)
    for text, told in (
        (with_teacher(STAGES, other), "other: has another tokenizer than the student"),
        (with_teacher(STAGES, classes.start), "is for another task"),
        (with_labels("{}", str(short)), r"task\.max_source_tokens: 20 is more than this model has positions for \(8\)"),
    ):
        with pytest.raises(RecipeError, match=told) as caught:
            toy.run(tmp_path / "run", stages=text, initialize="pretrained")
        assert "stages.retrain.train.teacher" in str(caught.value)
        assert not (tmp_path / "run" / "01-first").exists()
    texts = with_labels("{num_beams: 1}", str(other))  # which every tokenizer reads
    toy.run(tmp_path / "run", stages=texts, initialize="pretrained")


def test_a_teacher_of_a_family_that_is_not_pruned_here_is_looked_at_when_it_is_loaded(toy: Toy, tmp_path: Path) -> None:
    M2M100Config().save_pretrained(tmp_path)
    text = with_labels("{}", str(tmp_path))
    check_teachers(toy.recipe(text, initialize="pretrained"), None)


def another(start: Path, folder: Path) -> Path:
    """A model folder like one that is there, with weights of its own."""
    shutil.copytree(start, folder)
    file = folder / "model.safetensors"
    save_file({name: value + 0.01 for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("lesson", ["distillation: {hidden: 1.0}", "pseudo_labels: {num_beams: 1}"])
def test_a_training_goes_on_with_the_teacher_that_it_began_with(toy: Toy, tmp_path: Path, lesson: str) -> None:
    teacher, folder, steps = another(toy.start, tmp_path / "teacher"), tmp_path / "run", list[str]()

    class Count(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            steps.append(Path(args.output_dir).parent.name)

    text = STAGES.replace("TEACHER", f"teacher: {teacher}, {lesson}")
    with pytest.raises(RunInterrupted):
        toy.run(folder, Count(), stages=text, initialize="pretrained", should_stop=lambda: "03-retrain" in steps)
    teacher.rename(tmp_path / "aside")
    another(tmp_path / "aside", teacher)
    with pytest.raises(CheckpointError, match=r"teacher: not the teacher that this training began with"):
        toy.run(folder, stages=text, initialize="pretrained", resume=True)
    shutil.rmtree(teacher)
    (tmp_path / "aside").rename(teacher)
    toy.run(folder, stages=text, initialize="pretrained", resume=True)
    shutil.rmtree(teacher)  # nobody needs it any more
    toy.run(folder, stages=text, initialize="pretrained", resume=True)


def test_a_teacher_with_another_tokenizer_is_refused(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="reads other tokens: rows of the table were cut after it"):
        toy.run(tmp_path / "run", stages=with_teacher(AFTER_CUT, "given"), initialize="pretrained")
    with pytest.raises(CheckpointError, match="another tokenizer"):
        toy.run(tmp_path / "run", stages=with_teacher(AFTER_CUT, toy.start), initialize="pretrained")


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        (with_teacher(STAGES, "retrain"), r'stage "retrain" is not done before this one'),
        (with_teacher(STAGES, "given", logits=0.0), "asks nothing of the teacher"),
        (with_teacher(STAGES, "null", temperature=3.0), "cannot act: no teacher is named"),
        (with_teacher(STAGES, "given", heat=3.0), "unknown key"),
        (with_teacher(STAGES, "given", map="nearest"), "map: cannot act: hidden weighs nothing"),
        (with_teacher(STAGES, "given", temperature=0.0), "temperature"),
        (with_teacher(STAGES, "given", logits=0, hidden=1, temperature=3.0), "temperature: cannot act: logits weighs"),
        (with_teacher(STAGES, "given, label_smoothing: 0.1", labels=0.0), "label_smoothing: cannot act: labels weighs"),
        (
            STAGES.replace("TEACHER", "teacher: given, pseudo_labels: {}, distillation: {labels: 0.5, logits: 0}"),
            "labels: cannot act: the teacher's texts alone",
        ),
        (with_teacher(STAGES, "given").replace("name: first", "name: given"), "given is the model that the run begins"),
    ],
)
def test_wrong_lessons_are_refused(toy: Toy, stages: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        toy.recipe(stages, initialize="pretrained")


def test_a_model_that_starts_at_random_does_not_teach(toy: Toy) -> None:
    with pytest.raises(RecipeError, match="starts at random and knows nothing"):
        toy.recipe(with_teacher(STAGES, "given"), initialize="random")


def with_map(teacher: object, lists: str) -> str:
    return with_teacher(STAGES, teacher, hidden=1.0, map=lists)


def test_a_map_of_ones_own_teaches(toy: Toy, tmp_path: Path) -> None:
    """The toy has one layer a stack: its only list is what `height` says."""
    for name, lists in (("mine", "{encoder: [1], decoder: [[1]]}"), ("height", "height")):
        toy.run(tmp_path / name, stages=with_map("first", lists), initialize="pretrained")
    mine, others = weights(tmp_path / "mine"), weights(tmp_path / "height")
    assert all(torch.equal(mine[name], others[name]) for name in mine)


@pytest.mark.parametrize("teacher", ["first", "given", "other"])
def test_layers_that_are_not_there_are_told_before_the_run(toy: Toy, tmp_path: Path, teacher: str) -> None:
    named = toy.start if teacher == "other" else teacher
    told = r"stages\.retrain\.train\.distillation\.map\.decoder\.0: the teacher's decoder has 1 layers, and no layer 2"
    with pytest.raises(RecipeError, match=told):
        toy.run(tmp_path / "run", stages=with_map(named, "{encoder: [1], decoder: [[1, 2]]}"), initialize="pretrained")
    assert not (tmp_path / "run" / "01-first").exists()
    if teacher != "other":  # the plan knows the models of the run
        with pytest.raises(RecipeError, match=told):
            plan(toy.recipe(with_map(named, "{encoder: [1], decoder: [[1, 2]]}"), initialize="pretrained"))


def test_a_list_for_layers_that_a_cut_took_is_told_by_the_plan(t5_of_three: Path, toy: Toy) -> None:
    """The student's layers are those that it has at the stage, the teacher's those that it had at its own."""
    text = """
  - name: prune
    prune: {groups: [{unit: layer, stack: encoder, sparsity: 0.34, score: spacing}]}
  - name: cut
    cut: {}
  - name: retrain
    train: TRAIN
""".replace("TRAIN", TEACH)
    whole = "{encoder: [1, 2, 3], decoder: [1]}"
    for teacher, lists, told in (
        ("given", whole, "map.encoder: the student's encoder has 2 layers at this stage, and 3 are listed"),
        ("cut", "{encoder: [1, 3], decoder: [1]}", "map.encoder.1: the teacher's encoder has 2 layers, and no layer 3"),
    ):
        recipe = toy.recipe(with_teacher(text, teacher, hidden=1.0, map=lists), initialize="pretrained")
        with pytest.raises(RecipeError) as caught:
            make_plan(recipe, str(t5_of_three))
        assert any(told in fault for fault in caught.value.faults)
    fits = toy.recipe(
        with_teacher(text, "given", hidden=1.0, map="{encoder: [1, 3], decoder: [1]}"), initialize="pretrained"
    )
    assert make_plan(fits, str(t5_of_three)).stages[-1].name == "retrain"


@pytest.fixture
def t5_of_three(tmp_path: Path) -> Path:
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 12, "num_layers": 3, "num_decoder_layers": 1, "num_heads": 2}
    config = {"model_type": "t5", "vocab_size": 71, "relative_attention_num_buckets": 8, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


LABELS = STAGES.replace("TEACHER", "teacher: TEACHER, distillation: {labels: 1, logits: 0}, pseudo_labels: LABELS")


def with_labels(labels: str, teacher: str = "first") -> str:
    return LABELS.replace("TEACHER", teacher).replace("LABELS", labels)


class Fixed:
    """Stands for the teacher's engine: every source spelled backwards, and nothing for one of them."""

    calls = 0

    def __call__(self, engine: Any, tokenizer: Any, sources: Any, **settings: Any) -> list[Any]:
        from secateur.evaluation.generate import Prediction

        Fixed.calls += 1
        return [Prediction("" if text == "bake" else "AH", len(text), text == "deck") for text in sources]


@pytest.mark.parametrize(("use", "targets"), [("replace", ["AH"]), ("add", ["B EY", "AH"])])
def test_the_teachers_outputs_become_targets(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str, targets: list[str]
) -> None:
    from secateur import labelling, stages
    from secateur.tasks.pairs import Pairs

    monkeypatch.setattr(labelling, "predict", Fixed())
    monkeypatch.setattr(labelling, "PART", 3)
    seen: list[Pairs] = []
    original = stages.encode_rows
    monkeypatch.setattr(
        stages, "encode_rows", lambda recipe, pairs, *rest: seen.append(pairs) or original(recipe, pairs, *rest)
    )
    before = Fixed.calls
    run = toy.run(tmp_path / "run", stages=with_labels(f"{{use: {use}}}"), initialize="pretrained")
    facts = run.manifest["stages"][-1]["train"]
    given, labelled = seen[0], seen[-1]
    assert Fixed.calls - before == -(-len(given) // 3) and "teacher" not in facts
    assert facts["pseudo_labels"] == {"model": "first", "rows": len(given), "left": 2, "use": use, "num_beams": 4}
    for source, theirs, mine in zip(given.sources, given.references, labelled.references, strict=True):
        kept = theirs if use == "add" else ()
        assert mine == (theirs if source in ("bake", "deck") else (*kept, "AH"))


def test_what_the_teacher_wrote_is_kept(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped between two parts writes only those that are missing, and ends with the same weights."""
    from secateur import labelling

    monkeypatch.setattr(labelling, "PART", 3)
    text = with_labels("{num_beams: 2}")
    toy.run(tmp_path / "whole", stages=text, initialize="pretrained")
    folder = tmp_path / "run"

    def stop() -> bool:
        return any(folder.glob("pseudo-labels/*/*.json"))

    with pytest.raises(RunInterrupted, match="pseudo-labels"):
        toy.run(folder, stages=text, initialize="pretrained", should_stop=stop)
    assert len(list(folder.glob("pseudo-labels/*/*.json"))) == 1
    toy.run(folder, stages=text, initialize="pretrained", resume=True)
    mine, theirs = weights(folder), weights(tmp_path / "whole")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_teacher_that_writes_stops_after_a_batch(toy: Toy, tmp_path: Path) -> None:
    class Heard(Reporter):
        def labelling(self, done: int, total: int) -> None:
            seen.append((done, total))

    seen = list[tuple[int, int]]()
    recipe = toy.recipe(with_labels("{num_beams: 1, batch_size: 4}", "given"), initialize="pretrained")
    with pytest.raises(RunInterrupted, match="pseudo-labels"):
        run(recipe, tmp_path / "run", device="cpu", reporter=Heard(), should_stop=lambda: len(seen) > 1)
    assert seen == [(0, 13), (4, 13)]
    run(recipe, tmp_path / "run", device="cpu", reporter=Heard(), resume=True)
    assert seen[2:] == [(0, 13), (4, 13), (8, 13), (12, 13), (13, 13)]


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"scale_decoder_outputs": False}),
        ("generation_config.json", {"eos_token_id": 5}),
        ("tokenizer_config.json", {"model_max_length": 77}),
    ],
)
def test_what_stands_beside_the_teachers_weights_counts(
    toy: Toy, tmp_path: Path, file: str, change: dict[str, object]
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(toy.start, teacher)
    text = with_labels("{num_beams: 1}", str(teacher))
    folder = tmp_path / "run"
    seen = []
    for changes in ({}, change):
        content = json.loads((teacher / file).read_text())
        (teacher / file).write_text(json.dumps({**content, **changes}))
        toy.run(folder, stages=text, initialize="pretrained")
        seen.append({place.name for place in (folder / "pseudo-labels").iterdir()})
        shutil.rmtree(folder)
    assert len(seen[0] | seen[1]) == 2


def test_pseudo_labels_need_a_teacher(toy: Toy) -> None:
    text = LABELS.replace("teacher: TEACHER, distillation: {labels: 1, logits: 0}, ", "").replace("LABELS", "{}")
    with pytest.raises(RecipeError, match="no teacher is named who could write them"):
        toy.recipe(text, initialize="pretrained")
