"""The documentation as a site: the pages are plain Markdown and are read on their own, too."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = PROJECT["name"]
author = PROJECT["authors"][0]["name"]
copyright = author
version = release = PROJECT["version"]

extensions = ["myst_parser"]
myst_heading_anchors = 4
nitpicky = True
html_theme = "furo"
html_title = f"{project} {version}"
html_show_sphinx = False
html_copy_source = False
# Anchors that scripts of these sites make, and what needs an account.
linkcheck_anchors = False

_LINK_OUT = re.compile(r"\]\(\.\./([^)#\s]+)")
_SECTION = re.compile(r"^## (.+)\n((?:(?!## ).*\n?)*)", re.MULTILINE)
_ENTRY = re.compile(r"^- \[[^]]+\]\(([\w-]+)\.md\)", re.MULTILINE)


def read(app: Sphinx, page: str, source: list[str]) -> None:
    """What a page says on a code host, said for the site."""
    if page == "changelog":
        source[0] = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    # Files of the repository that are no pages.
    repository = PROJECT["urls"]["Source"]
    source[0] = _LINK_OUT.sub(rf"]({repository}/blob/main/\1", source[0])
    if page == "index":
        source[0] += "".join(toctree(*match.groups()) for match in _SECTION.finditer(source[0]))


def toctree(heading: str, text: str) -> str:
    """The list under a heading of the first page, for the side bar."""
    pages = "\n".join(_ENTRY.findall(text))
    return f"\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{pages}\n```\n" if pages else ""


def setup(app: Sphinx) -> None:
    app.connect("source-read", read)
