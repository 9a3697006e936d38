"""Whatever is done to a recipe's text: reading it ends in a recipe or a plain error, and no unknown key passes."""

from __future__ import annotations

import copy
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from secateur.errors import RecipeError
from secateur.recipe.load import dump_recipe, parse_recipe
from toy import ROOT

FILES = sorted((ROOT / "recipes").rglob("*.yaml"))
MANY = settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
WORDS = st.text(string.ascii_lowercase + "_", min_size=1, max_size=12)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**9), 10**9),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(WORDS, st.integers(), max_size=2),
)


def plain(file: Path) -> Any:
    return YAML(typ="safe").load(file.read_text(encoding="utf-8"))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def text_of(value: Any) -> str:
    import io

    stream = io.StringIO()
    YAML(typ="safe").dump(value, stream)
    return stream.getvalue()


@pytest.fixture(scope="module")
def recipes() -> list[Any]:
    assert len(FILES) >= 8
    return [plain(file) for file in FILES]


@MANY
@given(data=st.data())
def test_changed_values_end_in_a_recipe_or_a_plain_error(recipes: list[Any], data: st.DataObject) -> None:
    recipe = copy.deepcopy(data.draw(st.sampled_from(recipes)))
    for _ in range(data.draw(st.integers(1, 4))):
        *parents, last = data.draw(st.sampled_from([path for path in places(recipe) if path]))
        parent = at(recipe, tuple(parents))
        change = data.draw(st.sampled_from(["value", "remove", "swap"]))
        if change == "value":
            parent[last] = data.draw(VALUES)
        elif change == "remove":
            del parent[last]
        else:
            other = data.draw(st.sampled_from(list(places(recipe))))
            parent[last] = copy.deepcopy(at(recipe, other))
        if not any(places(recipe)):
            break
    try:
        read = parse_recipe(text_of(recipe))
    except RecipeError as error:
        assert all(fault.startswith("recipe:") for fault in error.faults), error.faults
    else:
        assert parse_recipe(dump_recipe(read)) == read
        assert parse_recipe(dump_recipe(read, defaults=False)) == read


@MANY
@given(data=st.data())
def test_no_unknown_key_is_accepted(recipes: list[Any], data: st.DataObject) -> None:
    recipe = copy.deepcopy(data.draw(st.sampled_from(recipes)))
    path = data.draw(st.sampled_from([path for path in places(recipe) if isinstance(at(recipe, path), dict)]))
    part, key = at(recipe, path), data.draw(WORDS.map(lambda word: f"{word}_x"))
    part[key] = data.draw(VALUES)
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text_of(recipe))
    assert any(key in fault for fault in caught.value.faults), (key, caught.value.faults)


@MANY
@given(data=st.data())
def test_torn_text_ends_in_a_recipe_or_a_plain_error(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(FILES)).read_text(encoding="utf-8")
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, min(len(text), start + 40)))
    filling = data.draw(st.text(st.characters(codec="utf-8"), max_size=8))
    try:
        parse_recipe(text[:start] + filling + text[stop:])
    except RecipeError as error:
        assert error.faults and "Traceback" not in str(error)
