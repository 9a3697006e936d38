"""Write the recipe's reference from the schema: keys, what they take, their defaults, and the schema's own comments."""

from __future__ import annotations

import ast
import inspect
import io
import json
import tokenize
from typing import Any

from secateur.recipe import schema
from secateur.recipe.faults import number

# In the order in which a reader of a recipe meets them.
PARTS = (
    schema.Recipe,
    schema.Task,
    schema.Data,
    schema.Evaluation,
    schema.Stage,
    schema.Train,
    schema.Denoising,
    schema.Distillation,
    schema.LayerLists,
    schema.NniDistiller,
    schema.PseudoLabels,
    schema.Prune,
    schema.Group,
    schema.NniPruner,
    schema.Schedule,
    schema.Calibration,
    schema.Movement,
    schema.Cut,
    schema.Export,
    schema.Pack,
    schema.Evaluate,
)


def markdown() -> str:
    """Write one table for every part of a recipe.

    Returns:
        Markdown that begins with a heading of the third level and ends with a line's end.
    """
    notes = comments()
    definitions = schema.Recipe.model_json_schema()["$defs"] | {"Recipe": schema.Recipe.model_json_schema()}
    sections = [_section(part, definitions[part.__name__], notes[part.__name__]) for part in PARTS]
    return "\n".join(sections)


def comments() -> dict[str, dict[str, str]]:
    """Read the comments behind the schema's fields.

    Returns:
        class name -> key -> comment; a field without one is left out.

    >>> comments()["Group"]["block"]
    'rows and columns of a rectangle that is removed at once'
    """
    source = inspect.getsource(schema)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return {node.name: _comments_of(node, lines) for node in classes}


def _comments_of(node: ast.ClassDef, lines: dict[int, str]) -> dict[str, str]:
    found = {
        item.target.id.rstrip("_"): lines.get(item.end_lineno or item.lineno)
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    return {name: text for name, text in found.items() if text}


def _section(part: type[schema.Part], definition: dict[str, Any], notes: dict[str, str]) -> str:
    description = inspect.getdoc(part) or ""
    required = definition.get("required", [])
    rows = [
        f"| `{key}` | {_takes(value)} | {_default(value, key in required)} | {notes.get(key, '')} |"
        for key, value in definition["properties"].items()
    ]
    table = "\n".join(["| key | takes | default | |", "| --- | --- | --- | --- |", *rows])
    return f"### {part.__name__}\n\n{description}\n\n{table}\n"


def _default(value: dict[str, Any], required: bool) -> str:
    if required:
        return "must be given"
    if "default" not in value:
        return ""
    default = value["default"]
    return f"`{json.dumps(default)}`" if not isinstance(default, dict) else f"`{_flow(default)}`"


def _flow(value: dict[str, Any]) -> str:
    """Write a mapping as YAML in one line; its texts need no quotes."""
    items = (f"{key}: {item if isinstance(item, str) else json.dumps(item)}" for key, item in value.items())
    return f"{{{', '.join(items)}}}"


def _takes(value: dict[str, Any]) -> str:
    """Say in words what a key takes."""
    if choices := value.get("anyOf", value.get("oneOf")):
        return " or ".join(map(_takes, choices))
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in value or "const" in value:
        return ", ".join(f"`{word}`" for word in value.get("enum", [value.get("const")]))
    if value.get("type") == "array":
        return _list(value)
    words = {
        "string": "text",
        "integer": "whole number",
        "number": "number",
        "boolean": "`true`, `false`",
        "null": "`null`",
        "object": "mapping",
    }
    return (
        words[value["type"]]
        + _bounds(value)
        + (f" like `{value['pattern']}`".replace("|", "\\|") if "pattern" in value else "")
    )


def _list(value: dict[str, Any]) -> str:
    if "prefixItems" in value:
        return f"list of {len(value['prefixItems'])}: {_takes(value['prefixItems'][0])}"
    return f"list of {_takes(value['items'])}"


def _bounds(value: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {number(value[key])}" for key, sign in signs.items() if key in value]
    return f" {', '.join(found)}" if found else ""
