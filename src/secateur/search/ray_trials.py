"""Trials on many machines: Ray Tune runs them, and Optuna's journal on disk stays what proposes and remembers."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.artifacts.lock import lock_folder
from secateur.errors import SecateurError

FIGURE, FAULT = "figure", "fault"
NUMBER = "number"  # of a trial that is done again: what it was called when it was begun
PLACE = "ray"


@dataclass(frozen=True)
class OnRay:
    """How Ray Tune does the trials.

    Attributes:
        resources: what one trial takes of a machine, such as {"cpu": 2, "gpu": 1}; as many run at once as there is room
            for.
        on_trial: is told the number of each trial that is proposed.
    """

    resources: Mapping[str, float]
    on_trial: Callable[[int], None] | None = None


def called(trial: Any) -> int:
    """Say which number an Optuna trial goes by, which names its folder: one that is done again goes on there."""
    number: int = trial.user_attrs.get(NUMBER, trial.number)
    return number


def run_in_ray(
    propose: Callable[[Any], Any],
    run_trial: Callable[[int, Mapping[str, float]], float],
    study: Any,
    sampler: Any,
    process: str,
    *,
    count: int,
    folder: Path,
    ray: OnRay,
) -> None:
    """Run trials with Ray Tune: on this machine, or on the cluster that RAY_ADDRESS names.

    Every machine has to see the model, the data and `folder` under the same paths. As many trials run at once as the
    machines have room for. A trial that fails is marked in the journal, and the others go on.

    Args:
        propose: asks an Optuna trial for its parameters.
        run_trial: (number, parameters) -> figure; it is sent to the machines, so it holds nothing that cannot be.
        study: the Optuna study, its journal on disk.
        sampler: of its proposals.
        process: names this one in the journal.
        count: how many trials.
        folder: where Ray's own notes go, in a folder of their own.
        ray: what a trial takes, and who is told of it.

    Raises:
        SecateurError: Ray Tune is not installed, or no machine has what a trial takes.
    """
    core, tune, search = _ray()
    begun = not core.is_initialized()
    if begun:
        core.init(log_to_driver=False, logging_level=logging.ERROR)
    try:
        room = core.cluster_resources()
        short = {name: amount for name, amount in ray.resources.items() if amount > room.get(name.upper(), 0)}
        if short:
            told = ", ".join(f"{amount:g} {name} of {room.get(name.upper(), 0):g}" for name, amount in short.items())
            raise SecateurError(f"--ray: a trial takes more than Ray has: {told}. Lower --threads, or choose --device.")

        class Proposals(search.OptunaSearch):
            """Optuna's, without a copy on disk: the journal remembers."""

            def save(self, checkpoint_path: str) -> None:
                Path(checkpoint_path).touch()

            def suggest(self, trial_id: str) -> dict[str, Any]:
                with lock_folder(folder, wait=True):  # no process sees another's trial half begun
                    found: dict[str, Any] = super().suggest(trial_id)
                    self._ot_trials[trial_id].set_user_attr("process", process)  # this one asks for all of them
                if ray.on_trial:
                    ray.on_trial(found["number"])
                return found

            def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
                failed = error or bool(result and result.get(FAULT))
                if failed and trial_id in self._ot_trials:
                    told = (result or {}).get(FAULT) or "Ray lost it; its folder under ray/ says more."
                    self._ot_trials[trial_id].set_user_attr(FAULT, told)
                super().on_trial_complete(trial_id, None if failed else result, failed)

        proposals = Proposals(
            _numbered(propose),
            metric=FIGURE,
            mode="max" if study.direction.name == "MAXIMIZE" else "min",
            sampler=sampler,
            study_name=study.study_name,
            storage=study._storage,  # the study gives it no other way
        )

        def work(config: dict[str, Any]) -> None:
            given = dict(config)
            try:
                tune.report({FIGURE: run_trial(given.pop("number"), given)})
            except SecateurError as error:  # told in the trial's folder; raised, Ray would print its own stack
                tune.report({FIGURE: math.nan, FAULT: str(error)})

        tuner = tune.Tuner(
            tune.with_resources(work, dict(ray.resources)),
            tune_config=tune.TuneConfig(search_alg=proposals, num_samples=count),
            run_config=tune.RunConfig(name=PLACE, storage_path=str(folder), verbose=0),
        )
        tuner.fit()
    finally:
        if begun:
            core.shutdown()


def _numbered(propose: Callable[[Any], Any]) -> Callable[[Any], dict[str, int]]:
    """Let what is proposed say which trial it is of."""

    def space(trial: Any) -> dict[str, int]:
        propose(trial)
        return {"number": called(trial)}

    return space


def _ray() -> tuple[Any, Any, Any]:
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its newer output prints tables at verbosity 0 too
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody who prunes a model has asked to be counted
    try:
        import ray
        from ray import tune
        from ray.tune.search import optuna
    except ImportError as error:
        raise SecateurError(
            "--ray needs Ray Tune: pip install 'secateur[ray]', or leave the option out: several processes started "
            "with the same --out share the trials too."
        ) from error
    return ray, tune, optuna


__all__ = ["FAULT", "NUMBER", "OnRay", "called", "run_in_ray"]
