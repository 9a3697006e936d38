"""Manifests made by hand, with the report's figures."""

from __future__ import annotations

import copy

import pytest

GROUPS = [  # role, sparsity, tie, weights, before -> right after -> retrained, counted ratio, epochs
    ("self_attention", 0.9, None, 12_582_912, 0.0343, 0.2311, 0.8128367, 15),
    ("cross_attention", 0.4, None, 6_291_456, 0.0137, 0.2294, 0.7712448, 20),
    ("feed_forward", 0.7, None, 25_165_824, 0.0146, 0.2253, 0.4801019, 15),
    ("lm_head", 0.8, "view", 16_449_536, 0.0493, 0.2253, 0.2626112, 30),
]
DENSE_BYTES, FINAL_BYTES = 242_043_056, 307_867_048


def entry(name, kind, value, *, counted=1.0, num_bytes=DENSE_BYTES, split="validation"):
    """One stage as the pipeline writes it, with a made-up interval of 0.006 on both sides."""
    figure = {"value": value, "low": value - 0.006, "high": value + 0.006, "unit": "", "higher_is_better": True}
    length = {"value": 41.5, "low": 40.0, "high": 43.0, "unit": "tokens", "higher_is_better": None}
    collapsed = kind == "prune"
    return {
        "name": name,
        "kind": kind,
        "folder": f"00-{name}",
        "seconds": 91.0,
        "hash": "0123456789abcdef" * 4,
        "counts": {
            "counted_ratio": counted,
            "stored_ratio": counted,
            "num_parameters": 60_506_624,
            "num_bytes": num_bytes,
        },
        "metrics": {"mean_length": length, "rougeLsum": figure},
        "split": split,
        "evaluation": {"max_new_tokens": 63, "num_beams": 5, "batch_size": 16, "seconds": 60.0},
        "collapse": {"rows": 200, "empty": 3 * collapsed, "repeated": 150 * collapsed, "truncated": 1},
        "sparsity": [],
        "examples": [
            {
                "source": f"summarize: bill {row}",
                "reference": f"a | summary {row}",
                "prediction": f"{name} *{row}* <b>\nx",
            }
            for row in range(5)
        ],
    }


def whole_run():
    """The report's nine stages and a measurement on test."""
    stages = [entry("dense", "train", 0.2379)]
    sparsity = []
    for role, share, tie, size, pruned, retrained, counted, epochs in GROUPS:
        last = role == "lm_head"
        size_on_disk = FINAL_BYTES if last else DENSE_BYTES
        name = role.replace("_", "-")
        removed = round(share * size)
        sparsity = [
            *sparsity,
            {
                "path": f"{role}.weight",
                "role": role,
                "stack": None,
                "layer": None,
                "num_elements": size,
                "num_removed": removed,
            },
        ]
        pruning = entry(name, "prune", pruned, counted=counted, num_bytes=size_on_disk)
        group = {
            "role": role,
            "num_weights": 1,
            "num_removed": removed,
            "num_elements": size,
            "sparsity": share,
            "tie": tie,
        }
        training = entry(f"retrain-{name}", "train", retrained, counted=counted, num_bytes=size_on_disk)
        facts = {"steps": 100 * epochs, "epochs": float(epochs), "first_loss": 3.0, "last_loss": 2.0, "cut_sources": 7}
        stages += [
            pruning | {"groups": [group], "sparsity": sparsity},
            training | {"train": facts, "sparsity": sparsity},
        ]
    final = entry("final", "evaluate", 0.2301, counted=GROUPS[-1][6], num_bytes=FINAL_BYTES, split="test")
    final["examples"] = [{"source": "t", "reference": "t", "prediction": "t"}]
    return {
        "format": "secateur-run",
        "version": 1,
        "status": "complete",
        "recipe": "recipe.yaml",
        "model": "google-t5/t5-small",
        "model_folder": "model",
        "seed": 42,
        "environment": {
            "python": "3.11.7",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "secateur": "0.1.0",
            "platform": "Linux",
            "processor": "a processor",
            "cores": 2,
            "threads": 2,
            "device": "cpu",
            "command": "secateur run recipes/report/t5-small-billsum.yaml",
        },
        "data": {
            "path": "FiscalNote/billsum",
            "hashes": {"train": "ab" * 32, "validation": "cd" * 32},
            "rows": {"train": 18000},
        },
        "dense": entry("given", "given", 0.2334),
        "stages": [*stages, final | {"sparsity": sparsity}],
    }


@pytest.fixture
def manifest():
    """A complete run."""
    return whole_run()


@pytest.fixture
def interrupted():
    """A run from scratch that was stopped after its first pruning."""
    run = copy.deepcopy(whole_run())
    return run | {"status": "interrupted", "dense": None, "stages": run["stages"][:2]}


@pytest.fixture
def trained_only():
    """A run that prunes nothing."""
    run = copy.deepcopy(whole_run())
    return run | {"stages": run["stages"][:1]}
