"""Every error that Secateur raises on purpose, and the exit code that the command line gives it."""

from __future__ import annotations

from collections.abc import Sequence


class SecateurError(Exception):
    """Something that the user can mend: the message says what is wrong, where, and what to do."""

    exit_code = 1


class FaultsError(SecateurError):
    """Several faults of one kind, told at once.

    Args:
        faults: one full sentence each, at least one.
        heading: a line above them, or none.
    """

    def __init__(self, faults: Sequence[str], heading: str = "") -> None:
        self.faults = tuple(faults)
        self.heading = heading
        super().__init__("\n".join(([heading] if heading else []) + list(self.faults)))


class RecipeError(FaultsError):
    """The recipe's text is wrong, or it cannot be applied to its model."""

    exit_code = 2


class AnatomyError(FaultsError):
    """A model's parameters are not what its family says they are."""


class MaskError(SecateurError):
    """Scores, masks and weights do not fit each other, or a budget cannot be met."""


class DataError(SecateurError):
    """A data set cannot be read, or lacks what the task asks of it."""


class CheckpointError(SecateurError):
    """A folder or file on disk is missing, damaged, foreign, or belongs to another model."""


class RunInterrupted(SecateurError):
    """A run was stopped on request; what it has done is on disk and can be resumed."""

    exit_code = 130


class FailedElsewhere(SecateurError):
    """The first of several processes failed, and says why; the others only stop."""
