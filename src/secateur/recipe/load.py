"""Read a recipe, or say everything that is wrong with it: `file:line key: what is wrong. Did you mean ...?`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from secateur.errors import RecipeError
from secateur.recipe import names, rounds, rules
from secateur.recipe.faults import dotted, schema_findings
from secateur.recipe.overrides import apply_override
from secateur.recipe.schema import Recipe
from secateur.recipe.yaml_tree import Fault, Tree, read_tree


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a file.

    Args:
        path: a YAML file. Relative paths inside it stay as they are written.
        overrides: `a.b=c`, the arguments of `--set`; see `parse_recipe`.

    Returns:
        The recipe with every default filled in.

    Raises:
        RecipeError: no such file, not a text, or faults in it: all of them, one a line.
    """
    path = Path(path)
    return parse_recipe(_read(path), name=str(path), overrides=overrides)


def parse_recipe(text: str, *, name: str = "recipe", overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from YAML 1.2 text.

    Args:
        text: the whole text.
        name: what messages call it: its file's name.
        overrides: `a.b=c` each, applied in their order. The path goes through keys, list indexes from 0, and stages'
            names (`stages.dense.train.epochs=1`); the value is YAML.

    Returns:
        The recipe with every default filled in, and rounds written out as stages.

    Raises:
        RecipeError: all faults, one a line, in the text's order; what an override wrote is called `--set a.b=c`.

    >>> try:
    ...     parse_recipe("version: 2", name="my.yaml")
    ... except RecipeError as error:
    ...     print(error.faults[0])
    my.yaml:1 version: must be 1, not 2: this Secateur understands version 1.
    """
    tree = read_tree(text, name)
    if not isinstance(tree.values, dict):
        raise RecipeError([_line(fault, tree) for fault in tree.faults or [_no_mapping(tree)]])
    for argument in overrides:
        apply_override(tree, argument)
    recipe, found = schema_findings(tree.values)
    found += rules.findings(tree.values)
    known = {fault.path for fault in tree.faults}  # a value that could not be read is not also of the wrong type
    faults = tree.faults + [Fault(tree.origin(path), path, text) for path, text in found if path not in known]
    if recipe is None or faults:
        raise RecipeError([_line(fault, tree) for fault in sorted(faults, key=_order)])
    return rounds.write_out(recipe)


def dump_recipe(recipe: Recipe, *, defaults: bool = True) -> str:
    """Write a recipe with every default, so that the text is the whole truth; it reads back as an equal recipe.

    Args:
        recipe: a recipe.
        defaults: False leaves out what is as the schema has it, for a recipe that people go on to edit.

    Returns:
        YAML 1.2 in block style, keys in the schema's order.
    """
    values = recipe.model_dump(mode="json", exclude_defaults=not defaults)
    for stage in values["stages"]:  # what a stage is not is no default
        for kind in [kind for kind in names.words(names.StageKind) if stage.get(kind, ...) is None]:
            del stage[kind]
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.width = 1_000_000  # never fold: a folded text may lose its spaces
    yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue]
    stream = io.StringIO()
    yaml.dump(values, stream)
    return stream.getvalue()


class _Representer(SafeRepresenter):
    """Writes a text of other than plain printable characters in double quotes, where YAML escapes them."""

    def represent_text(self, text: str) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Representer.add_representer(str, _Representer.represent_text)


def check_recipe(recipe: Recipe) -> Recipe:
    """Check a recipe that was made in Python by the rules that a file is checked by.

    Args:
        recipe: any recipe.

    Returns:
        The same recipe; rounds are written out as stages.

    Raises:
        RecipeError: keys that do not go together; all faults at once.
    """
    found = rules.findings(recipe.model_dump(mode="json"))
    faults = [f"recipe {dotted(path, recipe.model_dump(mode='json'))}: {text}" for path, text in found]
    if faults:
        raise RecipeError(faults)
    return rounds.write_out(recipe)


def _read(path: Path) -> str:
    """Read a text file, or say plainly why not."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise RecipeError([f"{path}: no such file."]) from error
    except IsADirectoryError as error:
        raise RecipeError([f"{path}: is a folder. Give the recipe's file, such as {path / 'recipe.yaml'}."]) from error
    except UnicodeDecodeError as error:
        raise RecipeError([f"{path}: is not UTF-8 text (byte {error.start}). Save it as UTF-8."]) from error
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
        raise RecipeError([f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}."]) from error


def _no_mapping(tree: Tree) -> Fault:
    what = "is empty" if tree.values is None else "is not a mapping of keys to values"
    return Fault(tree.origin(()), (), f"{what}. Keys here: {', '.join(Recipe.model_fields)}.")


def _line(fault: Fault, tree: Tree) -> str:
    path = dotted(fault.path, tree.values)
    return f"{fault.origin} {path}: {fault.message}".rstrip() if path else f"{fault.origin}: {fault.message}".rstrip()


def _order(fault: Fault) -> tuple[int, int]:
    """Order by line, what `--set` wrote last."""
    line = fault.origin.rpartition(":")[2]
    return (1, 0) if fault.origin.startswith("--set ") or not line.isdigit() else (0, int(line))
