"""The pictures of the documentation, made again: ``python -m docs.draw [NAME ...]``.

Drawings are SVG from the source below, the terminal is SVG from what pytest writes on one, and the
page of the audit is a PNG that Chromium makes.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Final

import pytest

from benchmarks.pictures import FAINT, INK, OURS, PEER, PLAIN, Canvas
from tests.helpers.browser import browse, find_browser
from tests.helpers.pages import ROOT, read
from tests.helpers.terminals import terminal
from tests.test_architecture import package_of, read_imports

PICTURES: Final = ROOT / "docs" / "pictures"
HOST, SANDBOX, SHARED = "#eef1f4", "#e7f1ff", "#fdf1e7"


class Drawing(Canvas):
    """Boxes and arrows."""

    def box(
        self,
        x: float,
        y: float,
        width: float,
        lines: str,
        *,
        fill: str = "#ffffff",
        stroke: str = PLAIN,
        height: float = 0,
        dashed: bool = False,
    ) -> None:
        texts = lines.split("\n")
        height = height or 14 + 17 * len(texts)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5"'
            f' fill="{fill}" stroke="{stroke}"{dash}/>'
        )
        top = y + (height - 17 * len(texts)) / 2 + 13
        for number, text in enumerate(texts):
            self.text(
                x + width / 2,
                top + 17 * number,
                text,
                anchor="middle",
                weight=400 if number else 600,
                colour=FAINT if number else INK,
            )

    def field(self, x: float, y: float, width: float, height: float, fill: str, text: str) -> None:
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8"'
            f' fill="{fill}"/>'
        )
        self.text(x + 12, y + 20, text, colour=FAINT)

    def arrow(
        self, x: float, y: float, to_x: float, to_y: float, text: str = "", *, colour: str = INK
    ) -> None:
        self.line([(x, y), (to_x, to_y)], colour, 1.5)
        if x == to_x:
            ends = [(to_x - 4, to_y - 7), (to_x + 4, to_y - 7)]
        else:
            back = -8 if to_x > x else 8
            ends = [(to_x + back, to_y - 4), (to_x + back, to_y + 4)]
        points = " ".join(f"{a:g},{b:g}" for a, b in [(to_x, to_y), *ends])
        self._parts.append(f'<polygon points="{points}" fill="{colour}"/>')
        if text:
            self.text((x + to_x) / 2, (y + to_y) / 2 - 6, text, anchor="middle", colour=colour)


def travel(_: Path) -> str:
    """How a test travels, forked."""
    draw = Drawing("How a forked test runs")
    draw.field(16, 44, 330, 344, HOST, "pytest process, on the host")
    draw.field(414, 44, 330, 344, SANDBOX, "test process, in the sandbox")
    left, right, width = 46, 444, 270
    draw.box(left, 78, width, "wider fixtures\nsession, package, module, class")
    draw.arrow(181, 126, 181, 146)
    draw.box(left, 146, width, "forked runner\nplans the sandbox, mounts it", stroke=OURS)
    draw.arrow(316, 170, right, 170, "fork", colour=OURS)
    draw.box(right, 146, width, "enter\nsetns, working directory", stroke=OURS)
    draw.arrow(579, 194, 579, 214)
    draw.box(right, 214, width, "setup\nfunction-scoped fixtures")
    draw.arrow(579, 262, 579, 278)
    draw.box(right, 278, width, "call")
    draw.arrow(579, 309, 579, 325)
    draw.box(right, 325, width, "teardown\nfunction-scoped fixtures")
    draw.box(
        left, 214, width, "channel\nreports, warnings, coverage,\nas they are made", stroke=PEER
    )
    for y in (238, 293, 349):
        draw.line([(right, y), (380, y)], PEER, 1.5)
    draw.line([(380, 349), (380, 238)], PEER, 1.5)
    draw.arrow(380, 238, 316, 238, colour=PEER)
    draw.arrow(181, 279, 181, 301)
    draw.box(left, 301, width, "observers, then reporters\nterminal, JUnit, other plugins")
    draw.text(
        16,
        412,
        "A test process that dies ends without its last message: a failed test.",
        colour=FAINT,
    )
    return draw.svg(426)


#: The way of one test through the packages: where it is, and what is done there.
_WAY: Final = (
    (HOST, "plugin.py", "pytest_runtest_protocol: does this item ask for a sandbox?"),
    (HOST, "session/selection.py", "its spec: mark, profile, options, hooks of other plugins"),
    (HOST, "runners/protocol.py", "forked or inline?"),
    (HOST, "runners/prepare.py", "wider fixtures are set up; observers hear of the test"),
    (HOST, "engine/planning/planner.py", "spec + mount table + features of the kernel = plan"),
    (HOST, "engine/sandbox/create.py", "a mount namespace is made for the plan"),
    (HOST, "engine/mount/executor.py", "each step of the plan is mounted, by one of the two APIs"),
    (HOST, "runners/forked.py", "fork, then listen to the channel (inline.py: no fork)"),
    (SANDBOX, "engine/sandbox/forked.py", "enter the namespaces, become the user of the plan"),
    (SANDBOX, "runners/child.py", "pytest goes on here: setup, call and teardown"),
    (SANDBOX, "forking/channel.py", "each report is sent when it is made: forking/messages.py"),
    (HOST, "session/observers.py", "reports/ and repro/ read what was written: engine/changes"),
    (HOST, "runners/finish.py", "late reports; those of a process that died; wider teardown"),
)


def way(_: Path) -> str:
    """The way of one test through the packages."""
    draw = Drawing("The way of one forked test through the packages")
    y = 50
    for number, (fill, module, text) in enumerate(_WAY):
        draw.box(16, y, 728, f"{number + 1}. {module}\n{text}", fill=fill)
        if number:
            draw.arrow(380, y - 10, 380, y)
        y += 58
    draw.text(
        16,
        y + 8,
        "grey: pytest process, on the host; blue: test process, in the sandbox",
        colour=FAINT,
    )
    return draw.svg(y + 20)


#: Where the packages stand in the picture, from those that know most to those that know least.
_ROWS: Final = (
    ("plugin", "cli"),
    ("fixtures", "hookspecs"),
    ("activation",),
    ("repro", "runners"),
    ("reports", "forking"),
    ("session",),
    ("config", "plugin_state"),
    ("engine.planning", "pytest_internals"),
    ("engine.probe",),
    ("engine.sandbox", "engine.faults"),
    ("engine.mount", "engine.layers"),
    ("engine.changes",),
    ("engine.plan",),
    ("engine.linux",),
)


def package_graph() -> dict[str, set[str]]:
    """Which package imports which, read from the source, without what follows from other arrows."""
    graph: dict[str, set[str]] = {}
    for module, imported in read_imports(ROOT / "pytest_mountns").items():
        own = package_of(module)
        inner = {package_of(one) for one in imported if one.partition(".")[0] == "pytest_mountns"}
        graph.setdefault(own, set()).update(inner - {own, "", "engine"})

    def reached(start: str) -> set[str]:
        return set().union(*({one} | reached(one) for one in graph[start]))

    return {
        one: {
            to for to in others if not any(to in reached(other) for other in others if other != to)
        }
        for one, others in graph.items()
    }


def packages(_: Path) -> str:
    """The packages and the arrows between them."""
    draw = Drawing("What imports what")
    graph = package_graph()
    places = {}
    y = 50
    for row in _ROWS:
        for column, name in enumerate(row):
            places[name] = (60 + column * 340 if len(row) > 1 else 230, y)
        y += 54
    for name, others in graph.items():
        for other in others if name in places else ():
            (x, top), (to_x, to_top) = places[name], places[other]
            draw.line([(x + 150, top + 31), (to_x + 150, to_top)], FAINT, 1.2)
    for name, (x, top) in places.items():
        fill = SANDBOX if name.startswith("engine") else HOST
        draw.box(x, top, 300, name.replace(".", "/"), fill=fill)
    draw.text(
        16,
        y + 10,
        "Each line is an import from the upper package of the lower one. Lines that follow from"
        " others are left out.",
        colour=FAINT,
    )
    return draw.svg(y + 24)


def layers(_: Path) -> str:
    """Scopes as layers."""
    draw = Drawing('Two tests of a module with scope="module"')
    draw.text(30, 60, "test_removes sees", colour=FAINT)
    draw.text(405, 60, "test_has sees", colour=FAINT)
    for x, words in (
        (30, "upper of test_removes\n/usr/local/bin/program: deleted"),
        (405, "upper of test_has\nempty"),
    ):
        draw.box(x, 70, 325, words, fill=SANDBOX, stroke=OURS)
        draw.text(x + 162, 134, "on top of", anchor="middle", colour=FAINT)
    draw.box(
        30,
        144,
        700,
        "upper of the module\n/usr/local/bin/program: added by the fixture installed",
        fill=SHARED,
        stroke=PEER,
    )
    draw.text(380, 208, "on top of", anchor="middle", colour=FAINT)
    draw.box(30, 218, 700, "the machine's own /\nonly read", fill=HOST)
    draw.text(
        30,
        292,
        "The uppers of tests go with the test, that of the module with the module.",
        colour=FAINT,
    )
    return draw.svg(308)


# -- a terminal ----------------------------------------------------------------------------------

_SGR: Final = re.compile(r"\x1b\[([\d;]*)m")
_COLOURS: Final = {
    31: "#ff7b72",
    32: "#7ee787",
    33: "#e3b341",
    34: "#79c0ff",
    35: "#d2a8ff",
    36: "#76e3ea",
    37: "#f0f6fc",
    90: "#8b949e",
}
_CELL: Final = (7.83, 17.0)


def failing(work: Path) -> str:
    """The failing test of the tutorial, as pytest writes it on a terminal."""
    home = work / "you"
    project = home / "greeter"
    project.mkdir(parents=True)
    for block in read(ROOT / "docs" / "tutorial.md"):
        if name := block.words.get("file"):
            with open(project / name, "a") as file:
                file.write(f"{block.text}\n\n")
    source = project / "greeter.py"
    source.write_text(source.read_text().replace("parents=True", "parents=True, exist_ok=True"))
    environment = {
        "HOME": str(home),
        "TMPDIR": str(work),
        "PYTEST_ADDOPTS": "-p pytest_mountns.plugin --color=yes --code-highlight=yes",
        "COLUMNS": "92",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with terminal(project, "test_greeter.py") as running:
            running.end()
    return screen("$ pytest\n" + running.text.replace(str(home), "/home/you"))


def screen(text: str) -> str:
    """Coloured text as a terminal shows it."""
    # Of pytest's header, what says nothing of the test.
    dropped = re.compile("(platform|rootdir|plugins|.*collecting )")
    lines = [line for line in text.rstrip().split("\n") if not dropped.match(line)]
    width = max(len(_SGR.sub("", line)) for line in lines)
    cell, row = _CELL
    size = (width * cell + 32, len(lines) * row + 28)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]:.0f} {size[1]:.0f}"'
        f' width="{size[0]:.0f}" height="{size[1]:.0f}" role="img" font-size="13"'
        " font-family=\"ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace\">",
        "<title>A failing test and what it has changed</title>",
        '<rect width="100%" height="100%" rx="8" fill="#0d1117"/>',
    ]
    state: set[int] = set()
    for number, line in enumerate(lines):
        spans = "".join(_spans(line, state))
        parts.append(
            f'<text x="16" y="{number * row + 26:.1f}" fill="#c9d1d9"'
            f' xml:space="preserve">{spans}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _spans(line: str, state: set[int]) -> Iterator[str]:
    pieces = _SGR.split(line)
    for place, piece in enumerate(pieces):
        if place % 2:
            for code in map(int, (piece or "0").split(";")):
                if code == 0:
                    state.clear()
                elif code in (39, 22):
                    state -= {1} if code == 22 else set(_COLOURS)
                else:
                    state -= set(_COLOURS) if code in _COLOURS else set()
                    state.add(code)
        elif piece:
            colour = next((_COLOURS[code] for code in state if code in _COLOURS), "")
            style = f' fill="{colour}"' if colour else ""
            style += ' font-weight="700"' if 1 in state else ""
            # Or a font that is a little wider moves all that follows.
            length = f' textLength="{len(piece) * _CELL[0]:.1f}" lengthAdjust="spacingAndGlyphs"'
            yield f"<tspan{style}{length}>{escape(piece)}</tspan>"


def audit(work: Path) -> bytes:
    """The page of the audit of this project's examples."""
    page, picture = work / "audit.html", work / "audit.png"
    command = ("pytest", "-q", "-p", "no:cacheprovider", f"--mountns-audit-html={page}", "examples")
    subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )
    browser = find_browser()
    if browser is None:
        raise SystemExit("no Chromium here (Debian: chromium)")
    with browse(browser) as shown:
        shown.open(page.as_uri())
        cell = '[data-test$="test_edited_settings_are_kept"][data-place="/usr/local/bin"]'
        shown.evaluate(f"document.querySelector('button{cell}').click(); scrollTo(0, 0)")
        shown.screenshot(picture)
    return picture.read_bytes()


DRAWN: Final[dict[str, Callable[[Path], str | bytes]]] = {
    "how-a-test-travels.svg": travel,
    "way-of-a-test.svg": way,
    "packages.svg": packages,
    "layers-by-scope.svg": layers,
    "failing-test.svg": failing,
    "audit.png": audit,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.draw", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *DRAWN], metavar="NAME")
    for name in parser.parse_args().names or DRAWN:
        with tempfile.TemporaryDirectory() as work:
            made = DRAWN[name](Path(work))
        data = made.encode() if isinstance(made, str) else made
        (PICTURES / name).write_bytes(data)
        print(PICTURES / name)


if __name__ == "__main__":
    main()
