"""Real plugins: the same outcomes and files as without isolation, or the run says why not.

Plugins that are not installed are skipped. `nox -s plugins` has an environment with all of them.
They are loaded by name, since some of them cannot be loaded together.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import textwrap
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers.recording import RECORDER, Recorded

from .cases import CASES, Case

pytestmark = pytest.mark.sandboxes


class Run(NamedTuple):
    """What a run, or the second of two, has come to."""

    status: int
    #: None if it has stopped before its first test.
    recorded: Recorded | None
    #: Paths, with the content of those that are compared.
    files: dict[str, bytes]
    digest: object
    out: str


def run(case: Case, pytester: pytest.Pytester, place: Path, *options: str) -> Run:
    place.mkdir()
    for name, content in case.files.items():
        (place / name).write_text(textwrap.dedent(content))
    (place / "pytest.ini").write_text("[pytest]\n")
    events = place.with_suffix(".json")
    plugin = place.parent / "recorder_of_events.py"
    plugin.write_text(RECORDER.format(file=str(events)))
    os.chdir(place)
    loaded = [f"-p{name}" for name in ("recorder_of_events", *case.plugins)]
    command = (sys.executable, "-m", "pytest", *loaded, *options)
    result = pytester.run(*command, *case.options, timeout=120)
    if case.again is not None:
        # Files that are edited get another time.
        time.sleep(1.1)
        for name, content in case.edited.items():
            (place / name).write_text(content)
        result = pytester.run(*command, *case.again, timeout=120)
    out = result.stdout.str() + result.stderr.str()
    recorded = Recorded.of(events.read_text(), out="", err="") if events.exists() else None
    files = {}
    for path in sorted(place.rglob("*")):
        found = str(path.relative_to(place))
        if path.is_file() and "__pycache__" not in found and ".pytest_cache" not in found:
            read = path.read_bytes() if found in case.compared else b""
            files[re.sub(r"[0-9a-f-]{16,}|\d{6,}", "...", found)] = read
    digest = case.digest(place) if case.digest and recorded else None
    return Run(int(result.ret), recorded, files, digest, out)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


@pytest.mark.parametrize("process", ["fork", "auto"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_plugin(case: Case, process: str, pytester: pytest.Pytester, tmp_path: Path) -> None:
    if importlib.util.find_spec(case.module) is None:
        pytest.skip(f"{case.module} is not installed")
    plain = run(case, pytester, tmp_path / "plain")
    assert plain.recorded is not None, plain.out
    options = ("-pmountns", "--mountns", f"--mountns-process={process}")
    isolated = run(case, pytester, tmp_path / "isolated", *options)
    words = case.refused or (case.refused_forked if process == "fork" else "")
    if words:
        assert words in isolated.out.replace("\n", " ")
        assert isolated.status == pytest.ExitCode.USAGE_ERROR
        return
    if process == "fork" and case.said_forked:
        assert case.said_forked in isolated.out
        return
    assert isolated.recorded is not None, isolated.out
    assert isolated.recorded.outline == plain.recorded.outline, isolated.out
    assert isolated.recorded.warnings == plain.recorded.warnings
    assert isolated.status == plain.status
    assert isolated.files == plain.files
    assert isolated.digest == plain.digest
    for text in case.shown:
        assert text in plain.out
        assert text in isolated.out
