"""Errors tell all faults and carry exit codes; the tables answer a wrong name with the right ones."""

from __future__ import annotations

import pytest

from secateur import errors
from secateur.registry import choose, suggest


def test_every_error_is_ours_and_has_an_exit_code() -> None:
    classes = [item for item in vars(errors).values() if isinstance(item, type) and item.__module__ == errors.__name__]
    assert len(classes) == 9
    for item in classes:
        assert issubclass(item, errors.SecateurError) and item.__doc__
        assert item.exit_code == {"RecipeError": 2, "RunInterrupted": 130}.get(item.__name__, 1)


def test_faults_are_told_one_a_line_under_their_heading() -> None:
    error = errors.RecipeError(["one.", "two."], "Wrong:")
    assert str(error) == "Wrong:\none.\ntwo." and error.faults == ("one.", "two.")
    assert str(errors.AnatomyError(["one."])) == "one."


def test_names_are_looked_up_or_explained() -> None:
    table = {"magnitude": 1, "random": 2}
    assert choose(table, "random", "score") == 2
    with pytest.raises(
        errors.SecateurError, match=r'score: no \'randm\'\. Did you mean "random"\? There are: magnitude, random\.'
    ):
        choose(table, "randm", "score")
    with pytest.raises(errors.SecateurError, match=r"score: no 'xyz'\. There are"):
        choose(table, "xyz", "score")
    assert suggest("xyz", table) == ""
