"""What pytest writes, to the letter: a plain run and one with ``--mountns``."""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.terminals import normal, terminal

pytestmark = pytest.mark.sandboxes

SUITES = Path(__file__).parents[1] / "suites"

PLAIN = ("-p", "no:mountns")
ISOLATED = ("-p", "pytest_mountns.plugin", "--mountns")

LIVE = ("-o", "log_cli=true", "--log-cli-level=INFO")

OPTIONS: tuple[tuple[str, ...], ...] = (
    ("-vv", "-rA", "--durations=0"),
    ("-q", "--tb=short", "--show-capture=no", "--color=yes"),
    ("-s", "-v", "--tb=long", "-l"),
    ("-s", "-o", "console_output_style=progress-even-when-capture-no"),
    (*LIVE, "--log-file=x.log", "--log-file-level=DEBUG", "--color=yes", "-v"),
    (*LIVE, "--log-file=x.log", "-o", "log_file_mode=a", "-s", "--setup-show"),
    (*LIVE, "--capture=sys", "--show-capture=log"),
    ("--setup-show", "--capture=sys", "-rA"),
    ("--setup-plan",),
    ("--capture=tee-sys", "--tb=no", "-rfEsxXp"),
    ("-x", "-v"),
    ("-p", "no:terminal"),
    ("-W", "error", "test_second.py"),
    ("-p", "no:capture", "-v"),
    # Failures in fixtures show a stack that has the plugin's frames in it.
    ("--tb=native", "-k", "test_long_message or subprocess or system_exit"),
)

#: Two runs, the second with the option.
AGAIN = ("--lf", "--ff", "--nf", "--sw")


@pytest.fixture(autouse=True, params=["buffered", "unbuffered"])
def buffering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """C's stdout is flushed at the end of the process, or at once with PYTHONUNBUFFERED."""
    if request.param == "buffered":
        monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    else:
        monkeypatch.setenv("PYTHONUNBUFFERED", "1")


@pytest.fixture
def directories(tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the suites for the plain run, and one for the isolated."""
    for name in ("plain", "other"):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "pytest.ini").write_text("[pytest]\n")
        shutil.copy(SUITES / "output.py", directory / "test_first.py")
        shutil.copy(SUITES / "outcomes.py", directory / "test_second.py")
    return tmp_path / "plain", tmp_path / "other"


def _start(directory: Path, *options: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        # The order of some markup is that of a set.
        "PYTHONHASHSEED": "0",
        "PYTHONWARNINGS": "default",
        "COLUMNS": "80",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "--basetemp=temp", *options],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _result(directory: Path, process: subprocess.Popen[str]) -> list[str]:
    out, err = process.communicate(timeout=120)
    log = directory / "x.log"
    return [
        f"status {process.returncode}",
        *_lines(directory, out),
        "standard error",
        *_lines(directory, err),
        "log file",
        *(log.read_text().splitlines() if log.exists() else ()),
    ]


def _lines(directory: Path, text: str) -> list[str]:
    lines = normal(text.replace(str(directory), "HERE")).splitlines()
    # Sorted by how long they took.
    durations = [n for n, line in enumerate(lines) if re.match(r" ?TIME (setup|call|tear)", line)]
    for place, line in zip(durations, sorted(lines[n] for n in durations), strict=True):
        lines[place] = line
    return lines


def _same(directories: tuple[Path, Path], *options: str) -> None:
    one, other = directories
    # Both at once.
    plain, isolated = _start(one, *PLAIN, *options), _start(other, *ISOLATED, *options)
    expected, found = _result(one, plain), _result(other, isolated)
    assert not [*difflib.unified_diff(expected, found, "plain", "isolated", n=1, lineterm="")]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_output(directories: tuple[Path, Path], options: tuple[str, ...]) -> None:
    for directory in directories:
        (directory / "x.log").write_text("a line that was there before\n")
    _same(directories, "-p", "no:cacheprovider", *options)


def test_two_runs(directories: tuple[Path, Path]) -> None:
    """The next run uses the cache that one run leaves."""
    _same(directories, "-q", "--tb=no")
    for option in AGAIN:
        _same(directories, "-v", "--tb=no", option)


@pytest.mark.parametrize("option", ["--debug=debug.log", "--trace-config"])
def test_output_about_plugins(directories: tuple[Path, Path], option: str) -> None:
    """It names the plugin, so that the plain run cannot have the same."""
    _, directory = directories
    process = _start(directory, *ISOLATED, option, "test_first.py")
    assert _result(directory, process)[0] == "status 1"


@pytest.mark.parametrize("options", [("-v",), LIVE, ("-s", "--setup-show"), ("-q",)], ids=" ".join)
def test_output_on_a_terminal(
    directories: tuple[Path, Path], options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal, output is buffered by line and progress is drawn."""
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    if "-s" in options:
        # Half a line of standard error: it comes with its test, not with the end of the line.
        monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    runs = []
    for directory, way in zip(directories, (PLAIN, ISOLATED), strict=True):
        with terminal(directory, *way, *options, "test_first.py") as running:
            runs.append((running.end(), _lines(directory, running.text)))
    assert runs[1] == runs[0]


@pytest.mark.parametrize("way", ["fork", "inline"])
def test_another_terminal_reporter(pytester: pytest.Pytester, way: str) -> None:
    """As pytest-tldr's, which has nothing of pytest's own but some names."""
    pytester.makeconftest(
        """
        import sys
        import pytest

        class Reporter:
            def __init__(self, config):
                self.config = config
                self.stats = {}

            def write_line(self, text, **markup):
                print(text, file=sys.__stdout__)

            def pytest_runtest_logreport(self, report):
                self.write_line(f"{report.nodeid} {report.when} {report.outcome}")

        @pytest.hookimpl(trylast=True)
        def pytest_configure(config):
            manager = config.pluginmanager
            manager.unregister(manager.getplugin("terminalreporter"))
            manager.register(Reporter(config), "terminalreporter")
        """
    )
    pytester.makepyfile(test_it="def test_one(): pass\ndef test_two(): assert 0")
    options = ("-pno:rerunfailures", "--mountns", f"--mountns-process={way}")
    result = pytester.runpytest_subprocess(*options)
    assert result.ret == 1
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
    for line in ("test_it.py::test_one call passed", "test_it.py::test_two call failed"):
        assert line in result.outlines
