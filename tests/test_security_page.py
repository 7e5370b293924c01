"""The security page names tests for each promise, and these tests exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/security.md").read_text()
NAMED = re.findall(r"`((?:tests|examples)/[\w/]+\.py)::(\w+)`", PAGE)


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_test_that_is_named_is_there(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text())
    assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def test_every_promise_names_one() -> None:
    promised = PAGE.partition("## Promised")[2].partition("## Not promised")[0]
    rows = [row for row in promised.splitlines() if row.startswith("| ")]
    promises = [row for row in rows if not row.startswith("| promise ")]
    assert len(promises) > 20
    assert [row for row in promises if "::" not in row.rpartition(" | ")[2]] == []


def test_the_page_is_named_at_the_top() -> None:
    assert "docs/security.md" in (ROOT / "SECURITY.md").read_text()
