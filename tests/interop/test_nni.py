"""NNI's config_list: what it selects, what is refused, ties, bounds, and what holds already."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import secateur
from nets import make
from secateur.anatomy.check import anatomy_of
from secateur.errors import MaskError, RecipeError, SecateurError
from secateur.interop.nni_modules import PRUNABLE, ops_of, ops_of_anatomy
from secateur.interop.nni_pruners import PRUNERS, SCHEDULES
from secateur.masks.hold import attach
from secateur.masks.mask import MaskSet
from secateur.masks.tie import HEAD, is_tied
from secateur.nni_keys import ELSEWHERE, NO_PRESETS
from secateur.recipe import names
from secateur.recipe.rounds import LOTTERY

TABLE = "shared.weight"


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.LayerNorm(6), nn.BatchNorm1d(6))


def entry(**more: Any) -> dict[str, Any]:
    return {"op_types": ["Linear"], "sparse_ratio": 0.5, **more}


def faults(*entries: Any, tie: Any = None, model: Any = None, pruner: Any = "level") -> list[str]:
    with pytest.raises(RecipeError) as caught:
        secateur.from_nni(net() if model is None else model, list(entries), pruner, tie=tie)
    return list(caught.value.faults)


@pytest.mark.parametrize("key", ELSEWHERE)
def test_keys_of_other_work_name_what_does_it_here(key: str) -> None:
    (fault,) = faults(entry(**{key: "int8"}))
    assert fault == f"config_list[0] {key}: {ELSEWHERE[key]}"
    (fault,) = faults({"op_types": ["Linear"], "target_settings": {"weight": {"sparse_ratio": 0.5, key: 1}}})
    assert fault.endswith(f"target_settings.weight.{key}: {ELSEWHERE[key]}")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"op_name": ["0"]}, 'op_name: unknown key. Did you mean "op_names"?'),
        ({"op_names": "0"}, "op_names: must be a list of texts"),
        ({"op_names_re": ["("]}, "op_names_re: '(' is no regular expression"),
        ({"sparse_ratio": 1.5}, "sparse_ratio: must be a share from 0 to below 1"),
        ({"sparse_ratio": 1.0}, "sparse_ratio: 1 leaves nothing"),
        ({"sparse_threshold": 0.1}, "sparse_threshold: and sparse_ratio exclude each other"),
        ({"min_sparse_ratio": 0.6, "max_sparse_ratio": 0.5}, "min_sparse_ratio: 0.6 is above max_sparse_ratio, 0.5"),
        ({"apply_method": "bypass"}, "apply_method: bypass lets everything through"),
        ({"apply_method": "movement_mul"}, "is set by the pruner"),
        ({"target_names": ["_output_"]}, "target_names: _output_ masks what flows through a layer"),
        ({"target_names": ["scale"]}, "target_names: no 'scale'. Choices: weight, bias"),
        ({"granularity": "per_channel"}, "granularity: per_channel is for what flows through a layer"),
        ({"granularity": [3]}, "does not divide into blocks of 1 x 3"),
        ({"granularity": [1, 1, 1]}, "needs 3 dimensions"),
        ({"global_group_id": 1, "dependency_group_id": 2}, "NNI's code forgets it beside dependency_group_id"),
        ({"internal_metric_block": 2}, "cannot act without dependency_group_id"),
        ({"align": {"module_name": "9", "target_name": "weight", "dims": [0]}}, "0.bias is to follow 9.weight"),
        ({"op_names": ["zero"]}, "op_names: no module 'zero'"),
        ({"op_types": ["Conv9d"]}, "selects no module"),
        ({"op_types": ["LayerNorm"]}, "have no weights to prune, 3 (LayerNorm) first"),
        ({"op_types": ["BatchNorm1d"]}, "by NNI's documents its bias goes with its weight, by its code it stays"),
        ({"dependency_group_id": 1}, "2.weight has (6, 6) blocks, 0.weight (6, 4): no mask fits both"),
    ],
)  # fmt: skip
def test_faults_name_their_entry(change: dict[str, Any], told: str) -> None:
    found = faults(entry(), entry(**change)) if "op_types" in change else faults(entry(**change))
    index = 1 if "op_types" in change else 0
    assert any(fault.startswith(f"config_list[{index}]") and told in fault for fault in found), found


def test_all_faults_are_told_at_once() -> None:
    found = faults(entry(sparse_ratio=2), {"sparse_ratio": 0.5}, {"op_types": ["Linear"]}, 3)
    assert [fault.split(":")[0] for fault in found] == [
        "config_list[0] sparse_ratio", "config_list[1]", "config_list[2]", "config_list[3]",
    ]  # fmt: skip


def test_a_module_of_two_entries_is_refused_for_nnis_documents_and_code_differ() -> None:
    (weight, bias) = faults(entry(op_names=["0"]), entry(op_names_re=["0"], sparse_ratio=0.1))
    assert "0.weight is pruned by config_list[0] already" in weight and "last entry win, its code the first" in weight
    assert "0.bias" in bias
    apart = [
        entry(target_names=["weight"]),
        entry(target_names=["bias"], target_settings={"bias": {"sparse_ratio": 0.2}}),
    ]
    assert len(secateur.from_nni(net(), apart).masks) == 4


def test_a_group_has_one_ratio() -> None:
    (fault,) = faults(
        entry(op_names=["0"], global_group_id=1), entry(op_names=["2"], sparse_ratio=0.4, global_group_id=1)
    )
    assert fault == "config_list[1] global_group_id: 1 has sparse_ratio 0.4 and 0.5: one group has one."


def test_bounds_of_a_group_hold_where_nni_lets_them_go() -> None:
    """NNI takes bounds into account only when all tensors meet them; its documents promise more, and get it here."""
    model = net()
    model[0].weight.data.mul_(1e-3)  # one threshold would empty it
    config = [
        entry(op_names=["0"], target_names=["weight"], global_group_id=1, max_sparse_ratio=0.6),
        entry(op_names=["2"], target_names=["weight"], global_group_id=1, min_sparse_ratio=0.2),
    ]
    masks = secateur.from_nni(model, config)
    assert masks.removed("0.weight") == int(24 * 0.6) and masks.num_removed == int(60 * 0.5)
    config[0]["max_sparse_ratio"], config[1]["min_sparse_ratio"] = 1.0, 0.4
    masks = secateur.from_nni(model, config)
    assert masks.removed("2.weight") == int(36 * 0.4) and masks.num_removed == 30


@pytest.mark.parametrize("most", [0.25, 0.5, 0.75])
def test_blocks_of_several_sizes_stay_within_the_group(most: float) -> None:
    config = [entry(granularity="out_channel", target_names=["weight"], global_group_id=1, max_sparse_ratio=most)]
    masks = secateur.from_nni(net(), config)
    wanted = int(60 * 0.5)
    assert wanted - 6 < masks.num_removed <= wanted or most < 0.5
    for path, mask in masks.masks.items():
        assert masks.sparsity(path) <= most
        assert all(row.all() or not row.any() for row in mask)


def test_bounds_that_leave_too_little_are_told() -> None:
    config = [entry(op_names=["0"], sparse_ratio=0.9, global_group_id=1, max_sparse_ratio=0.1),
              entry(op_names=["2"], sparse_ratio=0.9, global_group_id=1)]  # fmt: skip
    with pytest.raises(MaskError, match="at most 38 go"):
        secateur.from_nni(net(), config)


def test_what_is_gone_stays_gone_and_counts() -> None:
    model = net()
    first = secateur.from_nni(model, [entry(op_names=["0"], sparse_ratio=0.3)])
    second = secateur.from_nni(model, [entry(op_names=["0"], sparse_ratio=0.6)], already=first)
    again = secateur.from_nni(model, [entry(op_names=["0"], sparse_ratio=0.1)], already=second)
    assert not (second.masks["0.weight"] & ~first.masks["0.weight"]).any()
    assert second.removed("0.weight") == int(24 * 0.6) and again.equals(second)


def test_equals_go_by_their_index() -> None:
    model = nn.Sequential(nn.Linear(4, 2, bias=False))
    nn.init.constant_(model[0].weight, 1.0)
    assert (
        secateur.from_nni(model, [entry(sparse_ratio=0.3)]).masks["0.weight"].flatten().tolist()
        == [False] * 2 + [True] * 6
    )


@pytest.mark.parametrize("tie", ["view", "both", "untie"])
def test_a_tied_head_needs_a_policy(tie: Any) -> None:
    model = make("t5-v1.0")
    config = [{"op_names": ["lm_head"], "sparse_ratio": 0.8}]
    (fault,) = faults(*config, model=model)
    assert "lm_head.weight is one tensor with others (tied)" in fault
    assert all(f"tie: {word}" in fault for word in names.words(names.Tie))
    masks = secateur.from_nni(model, config, tie=tie)
    path = TABLE if tie == "both" else HEAD
    assert dict(masks.modes) == {path: "view" if tie == "view" else "hold"}
    assert is_tied(model) is (tie != "untie") and masks.sparsity(path) == 0.8
    with attach(model, masks):
        assert int((model.shared.weight == 0).sum()) == (masks.num_removed if tie == "both" else 0)


def test_a_policy_that_cannot_act_is_refused() -> None:
    (fault,) = faults(entry(), tie="view")
    assert "tie: view cannot act" in fault
    (fault,) = faults({"op_names": ["shared"], "sparse_ratio": 0.5}, model=make("t5-v1.0"), tie="view")
    assert "For the embedding choose both or untie" in fault
    masks = secateur.from_nni(make("t5-v1.1"), [{"op_types": ["Embedding"], "sparse_ratio": 0.5}])
    assert TABLE in masks and "encoder.embed_tokens.weight" not in masks


@pytest.mark.parametrize("pruner", ["movement", "slim", "taylor"])
def test_what_is_learned_or_gathered_is_asked_for(pruner: Any) -> None:
    with pytest.raises(MaskError, match=r"learned while|Gather it first"):
        secateur.from_nni(net(), [entry()], pruner)


def test_no_distances_between_single_weights() -> None:
    with pytest.raises(MaskError, match="fpgm judges blocks"):
        secateur.from_nni(
            net(), [entry(target_names=["bias"], target_settings={"bias": {"sparse_ratio": 0.5}})], "fpgm"
        )


@pytest.mark.parametrize("name", ["t5-v1.0", "t5-v1.1", "mt5", "umt5"])
def test_the_map_alone_tells_what_the_model_tells(name: str) -> None:
    model = make(name)
    by_model, by_map = ops_of(model), ops_of_anatomy(anatomy_of(model))
    held = {path: op for path, op in by_model.items() if op.tensors}
    assert held == {path: op for path, op in by_map.items() if op.tensors}
    assert {op.kind for op in held.values()} & set(PRUNABLE) == {"Linear", "Embedding"}


def test_the_tables_hold_the_words_of_a_recipe() -> None:
    assert tuple(PRUNERS) == names.words(names.NniPruner)
    assert (*SCHEDULES, LOTTERY) == names.words(names.NniSchedule)


@pytest.mark.parametrize("name", [*NO_PRESETS, "levl"])
def test_pruners_that_are_no_presets_name_what_does_their_work(name: Any) -> None:
    with pytest.raises(SecateurError) as caught:
        secateur.from_nni(net(), [entry()], name)
    assert NO_PRESETS.get(name, 'Did you mean "level"') in str(caught.value)


def test_masks_through_which_a_model_was_trained_count_as_linear() -> None:
    model = net()
    with attach(model, MaskSet({"0.weight": torch.ones(6, 4).bool()}, {"0.weight": "view"}, "")):
        assert ops_of(model)["0"].kind == "Linear"
