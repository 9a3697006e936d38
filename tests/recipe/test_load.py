"""Recipes are read whole or refused whole, with every fault at its line."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from secateur.errors import RecipeError
from secateur.recipe import names
from secateur.recipe.load import check_recipe, dump_recipe, load_recipe, parse_recipe
from secateur.recipe.presets import PRESETS
from secateur.recipe.schema import Group, Recipe

# The grammar as the design shows it.
EXAMPLE = """\
version: 1
model: google-t5/t5-small                # hub id or local folder
seed: 42
task:
  kind: seq2seq                          # or classification
  data: {path: FiscalNote/billsum, train: train, validation: "train[-5%:]", test: test}
  source: text
  target: summary
  prefix: "summarize: "
  max_source_tokens: 1024
  max_target_tokens: 128
evaluation: {metrics: [rouge, course_rouge_lsum], max_new_tokens: 63, num_beams: 5, batch_size: 16, split: validation}
keep: last                               # checkpoints: last | all
stages:
  - name: dense
    train: {epochs: 15, learning_rate: 2.0e-5, batch_size: 5, precision: bf16}
  - name: self-attention
    prune:
      groups:
        - {role: self_attention, sparsity: 0.9, score: magnitude, scope: global}
      schedule: {kind: one_shot}
  - name: retrain-self-attention
    train: {epochs: 15, learning_rate: 2.0e-5, batch_size: 5, precision: bf16, teacher: null}
  - name: final
    evaluate: {split: test}
"""
GROUP = "{role: self_attention, sparsity: 0.9, score: magnitude, scope: global}"
TRAIN = "{epochs: 15, learning_rate: 2.0e-5, batch_size: 5, precision: bf16}"


def faults(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, name="r.yaml", overrides=overrides)
    return list(caught.value.faults)


def group(text: str) -> str:
    assert GROUP in EXAMPLE
    return EXAMPLE.replace(GROUP, text)


def train(text: str) -> str:
    assert TRAIN in EXAMPLE
    return EXAMPLE.replace(TRAIN, text)


def only_fault(text: str, *overrides: str) -> str:
    (fault,) = faults(text, *overrides)
    return fault


def test_the_designs_example_is_a_recipe():
    recipe = parse_recipe(EXAMPLE)
    assert [stage.kind for stage in recipe.stages] == ["train", "prune", "train", "evaluate"]
    assert recipe.task.data.validation == "train[-5%:]"
    assert recipe.task.prefix == "summarize: "


def test_dump_writes_every_default_and_reads_back_equal():
    recipe = parse_recipe(EXAMPLE)
    text = dump_recipe(recipe)
    assert parse_recipe(text) == recipe
    assert dump_recipe(parse_recipe(text)) == text
    written = YAML(typ="safe", pure=True).load(text)
    assert set(written) == set(Recipe.model_fields)
    assert set(written["stages"][1]["prune"]["groups"][0]) == set(Group.model_fields)
    assert set(written["stages"][3]) == {"name", "evaluate"}


@settings(max_examples=50, deadline=None, derandomize=True)
@example(text="\x85 \u2028\ufeff", rate=1.0, seed=0)
@example(text=" a: b #c ", rate=1.0, seed=0)
@given(text=st.text(min_size=1), rate=st.floats(min_value=1e-300, max_value=1e300), seed=st.integers(0, 2**32 - 1))
def test_dump_keeps_any_text_and_number(text, rate, seed):
    recipe = parse_recipe(EXAMPLE)
    task = recipe.task.model_copy(update={"prefix": text, "source": text})
    first = recipe.stages[0]
    stage = first.model_copy(update={"train": first.train.model_copy(update={"learning_rate": rate})})
    recipe = recipe.model_copy(update={"task": task, "seed": seed, "stages": (stage, *recipe.stages[1:])})
    assert parse_recipe(dump_recipe(recipe)) == recipe


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2:4", "2:4"),
        ("no", "no"),
        ("2024-01-01", "2024-01-01"),
        ("yes", "yes"),
        ("1:30", "1:30"),
        ("'5'", "5"),
        ("<<", "<<"),
    ],
)
def test_plain_words_stay_text(text, value):
    assert parse_recipe(EXAMPLE.replace("source: text", f"source: {text}")).task.source == value


@pytest.mark.parametrize("text", ["2e-5", "2.0e-5", "0.00002", "2E-5", "+2e-5"])
def test_every_way_to_write_a_float(text):
    stage = parse_recipe(train(f"{{epochs: 1, learning_rate: {text}, batch_size: 5}}")).stages[0]
    assert stage.train.learning_rate == 2e-5
    assert stage.train.epochs == 1.0


@pytest.mark.parametrize(("text", "value"), [("012", 12), ("0x10", 16), ("0o17", 15), ("0b11", 3), ("1_000", 1000)])
def test_every_way_to_write_a_whole_number(text, value):
    assert parse_recipe(EXAMPLE.replace("seed: 42", f"seed: {text}")).seed == value


def test_unknown_key_is_told_with_its_line_the_nearest_and_all():
    fault = only_fault(EXAMPLE.replace("prefix:", "prefx:"))
    assert fault == (
        'r.yaml:9 task.prefx: unknown key. Did you mean "prefix"? '
        "Keys here: kind, data, source, target, prefix, max_source_tokens, max_target_tokens."
    )


def test_nested_lists_have_lines_and_readable_paths():
    first, second = faults(group("{role: self_attention, sparcity: 0.9}"))
    assert first.startswith(
        'r.yaml:20 stages.self-attention.prune.groups.0.sparcity: unknown key. Did you mean "sparsity"?'
    )
    assert second.startswith("r.yaml:20 stages.self-attention.prune.groups.0.sparsity: is missing")


def test_missing_key_stands_at_its_parents_line():
    fault = only_fault(EXAMPLE.replace("  source: text\n", ""))
    assert fault.startswith("r.yaml:4 task.source: is missing. Keys here: kind, data, source,")
    fault = only_fault(train("{learning_rate: 2e-5, batch_size: 5}"))
    assert fault.startswith("r.yaml:16 stages.dense.train.epochs: is missing.")


@pytest.mark.parametrize(
    ("key", "text", "told"),
    [
        ("epochs", '"15"', 'must be a number, not "15".'),
        ("epochs", "0", "must be greater than 0, not 0."),
        ("epochs", ".inf", "must be a finite number"),
        ("epochs", ".nan", "must be a finite number"),
        ("epochs", "true", "must be a number, not true."),
        ("epochs", "null", "must be a number, not null (nothing)."),
        ("batch_size", "2.0", "must be a whole number, not 2.0."),
        ("batch_size", "0", "must be at least 1, not 0."),
        ("precision", "fp16", 'no "fp16". Did you mean "bf16"? Choices: auto, bf16, fp32.'),
        ("precision", "8", "no 8. Choices: auto, bf16, fp32."),
        ("dropout", "10", "must be less than 1, not 10. It is a share: 0.1 is 10 %."),
        ("group_by_length", "yes", 'must be true or false, not "yes".'),
        ("optimizer", "[adamw]", "no a list. Choices: adamw, adafactor, sgd."),
    ],
)
def test_wrong_values_are_told_with_what_is_expected(key, text, told):
    values = {"epochs": "15", "learning_rate": "2e-5", "batch_size": "5"} | {key: text}
    written = ", ".join(f"{name}: {value}" for name, value in values.items())
    fault = only_fault(train(f"{{{written}}}"))
    assert fault.startswith(f"r.yaml:16 stages.dense.train.{key}: {told}")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("seed: 42", "seed: -1", "r.yaml:3 seed: must be at least 0"),
        ("seed: 42", "seed: 99999999999", "r.yaml:3 seed: must be less than 4294967296"),
        ("model: google-t5/t5-small", "model: 5", "r.yaml:2 model: must be text, not 5. Put it in quotes."),
        ("model: google-t5/t5-small", 'model: ""', "r.yaml:2 model: must not be empty."),
        ("metrics: [rouge,", "metrics: [roug,", 'r.yaml:12 evaluation.metrics.0: no "roug". Did you mean "rouge"?'),
        ("[rouge, course_rouge_lsum]", "[]", "r.yaml:12 evaluation.metrics: must not be empty."),
        ("[rouge, course_rouge_lsum]", "rouge", 'r.yaml:12 evaluation.metrics: must be a list, not "rouge".'),
        ("[rouge, course_rouge_lsum]", "[per, per]", "r.yaml:12 evaluation.metrics: per is listed twice."),
        ("split: test", "metrics: [rouge, rouge]", "r.yaml:25 stages.final.evaluate.metrics: rouge is listed twice."),
        ("kind: seq2seq", "kind: regression", 'r.yaml:5 task.kind: no "regression". Choices: seq2seq, classification.'),
        (
            "  max_target_tokens: 128\n",
            "",
            "r.yaml:4 task.max_target_tokens: is missing: the longest target in tokens.",
        ),
        ("max_new_tokens: 63, ", "", "r.yaml:12 evaluation.max_new_tokens: is missing: the longest output in tokens."),
        ("metrics: [rouge,", "metrics: [accuracy,", "r.yaml:12 evaluation.metrics.0: accuracy is about classes."),
        (
            "teacher: null",
            "teacher: final",
            'r.yaml:23 stages.retrain-self-attention.train.teacher: stage "final" is not',
        ),
        ("teacher: null", "rewind: 3", "r.yaml:23 stages.retrain-self-attention.train.rewind: must be text, not 3."),
        ("kind: one_shot", "kind: cubic", "prune.train: is missing: cubic prunes while it trains."),
        (
            "schedule: {kind: one_shot}",
            "train: {epochs: 1, learning_rate: 1, batch_size: 1}",
            "one_shot prunes before any training.",
        ),
        ("{split: test}", "", "r.yaml:25 stages.final.evaluate: is empty. Write `evaluate: {}`"),
        ("{split: test}", "3", "r.yaml:25 stages.final.evaluate: must be a mapping, not 3. Keys here: split,"),
        ("    evaluate: {split: test}\n", "", "r.yaml:24 stages.final: does nothing: a stage is exactly one of"),
        (
            "evaluate: {split",
            "train: {epochs: 1, learning_rate: 1, batch_size: 1}\n    evaluate: {split",
            "Make two stages of it.",
        ),
        ("name: final", "name: dense", 'r.yaml:24 stages.3.name: stage 0 is called "dense" already.'),
        ("name: final", "name: a/b", 'stages.a/b.name: no "a/b". It is at most 80 letters'),
        ("path: FiscalNote/billsum,", "path: cmudict, name: x,", "r.yaml:6 task.data.name: cannot act"),
        ("version: 1", "version: 2", "r.yaml:1 version: must be 1, not 2: this Secateur understands version 1."),
        ("version: 1", 'version: "1"', 'r.yaml:1 version: must be 1, not "1": this Secateur understands version 1.'),
        ("keep: last", "keep: [last", "r.yaml:14: not YAML: "),
        ("keep: last", "keep: !!python/name:os.system x", "keep"),
        ("keep: last", "5: last", "r.yaml:13: a key must be text, not 5. Put it in quotes."),
        ("keep: last", "{a: b}: last", "r.yaml:13: a key must be text"),
    ],
)
def test_faults_elsewhere(old, new, told):
    assert old in EXAMPLE
    assert told in only_fault(EXAMPLE.replace(old, new))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{role: norm}", "sparsity: is missing"),
        ("{role: self_atention, sparsity: 0.5}", 'role: no "self_atention". Did you mean "self_attention"?'),
        ("{role: norm, sparsity: 1.0}", "sparsity: must be less than 1, not 1.0."),
        ("{role: norm, sparsity: 90}", "sparsity: must be less than 1, not 90. It is a share: 0.9 is 90 %."),
        ("{role: feed_forward, sparsity: 0.5, score: magnitud}", 'score: no "magnitud". Did you mean "magnitude"?'),
        ("{role: feed_forward, sparsity: 0.5, score: 3}", "score: no 3. It is one of magnitude, random, lamp"),
        ("{role: feed_forward, sparsity: 0.5, unit: row, block: [2, 2]}", "block: unit and block exclude each other"),
        ("{role: feed_forward, unit: column, pattern: 2:4}", "pattern: unit and pattern exclude each other"),
        ("{role: feed_forward, block: [1, 4], pattern: 2:4}", "pattern: block and pattern exclude each other"),
        ("{role: feed_forward, sparsity: 0.5, block: [2]}", "block: has too few values."),
        ("{role: feed_forward, sparsity: 0.5, block: [2, 2, 2]}", "block: takes 2 values, not 3."),
        ("{role: feed_forward, sparsity: 0.5, block: [0, 2]}", "block.0: must be at least 1, not 0."),
        ("{role: feed_forward, pattern: 4:4}", "pattern: n:m keeps n of every m, so n < m is needed"),
        ("{role: feed_forward, pattern: 2-4}", 'pattern: no "2-4". It is n:m, such as 2:4'),
        ("{role: feed_forward, pattern: 2:4, sparsity: 0.4}", "sparsity: pattern 2:4 removes 0.5, and this says 0.4."),
        ("{role: feed_forward, pattern: 2:4, scope: tensor}", "scope: cannot act"),
        ("{role: feed_forward, pattern: 2:4, max_sparsity: 0.6}", "max_sparsity: cannot act"),
        ("{role: feed_forward, pattern: 2:4, min_keep: 3}", "min_keep: cannot act"),
        ("{role: feed_forward, sparsity: 0.5, max_sparsity: 0.4}", "max_sparsity: 0.4 per tensor cannot add up to"),
        ("{role: feed_forward, sparsity: 0.5, max_sparsity: 0.6, scope: tensor}", "max_sparsity: cannot act"),
        ("{role: feed_forward, sparsity: 0.5, max_sparsity: 0.6, scope: row}", "max_sparsity: cannot act"),
        ("{role: feed_forward, sparsity: 0.5, unit: column, scope: row}", "scope: row is for single weights"),
        ("{role: feed_forward, sparsity: 0.5, block: [2, 2], scope: row}", "scope: row is for single weights"),
        ("{unit: head, sparsity: 0.5, max_sparsity: 0.6}", "max_sparsity: cannot act: with width: uniform"),
        ("{unit: hidden_dim, sparsity: 0.5, max_sparsity: 0.6}", "max_sparsity: cannot act beside unit hidden_dim"),
        ("{unit: vocab_row, score: frequency, max_sparsity: 0.6}", "max_sparsity: cannot act beside unit vocab_row"),
        ("{unit: layer, sparsity: 0.5, max_sparsity: 0.6}", "max_sparsity: cannot act beside unit layer"),
        ("{role: feed_forward, sparsity: 0.5, tie: view}", "tie: only lm_head and embedding share a table"),
        ("{role: norm, sparsity: 0.5, unit: row}", "unit: a norm's weight is a vector"),
        ("{role: feed_forward, sparsity: 0.5, layers: [0, 1, 0]}", "layers: 0 is listed twice."),
        ("{role: feed_forward, sparsity: 0.5, layers: []}", "layers: names no layer."),
        ("{role: feed_forward, sparsity: 0.5, layers: [-1]}", "layers.0: must be at least 0, not -1."),
        ("{role: feed_forward, sparsity: 0.5, layers: 1}", "layers: must be a list, not 1."),
        ("feed_forward", "must be a mapping, not \"feed_forward\". Keys here: role,"),
    ],
)  # fmt: skip
def test_rules_of_a_group(text, told):
    fault = only_fault(group(text))
    assert fault.startswith("r.yaml:20 stages.self-attention.prune.groups.0")
    assert told in fault


@pytest.mark.parametrize(
    "text",
    [
        "{role: feed_forward, pattern: 2:4}",
        "{role: feed_forward, pattern: 2:4, sparsity: 0.5}",
        "{role: feed_forward, pattern: 1:3, sparsity: 0.666667}",
        "{role: feed_forward, sparsity: 0.5, block: [4, 1], scope: tensor}",
        "{role: feed_forward, sparsity: 0.5, max_sparsity: 0.9, min_keep: 10}",
        "{role: feed_forward, sparsity: 0.5, scope: row}",
        "{unit: head, sparsity: 0.5, max_sparsity: 0.6, width: ragged}",
        "{unit: vocab_row, score: frequency, min_keep: 10}",
        "{role: lm_head, sparsity: 0.8, tie: view}",
        "{role: embedding, sparsity: 0.8, tie: both, unit: row}",
        "{role: self_attention, stack: decoder, layers: [0, 2], match: '*.q.weight', sparsity: 0}",
        "{role: self_attention, sparsity: 0.5, score: my_package.scores:wanda}",
    ],
)
def test_groups_that_are_right_and_their_dumps(text):
    recipe = parse_recipe(group(text))
    assert parse_recipe(dump_recipe(recipe)) == recipe


def test_momentum_only_with_sgd():
    base = "epochs: 1, learning_rate: 1, batch_size: 1"
    fault = only_fault(train(f"{{{base}, momentum: 0.9}}"))
    assert "stages.dense.train.momentum: only optimizer: sgd has it, and this is adamw." in fault
    assert parse_recipe(train(f"{{{base}, momentum: 0.9, optimizer: sgd}}")).stages[0].train.momentum == 0.9


def test_denoising_is_a_part_of_a_training():
    base = "epochs: 1, learning_rate: 1, batch_size: 1"
    recipe = parse_recipe(train(f"{{{base}, denoising: {{share: 0.5, until: 1}}}}"))
    assert recipe.stages[0].train.denoising.share == 0.5
    assert recipe.stages[0].train.denoising.until == 1.0
    assert recipe.stages[2].train.denoising is None
    assert parse_recipe(dump_recipe(recipe)) == recipe
    override = "stages.dense.train.denoising.share=0.25"
    text = train(f"{{{base}, denoising: {{share: 0.5, until: 0.3}}}}")
    assert parse_recipe(text, overrides=[override]).stages[0].train.denoising.share == 0.25
    off = parse_recipe(text, overrides=["stages.dense.train.denoising=null"])
    assert off.stages[0].train.denoising is None


@pytest.mark.parametrize(
    ("denoising", "told"),
    [
        ("{share: 0, until: 0.3}", "denoising.share: must be greater than 0, not 0."),
        ("{share: 0.5, until: 1.5}", "denoising.until: must be at most 1, not 1.5."),
        ("{share: 0.5}", "denoising.until: is missing."),
        ("{share: 0.5, until: 0.3, rate: 0.15}", "denoising.rate: unknown key."),
        ("0.5", "denoising: must be a mapping, not 0.5."),
    ],
)
def test_faults_of_denoising(denoising, told):
    fault = only_fault(train(f"{{epochs: 1, learning_rate: 1, batch_size: 1, denoising: {denoising}}}"))
    assert fault.startswith("r.yaml:16 stages.dense.train.denoising")
    assert told in fault


def test_a_split_may_be_named_as_it_is():
    assert parse_recipe(EXAMPLE.replace("split: test}", "split: ca_test}")).stages[3].evaluate.split == "ca_test"


def test_a_preset_is_written_out():
    text = EXAMPLE.replace("prune:", "prune: {preset: asymmetric}\n  - name: more\n    prune:", 1)
    recipe = parse_recipe(text)
    prune = next(stage.prune for stage in recipe.stages if stage.prune)
    assert prune.preset is None and [group.unit for group in prune.groups] == ["layer", "head", "ffn_neuron"]
    assert parse_recipe(dump_recipe(recipe)) == recipe
    assert set(PRESETS) == set(names.words(names.Preset))
    assert 'no "symmetric"' in faults(text.replace("asymmetric", "symmetric"))[0]


WHOLE = [
    ("{unit: head, sparsity: 0.5, role: feed_forward}", "role", "feed_forward has no head. Use self_attention or"),
    ("{unit: ffn_neuron, sparsity: 0.5, role: norm}", "role", "norm has no ffn_neuron. Use feed_forward"),
    ("{unit: layer, sparsity: 0.5, role: feed_forward}", "role", "feed_forward has no layer. Remove it."),
    ("{unit: head, sparsity: 0.5, scope: tensor}", "scope", "cannot act beside unit head: width says it"),
    ("{unit: head, sparsity: 0.5, match: '*q*'}", "match", "chosen by stack and layers"),
    ("{unit: hidden_dim, sparsity: 0.5, tie: both}", "tie", "a unit goes from every table at once"),
    ("{unit: layer, sparsity: 0.5, width: ragged}", "width", "cannot act beside unit layer"),
    ("{unit: layer, sparsity: 0.5, layers: [1]}", "layers", "cannot act beside unit layer"),
    ("{unit: hidden_dim, sparsity: 0.5, stack: encoder}", "stack", "both stacks share hidden_dims"),
    ("{unit: vocab_row}", "score", "Write score: frequency."),
    ("{unit: head, sparsity: 0.5, score: frequency}", "score", "frequency counts rows of the table"),
    ("{unit: head, sparsity: 0.5, score: spacing}", "score", "spacing chooses layers"),
    ("{unit: head, sparsity: 0.5, score: 'my.own:score'}", "score", "score weights, not whole units"),
    ("{unit: head}", "sparsity", "is missing"),
    ("{unit: head, sparsity: 0.5, score: taylor, width: by_heads}", "width", "by_heads shares neurons out"),
    ("{unit: ffn_neuron, sparsity: 0.5, width: by_heads, max_sparsity: 0.6}", "max_sparsity", "cannot act: the heads"),
    ("{sparsity: 0.5}", "role", "is missing"),
    ("{role: feed_forward, sparsity: 0.5, score: apoz}", "score", "apoz judges whole units"),
    ("{unit: head, sparsity: 0.5, score: fisher}", "score", "fisher judges single weights"),
    ("{unit: head, sparsity: 0.5, score: apoz}", "score", "apoz counts zeros, and attention gives none"),
    ("{unit: layer, sparsity: 0.5, score: fpgm}", "score", "fpgm judges heads and neurons"),
    ("{role: embedding, sparsity: 0.5, tie: both, score: activation}", "score", "this is none"),
    ("{role: feed_forward, sparsity: 0.5, width: ragged}", "width", "only heads and neurons have a width"),
]


@pytest.mark.parametrize(("text", "key", "told"), WHOLE)
def test_faults_of_whole_units(text, key, told):
    fault = only_fault(group(text))
    assert told in fault and f".{key}: " in fault


def test_whole_units_need_no_role_and_rows_no_sparsity():
    for text in ("{unit: head, sparsity: 0.5}", "{unit: vocab_row, score: frequency}", "{unit: layer, sparsity: 0.5}"):
        assert parse_recipe(group(text)).stages[1].prune.groups[0].role is None


@pytest.mark.parametrize("kind", ["cut", "pack", "evaluate"])
def test_an_empty_stage_is_told_how_to_be_written(kind):
    assert f"Write `{kind}: {{}}`" in only_fault(EXAMPLE.replace("evaluate: {split: test}", f"{kind}:"))


def test_all_faults_at_once_in_the_order_of_the_lines():
    text = group("{role: norm, sparcity: 1, unit: row, block: [1, 1]}").replace("seed: 42", "sed: 42")
    text = text.replace("split: test}", "split: 3, num_beams: x}")
    found = faults(text)
    lines = [int(fault.split()[0].removeprefix("r.yaml:")) for fault in found]
    assert lines == sorted(lines) == [3, 20, 20, 20, 20, 25, 25]


def test_duplicate_keys_are_told_with_both_lines():
    fault = only_fault(EXAMPLE.replace("keep: last", "seed: 1"))
    assert fault == "r.yaml:13 seed: is given twice, first on line 3. Remove one of the two."


def test_tabs_are_told_at_their_line():
    fault = only_fault(EXAMPLE.replace("  source: text", "\tsource: text"))
    assert fault.startswith("r.yaml:7: not YAML:")
    assert fault.endswith("Indent with spaces, not tabs.")


@pytest.mark.parametrize("text", ["", "# only a comment\n", "- a\n- b\n", "text", "5"])
def test_a_text_without_keys(text):
    assert "Keys here: version, model," in only_fault(text)


def test_a_text_of_two_documents_another_yaml_and_odd_characters():
    assert "expected a single document" in only_fault(EXAMPLE + "---\na: b\n")
    assert "r.yaml:1: not YAML: recipes are YAML 1.2" in only_fault("%YAML 1.1\n---\n" + EXAMPLE)
    assert parse_recipe("%YAML 1.2\n---\n" + EXAMPLE) == parse_recipe(EXAMPLE)
    assert "r.yaml:2: not YAML" in only_fault("a: b\nc: \x00")
    assert "nested too deeply" in only_fault("a: " + "[" * 1500)


def test_aliases_are_read_and_endless_ones_refused():
    text = (
        EXAMPLE.replace(TRAIN, f"&train {TRAIN}").replace("{split: test}", "{}").replace("name: final", "name: again")
    )
    text = text.replace("evaluate: {}", "train: *train")
    recipe = parse_recipe(text)
    assert recipe.stages[3].train == recipe.stages[0].train
    assert any("contains itself" in fault for fault in faults(EXAMPLE.replace("keep: last", "keep: &a [*a]")))
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert any("far too many values" in fault for fault in faults(bomb))


def test_overrides_reach_stages_by_name_and_by_index():
    overrides = [
        "stages.dense.train.epochs=1",
        "stages.1.prune.groups.0.sparsity=0.5",
        "model=/some/folder",
        "task.prefix=",
    ]
    recipe = parse_recipe(EXAMPLE, overrides=[*overrides[:3], 'task.prefix=""'])
    assert recipe.stages[0].train.epochs == 1.0
    assert recipe.stages[1].prune.groups[0].sparsity == 0.5
    assert (recipe.model, recipe.task.prefix) == ("/some/folder", "")
    assert "--set task.prefix= task.prefix: must be text" in only_fault(EXAMPLE, overrides[3])


def test_overrides_can_write_whole_parts_and_the_last_one_wins():
    recipe = parse_recipe(
        EXAMPLE, overrides=["evaluation.metrics=[per]", "seed=1", "seed=2", "stages.final.evaluate.num_beams=2"]
    )
    assert recipe.evaluation.metrics == ("per",)
    assert recipe.seed == 2
    assert recipe.stages[3].evaluate.num_beams == 2


def test_an_override_mends_a_fault_of_the_file():
    assert parse_recipe(EXAMPLE.replace("seed: 42", "seed: x"), overrides=["seed=7"]).seed == 7
    assert parse_recipe(EXAMPLE.replace("seed: 42", "seed: !x y"), overrides=["seed=7"]).seed == 7


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("stages.dense.train.epoch=1", ' stages.dense.train.epoch: unknown key. Did you mean "epochs"?'),
        ("stages.dens.train.epochs=1", ' stages: no stage "dens". Did you mean "dense"?'),
        ("stages.7.name=x", "or 0 to 3."),
        ("tsk.prefix=a", 'tsk: unknown key. Did you mean "task"?'),
        ("seed.a=1", 'seed: is 42 and has nothing called "a" inside.'),
        ("evaluation.metrics.x=rouge", 'evaluation.metrics: is a list of 2: an index from 0 to 1 is needed, not "x".'),
        ("seed", "--set seed: is not of the form a.b=c."),
        ("a..b=1", "is not of the form a.b=c."),
        ("seed=[1", "--set seed=[1: not YAML:"),
        ("seed=!!python/x 1", "A recipe has plain values."),
    ],
)  # fmt: skip
def test_faults_of_overrides_name_the_override(override, told):
    fault = only_fault(EXAMPLE, override)
    assert fault.startswith(f"--set {override}")
    assert told in fault


def test_files_that_cannot_be_read(tmp_path: Path):
    def fault(path: Path | str) -> str:
        with pytest.raises(RecipeError) as caught:
            load_recipe(path)
        return caught.value.faults[0]

    assert fault(tmp_path / "none.yaml").endswith("none.yaml: no such file.")
    assert "is a folder" in fault(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"model: caf\xe9\n")
    assert "is not UTF-8 text (byte 10)" in fault(tmp_path / "latin.yaml")
    (tmp_path / "empty.yaml").write_bytes(b"")
    assert "is empty" in fault(tmp_path / "empty.yaml")
    assert "cannot be read" in fault("a\0b")


def test_a_file_reads_as_its_text_also_with_a_byte_order_mark_and_crlf(tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + EXAMPLE.replace("\n", "\r\n").encode())
    assert load_recipe(path) == parse_recipe(EXAMPLE)
    path.write_text(EXAMPLE.replace("seed: 42", "sed: 42"), encoding="utf-8")
    with pytest.raises(RecipeError, match=f"{path.name}:3 sed: unknown key"):
        load_recipe(path, [])


def test_a_recipe_made_in_python_is_held_to_the_same_rules():
    recipe = parse_recipe(EXAMPLE)
    assert check_recipe(recipe) is recipe
    twice = recipe.model_copy(update={"stages": (recipe.stages[0], recipe.stages[0])})
    with pytest.raises(RecipeError, match=r"recipe stages\.1\.name: stage 0 is called"):
        check_recipe(twice)


def test_reading_a_recipe_is_light(tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_text(EXAMPLE, encoding="utf-8")
    heavy = ["torch", "transformers", "datasets", "numpy", "matplotlib", "accelerate"]
    program = (
        "import sys\nfrom secateur.recipe.load import load_recipe\n"
        f"load_recipe({str(path)!r})\nprint([name for name in {heavy!r} if name in sys.modules], len(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded, count = done.stdout.rsplit(maxsplit=1)
    assert loaded == "[]"
    assert int(count) < 500  # a plain pydantic and ruamel.yaml; torch alone brings over a thousand


def places(value, path=()):
    """Every path in nested values, the containers included."""
    found = [path] if path else []
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += places(item, (*path, key))
    return found


VALUES = YAML(typ="safe", pure=True).load(EXAMPLE)
PLACES = places(VALUES)
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.just([]),
    st.just({}),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
    st.sampled_from(["2:4", "view", "random", "lm_head", "sgd", "dense"]),
)
CHANGE = st.tuples(
    st.sampled_from(["delete", "rename", "retype", "add"]), st.sampled_from(PLACES), JUNK, st.text(max_size=6)
)


def change(values, kind, path, junk, word):
    """Delete, rename, replace or add one thing, where its place still stands."""
    for step in path[:-1]:
        if not (isinstance(values, dict) and step in values) and not (
            isinstance(values, list) and isinstance(step, int) and step < len(values)
        ):
            return
        values = values[step]
    key = path[-1]
    if isinstance(values, dict) and key in values:
        if kind in ("delete", "rename"):
            old = values.pop(key)
            if kind == "rename":
                values[word] = old
        else:
            values[key if kind == "retype" else word] = junk
    elif isinstance(values, list) and isinstance(key, int) and key < len(values):
        if kind == "delete":
            values.pop(key)
        else:
            values[key] = junk


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(changes=st.lists(CHANGE, min_size=1, max_size=4))
def test_any_change_gives_a_recipe_or_a_recipe_error(changes):
    values = copy.deepcopy(VALUES)
    for each in changes:
        change(values, *each)
    stream = io.StringIO()
    YAML(typ="safe", pure=True).dump(values, stream)
    try:
        recipe = parse_recipe(stream.getvalue(), name="r.yaml")
    except RecipeError as error:
        assert all(fault.startswith("r.yaml:") for fault in error.faults)
    else:
        assert parse_recipe(dump_recipe(recipe)) == recipe


@settings(max_examples=100, deadline=None, derandomize=True)
@given(start=st.integers(0, len(EXAMPLE)), length=st.integers(0, 40), junk=st.text(max_size=5))
def test_any_damage_to_the_text_gives_a_recipe_or_a_recipe_error(start, length, junk):
    try:
        parse_recipe(EXAMPLE[:start] + junk + EXAMPLE[start + length :])
    except RecipeError as error:
        assert error.faults


@settings(max_examples=50, deadline=None, derandomize=True)
@given(override=st.text(max_size=20), path=st.sampled_from(PLACES))
def test_any_override_gives_a_recipe_or_a_recipe_error(override, path):
    for argument in (override, ".".join(map(str, path)) + "=" + override):
        try:
            parse_recipe(EXAMPLE, overrides=[argument])
        except RecipeError as error:
            assert error.faults
