"""Runs a function once, up to a crash point: what the supervisor does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, final

from ..linux import syscalls
from ..linux.errors import SandboxError, said
from ..linux.namespaces import privileged
from ..linux.sockets import socket
from ..linux.untouched import os, select
from . import subject
from .calls import CALLS, CHANGING, SYNCING, Architecture, Kind, numbered
from .files import File
from .filters import program
from .listener import Listener
from .observation import Event, Observation, PowerModel
from .subject import Ended, Subject, kill_tree

#: Most calls of a function that are kept in words.
_MOST_POINTS: Final = 100_000


@final
@dataclass(frozen=True, slots=True)
class Order:
    """What the supervisor is to do."""

    #: The paths whose changes are crash points; None for all of the sandbox.
    globs: tuple[str, ...] | None = None
    #: The number of the crash point before which everything ends; None: the function ends itself.
    stop_at: int | None = None
    #: The model that says what survives a power cut; None for none.
    power: PowerModel | None = None
    #: Whether the power is cut when everything has ended.
    cut: bool = False
    #: Whether names that were not synced are lost by that: see :mod:`.disk`.
    lose_names: bool = False
    #: Whether half of the write that was stopped reaches the file.
    torn: bool = False
    #: The number of a call that fails, and the errno that it fails with.
    fail: tuple[int, int] | None = None
    #: Whether reading counts, too.
    reads: bool = False
    #: Whether the test process has capabilities that the test must not use.
    drops_capabilities: bool = False


@final
@dataclass(frozen=True, slots=True)
class Point:
    """A call before which everything may end."""

    #: The call in words.
    call: str
    name: str
    path: str
    #: Of a rename or link the path of before.
    source: str
    #: How many bytes it writes, if it could be cut short; else 0.
    size: int
    #: Whether names that were not synced make a difference.
    can_lose_names: bool


@final
@dataclass(slots=True)
class Run:
    """What has happened."""

    #: The crash points that were passed, and the one that was stopped at.
    points: list[Point] = field(default_factory=list)
    #: Whether the last of them was stopped at.
    stopped: bool = False
    #: Whether a call was made to fail.
    failed: bool = False
    #: How the function has ended, if it has and has said so.
    ended: Ended | None = None
    #: The wait status of its process, if that has ended.
    status: int | None = None
    #: Files that were mapped shared and writable.
    mapped: tuple[str, ...] = ()
    #: Whether, at the end, names that were not synced make a difference.
    can_lose_names: bool = False


class GivenUp(Exception):
    """The test process waits no longer."""


@final
class CrashSupervisor:
    """Runs the function, and ends it at the crash point."""

    def __init__(
        self, order: Order, function: Callable[[], object], architecture: Architecture
    ) -> None:
        self._order = order
        self._function = function
        self._architecture = architecture
        self._calls = numbered(architecture)
        self._run = Run()
        #: What is left of the write that was stopped: the file, the bytes, and where they go.
        self._torn: tuple[File, bytes, int] | None = None

    def run(self, mask: syscalls.SignalSet, control: socket.socket) -> Run:
        """Do it.

        ``mask``: the signal mask of the function. ``control``: the test process has the other end;
        if that is closed, everything ends by :class:`GivenUp`. Raises :class:`SandboxError`.
        """
        kinds = CHANGING | {Kind.MAP} | (SYNCING if self._order.power else frozenset())
        if self._order.reads:
            kinds |= {Kind.READ}
        names = {call.name for call in CALLS if call.kind in kinds}
        instructions = program(self._architecture, names, changes_only=True)
        one = subject.start(self._function, self._architecture, instructions, mask, control)
        try:
            with privileged(self._order.drops_capabilities):
                self._supervise(one, control)
        finally:
            kill_tree()
        return self._run

    def _supervise(self, one: Subject, control: socket.socket) -> None:
        listener = Listener(one.listener())
        run, order = self._run, self._order
        try:
            observation = Observation(order.globs, order.power, reads=order.reads)
            self._listen(listener, one, control, observation)
        finally:
            # Before the listener is closed: with it, calls that wait would fail and be noticed.
            kill_tree()
            listener.close()
        run.mapped = tuple(observation.mapped)
        disk = observation.disk
        try:
            if disk is not None:
                observation.finished()
                run.can_lose_names = disk.can_lose_names
                if order.cut:
                    observation.files.put_back(disk.survivors(lose_names=order.lose_names))
            if self._torn is not None:
                file, content, offset = self._torn
                file.write_at(content, offset)
        except OSError as error:
            raise SandboxError("put files into the state after a crash", said(error)) from error

    def _listen(
        self, listener: Listener, one: Subject, control: socket.socket, observation: Observation
    ) -> None:
        """Answer system calls until the crash point is reached or the function has ended."""
        poll = select.poll()
        for fd in (listener.fd, one.channel.fileno(), one.pidfd, control.fileno()):
            poll.register(fd, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if control.fileno() in ready:
                raise GivenUp
            if one.channel.fileno() in ready:
                one.hear()
                if ready[one.channel.fileno()] & select.POLLHUP:
                    poll.unregister(one.channel.fileno())
            if ready.get(listener.fd, 0) & select.POLLIN:
                if self._answer(listener, observation):
                    self._run.stopped = True
                    return
            elif listener.fd in ready:
                # All processes under the filter have ended.
                poll.unregister(listener.fd)
            if one.pidfd in ready:
                self._run.ended, self._run.status = one.ended()
                return

    def _answer(self, listener: Listener, observation: Observation) -> bool:
        """Answer one system call. Returns whether it is the one to stop at."""
        notification = listener.receive()
        if notification is None:
            return False
        call = self._calls.get(notification.number)
        if notification.audit != self._architecture.audit or call is None:
            raise _foreign(notification.thread)
        event = observation.see(
            notification.thread, call, notification.arguments, notification.number
        )
        if not listener.is_valid(notification):
            # The thread was killed, and what was read may be of another one with its number.
            return False
        if event is not None and event.counts:
            if self._stops(event, observation):
                return True
            if self._order.fail is not None and self._order.fail[0] == len(self._run.points) - 1:
                listener.fail(notification, self._order.fail[1])
                self._run.failed = True
                return False
        if event is not None and event.note is not None and observation.disk is not None:
            event.note()
        listener.go_on(notification)
        return False

    def _stops(self, event: Event, observation: Observation) -> bool:
        points, order, disk = self._run.points, self._order, observation.disk
        size = event.torn.size if event.torn is not None else 0
        lose = disk is not None and disk.can_lose_names
        if len(points) >= _MOST_POINTS:
            raise SandboxError(
                "list the crash points of a function",
                cause=f"it changes files more than {_MOST_POINTS} times",
                remedy="give it less to do, or name the files that matter: watch=[...]",
            )
        points.append(
            Point(event.describe(), event.call.name, event.path, event.source, size, lose)
        )
        if order.stop_at != len(points) - 1:
            return False
        if order.torn and event.torn is not None:
            half = event.torn.size // 2
            self._torn = event.torn.file, event.torn.read(half), event.torn.offset
        return True


def _foreign(thread: int) -> SandboxError:
    try:
        program = os.readlink(f"/proc/{thread}/exe")
    except OSError:
        program = "a program"
    return SandboxError(
        "supervise system calls",
        cause=f"{program} makes system calls of another architecture, as 32-bit programs do, and"
        " their numbers are not known to this plugin",
        remedy="use a program of the machine's own architecture in what is tested",
    )
