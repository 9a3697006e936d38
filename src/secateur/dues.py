"""What is due in a search: how many elements which groups have to lose together, for a budget or role by role."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from secateur.anatomy.roles import Anatomy
from secateur.anatomy.shrink import Kept
from secateur.anatomy.units import STRUCTURED
from secateur.errors import AnatomyError, SecateurError
from secateur.plan_groups import PlanState, head_policy, plan_prune
from secateur.probe import Subject
from secateur.recipe.schema import Recipe
from secateur.search.budget import LEAST, Kind, num_removed
from secateur.search.curves import Curve, spend
from secateur.sensing import ROLES


@dataclass(frozen=True)
class Due:
    """Elements that some groups lose together.

    Attributes:
        name: of the budget, or of the role.
        groups: names of those that share it.
        count: elements that have to go.
        advice: what a group that may lose nothing could be asked for, told where the others cannot lose enough.
    """

    name: str
    groups: tuple[str, ...]
    count: int
    advice: str = ""

    def check(self, sizes: Mapping[str, int], most: float) -> None:
        """See before anything is measured whether the groups can lose enough.

        Args:
            sizes: group -> number of elements.
            most: the highest sparsity that curves will know.

        Raises:
            SecateurError: they cannot.
        """
        with advising(self.name, self.advice):
            spend([Curve(name, sizes[name], ((most, 0.0),)) for name in self.groups], self.count)

    def spend(self, curves: Sequence[Curve]) -> dict[str, float]:
        """Choose the sparsities that cost least.

        Args:
            curves: of the groups.

        Returns:
            Group -> sparsity, 0 or at least LEAST.

        Raises:
            SecateurError: the curves end before so much is gone, or no group loses enough to stand in a recipe.
        """
        with advising(self.name, self.advice):
            chosen = spend_visibly(curves, self.count)
        if not any(chosen.values()):
            raise SecateurError(f"{self.name}: so little is to go that no group loses {LEAST:g} of its weights.")
        return chosen


def due_of(
    budget: tuple[Kind, float],
    tensors: Mapping[str, Sequence[int]],
    subjects: Mapping[str, Subject],
    *,
    num_parameters: int,
    num_added: int,
) -> Due:
    """Say what all groups lose together for a budget.

    Args:
        budget: kind and value; see `search.budget`.
        tensors: group -> elements of each of its tensors.
        subjects: the same groups.
        num_parameters: of the dense model.
        num_added: elements of an untied head's own table.

    Returns:
        What is due. A head that is a view of the table has no part in it but for `counted`: it frees no stored byte.

    Raises:
        SecateurError: the budget is out of range or reach, or met as things are.
    """
    kind, value = budget
    groups = tuple(
        name
        for name, subject in subjects.items()
        if kind == "counted" or not (subject.group.role == "lm_head" and subject.group.tie == "view")
    )
    left_out = len(groups) < len(subjects) and (kind == "bytes" or 0 < value <= 1)
    told = "Under tie view lm_head is left out, for its zeros free no stored byte: --tie both or untie."
    advice = told if left_out else ""
    with advising("", advice):
        count = num_removed(
            kind,
            value,
            num_parameters=num_parameters,
            num_prunable=sum(sum(tensors[name]) for name in groups),
            num_added=num_added,
        )
    if count == 0:
        raise SecateurError(f"{kind}: the dense model is within {value:g} as it is. Ask for less.")
    return Due(kind, groups, count, advice)


def dues_of_roles(recipe: Recipe, anatomy: Anatomy, subjects: Mapping[str, Subject]) -> list[Due]:
    """Say what each role loses in a recipe, all its prune stages together.

    Args:
        recipe: prunes weights of some roles.
        anatomy: of the dense model.
        subjects: groups of single weights by name; together they hold all weights of their roles.

    Returns:
        One for each role that loses anything, in the order of the groups.

    Raises:
        AnatomyError: a group does not fit the model.
        SecateurError: the recipe prunes nothing, or what no search shares out.
    """
    state = PlanState(anatomy, head_policy(anatomy), anatomy.num_parameters, Kept(anatomy))
    for stage in recipe.stages:
        if stage.prune and stage.prune.nni_config_list is not None:
            raise SecateurError(f"{stage.name}: prunes by an nni_config_list, whose roles are not kept. Write groups.")
        for group in stage.prune.groups if stage.prune else ():
            if group.unit in STRUCTURED or group.role not in ROLES:
                what = group.unit if group.unit in STRUCTURED else group.role
                raise SecateurError(
                    f"{stage.name}: prunes {what}, and a search that keeps what each role loses shares out single "
                    f"weights of {', '.join(ROLES)}."
                )
        if stage.prune:
            _, faults = plan_prune(stage.prune.groups, state)
            if faults:
                raise AnatomyError([f"{stage.name}: {fault}" for fault in faults])
    dues = []
    for role in dict.fromkeys(subject.group.role for subject in subjects.values()):
        assert role is not None  # subjects_of gives every one
        shared = role == "lm_head" and state.head == "both"  # its zeros stand in the table itself
        weights = [anatomy.table] if shared else [weight for weight in anatomy.weights if weight.role == role]
        if count := sum(state.removed(weight) for weight in weights):
            groups = tuple(name for name, subject in subjects.items() if subject.group.role == role)
            dues.append(Due(role, groups, count))
    if not dues:
        raise SecateurError(
            "the recipe prunes nothing, so no role has anything to share out. Give one that does with --recipe."
        )
    return dues


@contextmanager
def advising(name: str, advice: str) -> Iterator[None]:
    """Say for what something cannot be reached, and what could be asked for instead."""
    try:
        yield
    except SecateurError as error:
        told = f"{name}: {error}" if name else str(error)
        raise SecateurError(f"{told} {advice}".rstrip()) from error


def spend_visibly(curves: Sequence[Curve], count: int) -> dict[str, float]:
    """Spend a budget so that every group loses enough to stand in the recipe, or nothing: the others make up for it.

    Args:
        curves: of groups that do not overlap.
        count: elements to remove in all; where the others can lose no more, what a small group would is left.

    Returns:
        Group -> sparsity, 0 or at least LEAST.

    Raises:
        SecateurError: the curves end before.
    """
    used = list(curves)
    while True:
        chosen = spend(used, count)
        visible = [curve for curve in used if chosen[curve.name] >= LEAST]
        room = sum(curve.num_elements * curve.hull[-1][0] for curve in visible)
        if len(visible) == len(used) or not visible or room < count:
            return {curve.name: chosen[curve.name] if curve in visible else 0.0 for curve in curves}
        used = visible


__all__ = ["Due", "due_of", "dues_of_roles", "spend_visibly"]
