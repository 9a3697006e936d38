"""Secateur prunes, retrains, cuts and ships encoder-decoder transformers, and proves what it did.

>>> import secateur
>>> sorted(secateur.__all__)[:3]
['Anatomy', 'MaskCallback', 'MaskSet']
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.anatomy.check import anatomy_of
    from secateur.anatomy.roles import Anatomy
    from secateur.benching import bench
    from secateur.comparison import compare
    from secateur.folder_pruning import prune
    from secateur.importing import import_checkpoint
    from secateur.interop.nni import from_nni
    from secateur.latency import search_latency
    from secateur.making import cut, export, load, pack, unpack
    from secateur.masks.group import prune_group
    from secateur.masks.hold import attach
    from secateur.masks.mask import MaskSet
    from secateur.measure import evaluate, inspect, plan
    from secateur.pipeline import run
    from secateur.prediction import predict
    from secateur.recipe.load import load_recipe
    from secateur.reporter import Reporter
    from secateur.retrain.keeper import MaskCallback, keep
    from secateur.searching import search
    from secateur.sensing import sensitivity
    from secateur.sweeping import sweep

# Read on first use (PEP 562), so that `import secateur` and `secateur validate` do not wait for torch.
_HOMES = {
    "Anatomy": "anatomy.roles",
    "MaskCallback": "retrain.keeper",
    "MaskSet": "masks.mask",
    "Reporter": "reporter",
    "anatomy_of": "anatomy.check",
    "attach": "masks.hold",
    "bench": "benching",
    "compare": "comparison",
    "cut": "making",
    "evaluate": "measure",
    "export": "making",
    "import_checkpoint": "importing",
    "from_nni": "interop.nni",
    "inspect": "measure",
    "keep": "retrain.keeper",
    "load": "making",
    "load_recipe": "recipe.load",
    "pack": "making",
    "plan": "measure",
    "predict": "prediction",
    "prune": "folder_pruning",
    "prune_group": "masks.group",
    "run": "pipeline",
    "search": "searching",
    "search_latency": "latency",
    "sensitivity": "sensing",
    "sweep": "sweeping",
    "unpack": "making",
}

__version__ = "0.1.0"
__all__ = [
    "Anatomy",
    "MaskCallback",
    "MaskSet",
    "Reporter",
    "anatomy_of",
    "attach",
    "bench",
    "compare",
    "cut",
    "evaluate",
    "export",
    "from_nni",
    "import_checkpoint",
    "inspect",
    "keep",
    "load",
    "load_recipe",
    "pack",
    "plan",
    "predict",
    "prune",
    "prune_group",
    "run",
    "search",
    "search_latency",
    "sensitivity",
    "sweep",
    "unpack",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}. There are: {', '.join(_HOMES)}.")
    return getattr(import_module(f"secateur.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
