"""Read YAML 1.2 into plain values that remember the line each key stands on; tell every fault, not the first."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Path = tuple[str | int, ...]

MAX_NODES = 50_000  # an alias inside an alias inside an alias grows without end; no recipe comes near this
_OTHER_YAML = re.compile(r"^%YAML[ \t]+(?!1\.2\b)", re.MULTILINE)
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Args:
        origin: `file:line`, or the `--set` argument that wrote the value.
        path: keys and indexes from the top; empty for the whole file.
        message: what is wrong and what to do, a full sentence.
    """

    origin: str
    path: Path
    message: str


@dataclass
class Tree:
    """A YAML text as plain values, and where each of them was written.

    Args:
        values: dicts, lists, str, int, float, bool and None; None for an empty text.
        origins: path -> `file:line`; the path () is the text's first line of content.
        faults: what could be read over: duplicate keys, keys that are not text, unknown tags.
    """

    values: Any
    origins: dict[Path, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def origin(self, path: Path) -> str:
        """Find where a value was written, or its nearest parent when it was not."""
        while path not in self.origins and path:
            path = path[:-1]
        return self.origins[path]


def shown(value: Any) -> str:
    """Write a value as a message shows it.

    >>> shown("no"), shown(True), shown(None), shown([1]), shown(2e-5)
    ('"no"', 'true', 'null (nothing)', 'a list', '2e-05')
    """
    if value is None:
        return "null (nothing)"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (str, bool, int, float)) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def read_tree(text: str, name: str) -> Tree:
    r"""Read a YAML 1.2 text.

    Args:
        text: the whole text.
        name: what its lines are called by in origins: a file's name.

    Returns:
        The values with their origins and the faults that did not stop the reading. A text that is no YAML at all is a
        tree without values and with one fault.

    >>> tree = read_tree("a: 2:4\nb: {c: 2e-5, d: no}", "recipe.yaml")
    >>> tree.values
    {'a': '2:4', 'b': {'c': 2e-05, 'd': 'no'}}
    >>> tree.origin(("b", "d"))
    'recipe.yaml:2'
    """
    try:
        return _Reader(name).read(_compose(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        told = " ".join(str(part) for part in (error.context, error.problem) if part)
        return _unreadable(f"{name}:{line}", f"not YAML: {told}.{_syntax_hint(text, line)}")
    except RecursionError:
        return _unreadable(f"{name}:1", "nested too deeply. A recipe is a few levels deep.")
    except YAMLError as error:  # a character that YAML does not allow; it carries a position instead of a line
        position = getattr(error, "position", 0)
        line = text.count("\n", 0, position) + 1 if isinstance(position, int) else 1
        told = " ".join(str(getattr(error, "reason", error)).split())
        return _unreadable(f"{name}:{line}", f"not YAML: {told}.")


def _compose(text: str) -> Node | None:
    """Parse into nodes, each of which knows its line."""
    other = _OTHER_YAML.search(text)
    if other:  # YAML 1.1 would read `no` as false and 2:4 as 124
        line = text.count("\n", 0, other.start()) + 1
        raise _OldYAMLError(line)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an anchor name used twice is legal
        return YAML(typ="safe", pure=True).compose(text.removeprefix("\ufeff"))


class _OldYAMLError(MarkedYAMLError):
    """The text asks for another version of YAML."""

    def __init__(self, line: int) -> None:
        mark = type("Mark", (), {"line": line - 1})()
        super().__init__(problem="recipes are YAML 1.2; remove the %YAML line", problem_mark=mark)


def _syntax_hint(text: str, line: int) -> str:
    """Say what the likeliest cause of a syntax error is, where the line shows it."""
    lines = text.splitlines()
    here = lines[line - 1] if line <= len(lines) else ""
    if here[: len(here) - len(here.lstrip())].count("\t"):
        return " Indent with spaces, not tabs."
    return ""


def _unreadable(origin: str, message: str) -> Tree:
    return Tree(None, {(): origin}, [Fault(origin, (), message)])


class _Reader:
    """One walk over the nodes of one text."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tree = Tree(None)
        self.num_nodes = 0

    def read(self, node: Node | None) -> Tree:
        self.tree.origins[()] = self._line(node) if node is not None else f"{self.name}:1"
        if node is not None:
            self.tree.values = self._value(node, (), frozenset())
        return self.tree

    def _line(self, node: Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"

    def _fault(self, node: Node, path: Path, message: str) -> None:
        self.tree.faults.append(Fault(self._line(node), path, message))

    def _value(self, node: Node, path: Path, inside: frozenset[int]) -> Any:
        self.num_nodes += 1
        if id(node) in inside or self.num_nodes > MAX_NODES:
            if self.num_nodes <= MAX_NODES + 1:  # once, not for every node behind the limit
                self._fault(node, path, "an alias (*name) that contains itself, or far too many values.")
            return None
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if not str(node.tag).startswith(_TAG):
            self._fault(node, path, f"unknown tag {node.tag}. A recipe has plain values.")
        if isinstance(node, MappingNode):
            return self._mapping(node, path, inside | {id(node)})
        assert isinstance(node, SequenceNode)
        return [self._item(child, (*path, index), inside | {id(node)}) for index, child in enumerate(node.value)]

    def _item(self, node: Node, path: Path, inside: frozenset[int]) -> Any:
        self.tree.origins[path] = self._line(node)
        return self._value(node, path, inside)

    def _mapping(self, node: MappingNode, path: Path, inside: frozenset[int]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[Hashable, int] = {}
        for key_node, value_node in node.value:
            if _merges(key_node, value_node):  # before the mapping's own keys, which win over merged ones
                values |= self._mapping(value_node, path, inside | {id(value_node)})
        for key_node, value_node in node.value:
            if _merges(key_node, value_node):
                continue
            key = self._scalar(key_node, path) if isinstance(key_node, ScalarNode) else None
            if not isinstance(key, str):
                self._fault(key_node, path, f"a key must be text, not {shown(key)}. Put it in quotes.")
            elif key in lines:
                message = f"is given twice, first on line {lines[key]}. Remove one of the two."
                self._fault(key_node, (*path, key), message)
            else:
                lines[key] = key_node.start_mark.line + 1
                self.tree.origins[*path, key] = self._line(key_node)
                values[key] = self._value(value_node, (*path, key), inside)
        return values

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        tag, text = str(node.tag).removeprefix(_TAG), node.value
        if tag in ("str", "timestamp", "merge"):
            return text
        try:
            return _SCALARS[tag](text)
        except (KeyError, ValueError, OverflowError):
            self._fault(node, path, f"{shown(text)} cannot be read as {node.tag}. A recipe has plain values.")
            return None


def _merges(key: Node, value: Node) -> bool:
    """Whether a key is `<<: *name`, which brings in the keys of another mapping (YAML 1.1's one idea worth keeping)."""
    return isinstance(key, ScalarNode) and key.value == "<<" and not key.style and isinstance(value, MappingNode)


def _integer(text: str) -> int:
    """Read a whole number of YAML 1.2, also 0x, 0o and 0b.

    >>> _integer("0o17"), _integer("012"), _integer("-1_000")
    (15, 12, -1000)
    """
    digits = text.replace("_", "")
    bare = digits.lstrip("+-")
    return int(digits, {"0x": 16, "0o": 8, "0b": 2}.get(bare[:2].lower(), 10))


def _real(text: str) -> float:
    """Read a number of YAML 1.2 with a point or an exponent, also .inf and .nan."""
    return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS = {
    "int": _integer,
    "float": _real,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "null": lambda text: None,
}
