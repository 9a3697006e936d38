"""How much each weight matters: one pure function a file, one row a function, larger = keep."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from secateur.errors import MaskError
from secateur.masks.scores.magnitude import magnitude
from secateur.masks.scores.random import random_score
from secateur.registry import suggest

Score = Callable[..., Tensor]

SCORES: dict[str, Score] = {"magnitude": magnitude, "random": random_score}


def find_score(score: str | Score) -> Score:
    """Turn what a recipe or a caller names into a function.

    Args:
        score: a name in SCORES, "module:function" of your own, or the function itself.

    Returns:
        The function.

    Raises:
        MaskError: there is no such score, module or function.

    >>> find_score("magnitude").__name__
    'magnitude'
    """
    if not isinstance(score, str):
        return score
    if score in SCORES:
        return SCORES[score]
    module_name, colon, function_name = score.partition(":")
    if not colon:
        names = ", ".join(SCORES)
        raise MaskError(
            f'score: no {score!r}. {suggest(score, SCORES)}There are: {names}; or "module:function" of your own.'
        )
    try:
        function: Score | None = getattr(importlib.import_module(module_name), function_name, None)
    except ImportError as error:
        raise MaskError(f"score {score!r}: module {module_name!r} cannot be imported: {error}.") from error
    if not callable(function):
        raise MaskError(f"score {score!r}: module {module_name!r} has no function {function_name!r}.")
    return function


def score_weight(weight: Tensor, score: str | Score, *, path: str, seed: int = 0) -> Tensor:
    """Score one tensor.

    A score is called with the weight alone; one that names `path` or `seed` as a keyword-only parameter is given it.

    Args:
        weight: any shape, floating point. It is not changed.
        score: see `find_score`.
        path: the weight's name.
        seed: for scores that draw numbers.

    Returns:
        The weight's shape, float32, larger = keep. It may share the weight's memory if the score returned the weight.

    Raises:
        MaskError: there is no such score, or it returned something else than one floating-point number per element.

    >>> score_weight(torch.tensor([[1.0, -2.0]]), lambda weight: weight**2, path="w").tolist()
    [[1.0, 4.0]]
    """
    function: Callable[..., object] = find_score(score)
    name = score if isinstance(score, str) else getattr(score, "__name__", repr(score))
    with torch.no_grad():
        result = function(weight.detach(), **_wanted(function, path=path, seed=seed))
    if not isinstance(result, Tensor) or result.shape != weight.shape or not result.is_floating_point():
        given = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise MaskError(
            f"{path}: score {name!r} returned {given}, the weight has shape {tuple(weight.shape)}. "
            "Return one floating-point number per element, larger = keep."
        )
    return result.detach().to(torch.float32)


def score_group(weights: Mapping[str, Tensor], score: str | Score, *, seed: int = 0) -> dict[str, Tensor]:
    """Score every tensor of a group.

    Args:
        weights: name -> tensor, any shape.
        score: see `find_score`.
        seed: for scores that draw numbers; every tensor draws its own, whatever the order.

    Returns:
        The same keys in the same order; float32, the weights' shapes.

    Raises:
        MaskError: see `score_weight`.
    """
    return {path: score_weight(weight, score, path=path, seed=seed) for path, weight in weights.items()}


def _wanted(function: Callable[..., object], **offers: object) -> dict[str, object]:
    """Pick the offers that a function names as keyword-only parameters; builtins without a signature name none."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    named = {name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}
    return {name: value for name, value in offers.items() if name in named}
