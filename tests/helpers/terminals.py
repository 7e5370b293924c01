"""Run pytest or another command on a terminal of its own, as a user would see it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

#: Seconds to wait for output, and for the end of a command.
DEADLINE = 90
PYTEST = ("-m", "pytest", "-p", "no:cacheprovider")

#: Makes the terminal at its standard input the controlling one, and runs the command there.
STARTER = """
import fcntl, os, sys, termios

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@final
class Terminal:
    """A command that runs on a terminal: what it has written, and keys to type."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self._master = master
        self._process = process
        self._seen = 0
        #: What the command has written so far.
        self.text = ""

    def wait_for(self, mark: str) -> None:
        """Wait until ``mark`` is written, after what was waited for before."""
        while (place := self.text.find(mark, self._seen)) < 0:
            assert self._read(), f"no {mark!r} in {self.text!r}"
        self._seen = place + len(mark)

    def type(self, keys: str) -> None:
        """Type these keys."""
        os.write(self._master, keys.encode())

    def end(self) -> int:
        """Read what is left until the command ends. Returns its exit status."""
        while self._read():
            pass
        return self._process.wait(DEADLINE)

    def settings(self) -> list[Any]:
        """The terminal's settings, as of tcgetattr(3)."""
        return termios.tcgetattr(self._master)

    def processes(self) -> list[int]:
        """The living processes of the session, setsid(2)."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                # proc_pid_stat(5): the name before them may contain spaces.
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                state, _parent, _group, session = fields[:4]
                if int(session) == self._process.pid and state not in "ZX":
                    found.append(int(name))
        return found

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], DEADLINE)
        assert ready, f"nothing more after {self.text!r}"
        try:
            data = os.read(self._master, 65536)
        except OSError:  # nobody has the terminal open any more
            return False
        self.text += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)


def terminal(directory: Path, *options: str) -> contextlib.AbstractContextManager[Terminal]:
    """Run pytest in ``directory``; when the block ends nothing of it is left."""
    return on_terminal(directory, sys.executable, *PYTEST, *options)


@contextlib.contextmanager
def on_terminal(directory: Path, *command: str) -> Iterator[Terminal]:
    """Run a command in ``directory``; when the block ends nothing of it is left."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    environment = {
        **os.environ,
        # No escape sequences, and of the plugins that may be installed ours alone.
        "TERM": "dumb",
        "INPUTRC": "/dev/null",
        "PYTHON_COLORS": "0",
        "PYTHONWARNINGS": "default",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER, *command],
        cwd=directory,
        env=environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    running = Terminal(master, process)
    try:
        yield running
    finally:
        while left := running.processes():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        process.wait()
        os.close(master)


def without_summary(text: str) -> str:
    """The text without the line at the end that says how many tests were isolated."""
    return re.sub(r"^mountns: \d+ tests? isolated.*\n", "", text, flags=re.M)


def normal(text: str) -> str:
    """The text without what differs from run to run, and without the plugin's own lines."""
    text = re.sub(r"^mountns: every test .*\n", "", without_summary(text), flags=re.M)
    text = re.sub(r"^plugins: .*\n", "", text, flags=re.M)
    # pytest shows by a clock how many tests are collected so far.
    text = re.sub(r"\r?collecting (\.\.\.|\d+ items?) *(?=[\r\n])", "", text)
    text = re.sub(r"0x[0-9a-f]+", "0x", text)
    text = re.sub(r" *\d+\.\d+(ms|s)\b *", " TIME ", text)
    text = re.sub(r"=+( .* TIME )=+", r"=\1=", text)
    text = re.sub(r"Thread-\d+", "Thread-N", text)
    # The list of fixtures, where one is missing.
    return re.sub(r"available fixtures: .*", "available fixtures", text)
