"""What a run leaves behind, read into lines that two runs can share.

Each reader takes what a file holds and gives one line for each fact, so that a difference names
the fact. Times, addresses and host names are left out.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tests.conformance.compare import normal

Lines = list[str]


def plain(text: str) -> str:
    """`normal`, and without what counts threads, pads lines or depends on the time."""
    text = re.sub(r"Thread-\d+", "Thread-N", normal(text))
    text = re.sub(r"\d+(\.\d+)?e?-?\d* ?(ns|us|μs|ms|seconds)\b", "0s", text)
    text = re.sub(r"\bgw\d+\b", "gw", text)
    text = re.sub(r"([*~!+])\1{3,}", r"\1\1\1", text)
    return re.sub(r"[ \t]+", " ", text).strip()


def terminal(text: str) -> Lines:
    """What was printed, but for what tells the two runs apart by their options."""
    lines = [plain(line) for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith(("mountns: ", "plugins: "))]


def text(content: str) -> Lines:
    return [plain(line) for line in content.splitlines()]


def junit(content: str) -> Lines:
    return list(_element(ET.fromstring(content), ""))


def _element(element: ET.Element, above: str) -> Iterator[str]:
    name = element.get("name")
    where = f"{above}/{element.tag}" + (f"[{name}]" if name else "")
    for key, value in sorted(element.attrib.items()):
        if key not in ("time", "timestamp", "hostname", "name"):
            yield f"{where} {key}={plain(value)}"
    if element.text and element.text.strip():
        yield f"{where}: {plain(element.text)}"
    if not len(element) and not element.attrib:
        yield where
    for child in element:
        yield from _element(child, where)


def values(content: str) -> Lines:
    """Any JSON, every value on a line."""
    return list(_value(json.loads(content), ""))


def _value(value: object, where: str) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, inner in sorted(value.items()):
            yield from _value(inner, f"{where}.{key}")
    elif isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
        for number, inner in enumerate(value):
            yield from _value(inner, f"{where}[{number}]")
    else:
        yield f"{where} = {plain(json.dumps(value))}"


def coverage(content: str) -> Lines:
    """Coverage's JSON report: lines, branches and contexts of each file."""
    report = json.loads(content)
    report.pop("meta")
    for found in report["files"].values():
        # These have the same figures once more, by function and class.
        found.pop("functions", None)
        found.pop("classes", None)
        for names in found.get("contexts", {}).values():
            names.sort()
    return values(json.dumps(report))


def benchmark(content: str) -> Lines:
    """pytest-benchmark's JSON: which were measured, with which parameters, and what is known."""
    lines: Lines = []
    for one in json.loads(content)["benchmarks"]:
        known = ("group", "params", "param", "extra_info")
        lines += [f"{one['fullname']} {key} = {one[key]}" for key in known]
        lines.append(f"{one['fullname']} stats = {', '.join(sorted(one['stats']))}")
    return lines


class _Blob(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Any] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        content = dict(attrs).get("data-jsonblob")
        if content:
            self.found = json.loads(content)


def html(content: str) -> Lines:
    """pytest-html's table: one line for each result, its log and its extras."""
    parser = _Blob()
    parser.feed(content)
    tests: Mapping[str, list[dict[str, Any]]] = parser.found.get("tests", {})
    lines = []
    for name, results in tests.items():
        for number, one in enumerate(results):
            for key in ("result", "log", "extras", "testId", "resultsTableRow"):
                shown = plain(re.sub(r"\d\d:\d\d:\d\d", "TIME", str(one.get(key))))
                lines.append(f"{name} {number} {key} = {shown}")
    return lines


READERS: Mapping[str, Callable[[str], Lines]] = {
    "text": text,
    "junit": junit,
    "json": values,
    "coverage": coverage,
    "benchmark": benchmark,
    "html": html,
}

# Only coverage can read its data file. This is run by the Python that has coverage installed.
DUMP = """
import json, os, sys
from coverage import CoverageData
data = CoverageData(sys.argv[1])
data.read()
found = {}
for file in sorted(data.measured_files()):
    arcs = data.arcs(file)
    found[os.path.relpath(file)] = {
        "tracer": data.file_tracer(file),
        "lines": sorted(data.lines(file) or []),
        "arcs": arcs and [f"{a}->{b}" for a, b in sorted(arcs)],
        "contexts": {
            str(line): sorted(names) for line, names in data.contexts_by_lineno(file).items()
        },
    }
print(json.dumps(found))
"""

KINDS = ("tree", "names", "data", *READERS)


def read(tree: Path, pattern: str, kind: str, run_python: Callable[..., str]) -> Lines:
    """The document of this kind at this place; one line that says so if there is none.

    `tree`: every file that the pattern matches, with a digest; `names`: without. `data`: a data
    file of coverage.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of document {kind!r}; there are {', '.join(KINDS)}")
    if kind in ("tree", "names"):
        files = sorted(path for path in tree.glob(pattern) if path.is_file())
        return [
            str(path.relative_to(tree))
            + (f" {sha256(path.read_bytes()).hexdigest()[:8]}" if kind == "tree" else "")
            for path in files
        ] or [f"nothing at {pattern}"]
    path = tree / pattern
    if not path.exists():
        return [f"no {pattern}"]
    if kind == "data":
        return values(run_python("-c", DUMP, str(path)))
    return READERS[kind](path.read_text())
