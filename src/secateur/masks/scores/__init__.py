"""How much each weight matters: one pure function a file, one row a function, larger = keep."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from secateur.errors import MaskError, SecateurError
from secateur.files import sha256_file
from secateur.masks.scores.activation import activation
from secateur.masks.scores.fisher import fisher
from secateur.masks.scores.lamp import lamp
from secateur.masks.scores.magnitude import magnitude
from secateur.masks.scores.movement import movement, soft_movement
from secateur.masks.scores.obs import obs
from secateur.masks.scores.obs_fisher import obs_fisher
from secateur.masks.scores.random import random_score
from secateur.masks.scores.taylor import taylor
from secateur.masks.statistics import LEARNED, STATISTICS, Statistics
from secateur.registry import suggest

Score = Callable[..., Tensor]

SCORES: dict[str, Score] = {
    "magnitude": magnitude,
    "random": random_score,
    "lamp": lamp,
    "taylor": taylor,
    "fisher": fisher,
    "activation": activation,
    "obs": obs,
    "obs_fisher": obs_fisher,
    "movement": movement,
    "soft_movement": soft_movement,
}
_OFFERED = ("path", "seed")  # to every score, beside what calibration tells
ADJUSTING = ("obs", "obs_fisher")  # what they leave is adjusted when their masks are laid on


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
        with _working_folder():
            function: Score | None = getattr(importlib.import_module(module_name), function_name, None)
    except ImportError as error:
        raise MaskError(
            f"score {score!r}: module {module_name!r} cannot be imported: {error}. It has to be installed, to stand in "
            "the folder where the command is called, or in one that PYTHONPATH names."
        ) from error
    except Exception as error:  # whatever a module of the user's does when it is read
        raise MaskError(f"score {score!r}: reading module {module_name!r} fails: {_told(error)}.") from error
    if not callable(function):
        raise MaskError(f"score {score!r}: module {module_name!r} has no function {function_name!r}.")
    if unknown := sorted(_keywords(function, needed=True) - {*_OFFERED, *STATISTICS}):
        listed = ", ".join([*_OFFERED, *STATISTICS])
        raise MaskError(
            f"score {score!r}: nothing gives it {', '.join(unknown)}. Keywords that a score may name: {listed}."
        )
    return function


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


@contextmanager
def _working_folder() -> Iterator[None]:
    """Find modules where the command is called too, last of all: only `python -m` would by itself."""
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def source_hash(score: str) -> str | None:
    """Hash the file that a score of your own stands in: figures of an earlier text of it are of another score.

    Args:
        score: see `find_score`.

    Returns:
        SHA-256, hexadecimal; None for a score of the package, or one whose file is not there.

    Raises:
        MaskError: there is no such score.
    """
    if score in SCORES:
        return None
    function = find_score(score)
    file = inspect.getsourcefile(function) if inspect.isroutine(function) else None
    return sha256_file(Path(file)) if file and Path(file).is_file() else None


def needs(score: str | Score) -> frozenset[str]:
    """List the statistics of calibration batches that a score asks for, by naming them as keyword-only parameters.

    Args:
        score: see `find_score`.

    Returns:
        Names out of `masks.statistics.STATISTICS`; empty for a score that the weight is enough for.

    Raises:
        MaskError: there is no such score.

    >>> sorted(needs("fisher")), sorted(needs("magnitude"))
    (['squared_gradient'], [])
    """
    return _keywords(find_score(score)) & {*STATISTICS}


def score_weight(
    weight: Tensor, score: str | Score, *, path: str, seed: int = 0, statistics: Statistics | None = None
) -> Tensor:
    """Score one tensor.

    A score is called with the weight alone; one that names `path`, `seed` or a statistic of calibration batches
    (`gradient`, `input_norm`, ...: see `masks.statistics`) as a keyword-only parameter is given it.

    Args:
        weight: any shape, floating point. It is not changed.
        score: see `find_score`.
        path: the weight's name.
        seed: for scores that draw numbers.
        statistics: what calibration batches told of this weight.

    Returns:
        The weight's shape, float32, larger = keep. It may share the weight's memory if the score returned the weight.

    Raises:
        MaskError: there is no such score, a statistic that it needs is missing, or it returned something else than one
            floating-point number per element.

    >>> score_weight(torch.tensor([[1.0, -2.0]]), lambda weight: weight**2, path="w").tolist()
    [[1.0, 4.0]]
    """
    function: Callable[..., object] = find_score(score)
    name = score if isinstance(score, str) else getattr(score, "__name__", repr(score))
    offers: dict[str, object] = {"path": path, "seed": seed}
    offers.update({key: value.to(weight.device) for key, value in (statistics or {}).items()})
    asked = _keywords(function)
    if missing := sorted((asked & {*STATISTICS}) - offers.keys()):
        if {*missing} <= {*LEARNED}:
            raise MaskError(f"{path}: score {name!r} is learned while a gradual pruning trains, and nothing has yet.")
        raise MaskError(f"{path}: score {name!r} needs {', '.join(missing)} of calibration batches. Gather it first.")
    try:
        with torch.no_grad():
            result = function(weight.detach(), **{key: value for key, value in offers.items() if key in asked})
    except Exception as error:
        if score in SCORES or isinstance(error, SecateurError):
            raise
        raise MaskError(
            f"{path}: score {name!r} fails on a weight of shape {tuple(weight.shape)}: {_told(error)}."
        ) from error
    if not isinstance(result, Tensor) or result.shape != weight.shape or not result.is_floating_point():
        given = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise MaskError(
            f"{path}: score {name!r} returned {given}, the weight has shape {tuple(weight.shape)}. "
            "Return one floating-point number per element, larger = keep."
        )
    return result.detach().to(torch.float32)


def score_group(
    weights: Mapping[str, Tensor],
    score: str | Score,
    *,
    seed: int = 0,
    statistics: Mapping[str, Statistics] | None = None,
) -> dict[str, Tensor]:
    """Score every tensor of a group.

    Args:
        weights: name -> tensor, any shape.
        score: see `find_score`.
        seed: for scores that draw numbers; every tensor draws its own, whatever the order.
        statistics: name -> what calibration batches told of the weight.

    Returns:
        The same keys in the same order; float32, the weights' shapes.

    Raises:
        MaskError: see `score_weight`.
    """
    known = statistics or {}
    return {
        path: score_weight(weight, score, path=path, seed=seed, statistics=known.get(path))
        for path, weight in weights.items()
    }


def _keywords(function: Callable[..., object], *, needed: bool = False) -> frozenset[str]:
    """List a function's keyword-only parameters, or those without a default; without a signature there are none."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return frozenset()
    return frozenset(
        name
        for name, parameter in parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and not (needed and parameter.default is not parameter.empty)
    )
