"""Job control for a test process in a process group of its own, credentials(7) and tty_ioctl(4).

For the shell, pytest's process group is the job in the foreground of the terminal; it does not know
the test's group. Without help, the test's group would be stopped for ever as soon as it reads from
the terminal, and would go on when Ctrl-Z stops everything else. The init above it stays in
pytest's group. It does for the test's group what a shell does for a job: it lends it the terminal,
stops it and continues it.

The init cannot find out who has the terminal, since process groups outside of its PID namespace
have no number in it. But tcsetpgrp(3) works from the foreground only. In the background it stops
the group that calls it, which is what the shell expects of a background job that reads.
"""

from __future__ import annotations

from typing import Final, final

from .untouched import os, signal

#: What an init waits for, blocked since before the test process was made.
SIGNALS: Final = frozenset({signal.SIGCHLD, signal.SIGTSTP, signal.SIGCONT})


@final
class Job:
    """The process group that ``leader`` leads, from the process above it."""

    def __init__(self, leader: int) -> None:
        self._leader = leader
        self._wants_terminal = False
        self._stopped = False
        try:
            # Opened now, since the test may remove the name.
            self._terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            self._terminal = -1
        # With a handler, tcsetpgrp(3) returns if it is refused; PID 1 would try for ever otherwise.
        signal.signal(signal.SIGTTOU, lambda number, frame: None)

    def stop(self) -> None:
        """SIGTSTP has reached pytest's group: the terminal's Ctrl-Z, or a shell's."""
        self._stopped = True
        self._signal(signal.SIGTSTP)

    def has_stopped(self, number: int) -> None:
        """The leader was stopped by signal ``number``."""
        if number in (signal.SIGTTIN, signal.SIGTTOU) and self._terminal >= 0:
            self._wants_terminal = True
            self._lend()
        elif number == signal.SIGTSTP and not self._stopped:
            # Ctrl-Z was pressed while the terminal was lent, and the shell has to be told.
            self._stopped = True
            os.kill(0, signal.SIGTSTP)

    def go_on(self) -> None:
        """SIGCONT has reached pytest's group: "fg" or "bg"."""
        self._stopped = False
        if self._wants_terminal:
            self._lend()
        else:
            self._signal(signal.SIGCONT)

    def _lend(self) -> None:
        try:
            os.tcsetpgrp(self._terminal, self._leader)
        except InterruptedError:
            # pytest is in the background: its group was stopped, and goes on with "fg".
            return
        except OSError:
            # Nobody could bring it to the foreground any more; the kernel ends such groups by this.
            self._signal(signal.SIGHUP)
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._leader, number)
        except (ProcessLookupError, PermissionError):
            pass


def take_terminal_back() -> None:
    """In pytest, when a test process in a group of its own is gone: it may still have the terminal.

    It is not taken from a group that is alive: that is the shell's, and pytest is in the
    background.
    """
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return
    # SIGTTOU stops a background process that changes who has the terminal.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        os.killpg(os.tcgetpgrp(terminal), 0)
    except ProcessLookupError:
        os.tcsetpgrp(terminal, os.getpgrp())
    except OSError:
        pass
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(terminal)
