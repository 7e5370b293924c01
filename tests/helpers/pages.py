"""The pages of the documentation as blocks: files that a reader writes, commands that he types.

A comment in front of a block says what a test must know and a reader need not::

    <!-- example: as_root
    def install(): ...
    -->

Its first line has words; the rest is code that is put before the code of the block. ``as_root`` and
``layered`` say what the machine must be able to do, ``fails`` that the example is meant to fail.
``file=NAME`` saves the block to a file, with ``append`` at its end. ``plugins=NAME,...`` names the
plugins that must be installed, and ``skip=REASON`` says why the block is not run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

ROOT: Final = Path(__file__).parents[2]

_BLOCK: Final = re.compile(
    r"^(?:<!-- example:(?P<given>.*?)-->\n+)?```(?P<language>\w*)\n(?P<text>.*?)^```$"
    r"|^(?P<heading>#+ [^\n]*)$",
    re.DOTALL | re.MULTILINE,
)


@final
@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    section: str
    language: str
    text: str
    #: The words of the comment before it. A word without "=" has the value "".
    words: Mapping[str, str]
    #: The code of the comment.
    before: str

    @property
    def code(self) -> str:
        """The whole code of the example."""
        return f"{self.before}\n{self.text}" if self.before else self.text

    @property
    def name(self) -> str:
        """Page and line, as a name of a test."""
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """All pages: README and the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def read(page: Path) -> Iterator[Block]:
    """The blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    section = ""
    for match in _BLOCK.finditer(text):
        if match["heading"]:
            section = match["heading"].lstrip("# ")
            continue
        first, _, before = (match["given"] or "").rstrip().partition("\n")
        words = dict(word.partition("=")[::2] for word in shlex.split(first))
        line = text.count("\n", 0, match.start("text"))
        name = str(page.relative_to(ROOT))
        yield Block(name, line, section, match["language"], match["text"], words, before)


def commands(console: str) -> Iterator[tuple[str, str]]:
    """The commands that a console block shows, each with its output."""
    for part in re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def matches(shown: str, output: str) -> bool:
    """Whether a page shows this output. ``...`` stands for any text, or for any lines."""
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == "..." else ".*".join(map(re.escape, parts)) + r"\n"
        for line in steady(shown).splitlines()
        for parts in [line.split("...")]
    )
    return re.fullmatch(pattern, steady(output)) is not None


def steady(text: str) -> str:
    """Without what differs from run to run and from machine to machine."""
    text = re.sub(r"^platform .*$", "platform", text, flags=re.MULTILINE)
    text = re.sub(r"^plugins: .*$", "plugins", text, flags=re.MULTILINE)
    text = re.sub(r"=+ (.*) in \d+\.\d+s =+", r"\1", text)
    text = re.sub(r"\b\d+\.\d+(ms|s)\b", "TIME", text)
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).rstrip() + "\n"
