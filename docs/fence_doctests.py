"""Show the examples of docstrings as code in the documentation: they stand as plain `>>>` lines in the sources."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"(?:^>>> .*\n?(?:^(?!\s*$).*\n?)*)", re.MULTILINE)


def fence(text: str) -> str:
    """Put every block that begins with `>>>` and ends at an empty line between fences.

    Args:
        text: a docstring, not indented.
    """
    return _EXAMPLE.sub(lambda found: f"```pycon\n{found.group(0).rstrip()}\n```\n", text)


class FenceDoctests(griffe.Extension):
    """Tells mkdocstrings to show examples as code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change a docstring that has been read."""
        if obj.docstring:
            obj.docstring.value = fence(obj.docstring.value)
