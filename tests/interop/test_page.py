"""The examples of docs/from-torch-prune.md run, in their order, as the page shows them."""

from __future__ import annotations

import doctest
import re

from toy import ROOT


def test_the_pages_examples_run() -> None:
    text = (ROOT / "docs" / "from-torch-prune.md").read_text(encoding="utf-8")
    fences = re.findall(r"^```pycon\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    names: dict[str, object] = {}
    for index, fence in enumerate(fences):
        test = parser.get_doctest(fence, {}, f"fence {index}", "from-torch-prune.md", 0)
        test.globs = names  # one session, as a reader would type it
        assert test.examples
        runner.run(test, clear_globs=False)
    assert len(fences) >= 5 and runner.summarize(verbose=False).failed == 0
