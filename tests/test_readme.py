"""What README shows exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [content for kind, content in blocks if kind == language]


def test_the_output_names_the_examples_there_are(pytester: pytest.Pytester) -> None:
    output = next(block for block in _blocks("") if "PASSED" in block)
    shown = re.findall(r"^(examples/\S+) PASSED", output, re.MULTILINE)
    result = pytester.runpytest_subprocess(
        "--collect-only", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", ROOT / "examples"
    )
    there = [line for line in result.outlines if "::" in line]
    assert shown == there
    assert f"collected {len(there)} items" in output
    assert re.search(r"^mountns: \d+ tests isolated$", output, re.MULTILINE)


def test_the_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
