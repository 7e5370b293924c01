"""Goes through the crash points of a function, in the test process."""

from __future__ import annotations

import errno
import gc
import pickle
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Final, NoReturn, final

from ..linux import processes, syscalls
from ..linux.errors import SandboxError, errno_name, said
from ..linux.helper_process import channel, receive_answer, send_answer
from ..linux.sockets import socket
from ..linux.untouched import os, time
from .calls import BY_NAME, Architecture, Kind, architecture
from .crash_point import CrashSupervisor, GivenUp, Order, Point, Run
from .observation import PowerModel
from .subject import flush_output

#: Seconds that a supervisor may take to end when it is told to.
_ENDS_WITHIN: Final = 40.0
#: How many calls before a crash point are listed.
_LISTED: Final = 12
_LISTED_OF_FAULT: Final = 40
_MAY_FAIL_WITH: Final[dict[Kind, tuple[int, ...]]] = {
    Kind.READ: (errno.EIO, errno.EINTR),
    Kind.WRITE: (errno.EIO, errno.ENOSPC, errno.EINTR),
    Kind.OPEN: (errno.EIO, errno.ENOSPC, errno.EINTR),
    Kind.RESIZE: (errno.EIO, errno.EINTR),
    Kind.ALLOCATE: (errno.EIO, errno.ENOSPC, errno.EINTR),
    Kind.MAKE: (errno.EIO, errno.ENOSPC),
    Kind.REMOVE: (errno.EIO,),
    Kind.RENAME: (errno.EIO, errno.ENOSPC),
    Kind.METADATA: (errno.EIO,),
    Kind.SYNC: (errno.EIO, errno.ENOSPC, errno.EINTR),
    Kind.SYNC_ALL: (errno.EIO,),
    Kind.MAP: (errno.ENOMEM,),
    Kind.SYNC_MAP: (errno.EIO,),
}


@final
@dataclass(frozen=True, slots=True, repr=False)
class Crash:
    """One way in which everything may have ended while the function ran."""

    #: The number of the crash point; the same for every way to crash there.
    number: int
    #: How many there are. The last one, ``of``, is after the end of the function.
    of: int
    #: The system call that was stopped, by its name; "" after the end of the function.
    call: str
    #: The path that it is about; of a rename or link the new one.
    path: str
    #: Of a rename or link the path of before; else "".
    source: str
    #: The model by which the power was cut; None if the processes were killed.
    power: PowerModel | None
    #: Whether names that were not synced are lost, in the model "strict".
    names_lost: bool
    #: Whether the first half of the write has reached the file.
    torn: bool
    #: Files that the function has mapped shared and writable. When it writes to them, no system
    #: call is made, and so there is no crash point.
    mapped: tuple[str, ...]
    #: The calls that count, in words: those that were carried out, and the one that was stopped.
    calls: tuple[str, ...]

    @property
    def ended(self) -> bool:
        """Whether the function had ended by itself before."""
        return not self.call

    def __str__(self) -> str:
        how = "the power was cut" if self.power else "killed"
        if self.torn:
            what = f"in the middle of {self.calls[-1]}"
        elif self.ended:
            what = "after the end"
        else:
            what = f"before {self.calls[-1]}"
        lost = ", names that were not synced are lost" if self.names_lost else ""
        return f"crash point {self.number} of {self.of}: {how} {what}{lost}"

    __repr__ = __str__

    def describe(self) -> str:
        """It in some lines: the calls before, the crash, and what could not be seen."""
        done = self.calls if self.ended else self.calls[:-1]
        lines = [str(self)]
        if len(done) > _LISTED:
            lines.append(f"       ... {len(done) - _LISTED} more")
        first = max(0, len(done) - _LISTED)
        lines += [f"  {first + n:4} {call}" for n, call in enumerate(done[first:])]
        if not self.ended:
            end = "half of " if self.torn else ""
            lines.append(f"> {self.number:4} {end}{self.calls[-1]}")
        lines += [
            f"{path} is mapped shared and writable: when it is written to through the mapping, no"
            " system call is made, and there is no crash point"
            for path in self.mapped
        ]
        return "\n".join(lines)


@final
@dataclass(frozen=True, slots=True, repr=False)
class Fault:
    """One call of the function that has failed, and what the function has made of it."""

    #: Its number, from 0, and how many there are.
    number: int
    of: int
    #: The system call, by its name.
    call: str
    #: The path that it is about; of a rename or link the new one.
    path: str
    #: Of a rename or link the path of before; else "".
    source: str
    #: The name of the errno.
    error: str
    #: What the function has raised; None if it has returned.
    raised: BaseException | None
    #: How its process has ended, if it has neither returned nor raised: "signal SIGABRT"; else "".
    died: str
    #: The calls that count, in words, those that have failed included.
    calls: tuple[str, ...]
    #: The call that has failed, in words.
    failed: str

    @property
    def reported(self) -> bool:
        """Whether the function has said so: by an exception, or by its end."""
        return self.raised is not None or bool(self.died)

    def __str__(self) -> str:
        if self.died:
            then = f"the process has ended by {self.died}"
        elif self.raised is not None:
            then = f"the function has raised {type(self.raised).__name__}"
        else:
            then = "the function has returned"
        return f"fault {self.number} of {self.of}: {self.failed} fails with {self.error}; {then}"

    __repr__ = __str__

    def describe(self) -> str:
        """It in some lines: the calls, and which one has failed."""
        at = self.calls.index(self.failed) if self.failed in self.calls else -1
        lines = [str(self)]
        lines += [
            f"  {self.error if number == at else '':6} {call}"
            for number, call in enumerate(self.calls[:_LISTED_OF_FAULT])
        ]
        if len(self.calls) > _LISTED_OF_FAULT:
            lines.append(f"         ... {len(self.calls) - _LISTED_OF_FAULT} more")
        return "\n".join(lines)


@final
@dataclass(frozen=True, slots=True)
class Settings:
    """How the crash points of a function are gone through."""

    globs: tuple[str, ...] | None = None
    power: PowerModel | None = None
    torn: bool = False
    #: The number of the only crash point that is wanted.
    only: int | None = None
    #: Whether the test process has capabilities that the test must not use.
    drops_capabilities: bool = False


def crashes(
    function: Callable[[], object],
    settings: Settings,
    checkpoint: Callable[[], AbstractContextManager[None]],
) -> Generator[Crash, None, None]:
    """Crash ``function`` at each of its crash points. The files are then as after the crash.

    First it runs once without a crash, to find the crash points, and then once for each. Every run
    is in a checkpoint of its own, which ends when the next crash is asked for. Raises what the
    function raises without a crash, and :class:`SandboxError`.
    """
    order = Order(
        settings.globs, power=settings.power, drops_capabilities=settings.drops_capabilities
    )
    with checkpoint():
        whole = run(function, order)
    _raise_what_it_raised(whole)
    points = whole.points
    if settings.only is not None and settings.only > len(points):
        raise SandboxError(
            f"go to crash point {settings.only}",
            cause=f"the function has {len(points)}, and number {len(points)} is after its end",
            remedy=f"--mountns-crash with a number from 0 to {len(points)}",
        )
    reached = False
    for number in range(len(points) + 1):
        if settings.only not in (None, number):
            continue
        stop_at = number if number < len(points) else None
        for variant in _variants(replace(order, stop_at=stop_at), whole, settings):
            with checkpoint():
                result = run(function, variant)
                if stop_at is not None and not result.stopped:
                    # This time it has changed less. What follows is at other crash points.
                    continue
                reached = True
                yield _crash(number, result, variant, len(points))
    if not reached:
        raise _not_reached(f"go to crash point {settings.only} of {len(points)}")


def fault_points(
    function: Callable[[], object],
    settings: Settings,
    checkpoint: Callable[[], AbstractContextManager[None]],
) -> Generator[Fault, None, None]:
    """Have each distinct call of ``function`` fail once with each errno that it may fail with.

    First it runs once without a fault, to find the calls. Of calls of the same name on the same
    path the first one fails. Every run is in a checkpoint of its own, which ends when the next
    fault is asked for. Raises what the function raises without a fault, and :class:`SandboxError`.
    """
    order = Order(
        settings.globs,
        # So that syncs count.
        power="ordered",
        # What the interpreter reads is not of interest.
        reads=settings.globs is not None,
        drops_capabilities=settings.drops_capabilities,
    )
    with checkpoint():
        whole = run(function, order)
    _raise_what_it_raised(whole)
    first: dict[tuple[str, str, str], int] = {}
    for number, point in enumerate(whole.points):
        first.setdefault((point.name, point.source, point.path), number)
    faults = [
        (number, error) for number in first.values() for error in _errors(whole.points[number])
    ]
    only, last = settings.only, len(faults) - 1
    if only is not None and only > last:
        raise SandboxError(
            f"go to fault {only}",
            cause=f"the function has {len(faults)}, and the last one is number {last}"
            if faults
            else "the function makes no call that may fail",
            remedy=f"--mountns-crash with a number from 0 to {last}"
            if faults
            else "run this test without --mountns-crash",
        )
    reached = False
    for count, (number, error) in enumerate(faults):
        if only not in (None, count):
            continue
        with checkpoint():
            result = run(function, replace(order, fail=(number, error)))
            if result.failed:
                reached = True
                yield _fault(count, len(faults), result, result.points[number], error)
    if faults and not reached:
        raise _not_reached(
            f"go to any of {len(faults)} faults"
            if only is None
            else f"go to fault {only} of {len(faults)}"
        )


def _not_reached(tried: str) -> SandboxError:
    """Nothing that was wanted has happened: a loop that checks nothing must not pass."""
    return SandboxError(
        tried,
        cause="the function has made fewer calls than when it ran first, and has ended before",
        remedy="let it do the same in each run. What it has written to a volume, or told another"
        " process, is not undone between them",
    )


def _errors(point: Point) -> tuple[int, ...]:
    """What a call may fail with, by its man page, that is not the fault of its caller."""
    return _MAY_FAIL_WITH[BY_NAME[point.name].kind]


def _fault(count: int, of: int, result: Run, point: Point, error: int) -> Fault:
    ended, raised = result.ended, None
    if ended is not None and ended.raised is not None:
        raised = pickle.loads(ended.raised) if ended.raised else FunctionRaised(ended.traceback)
    died = processes.describe_status(result.status or 0) if ended is None else ""
    return Fault(
        number=count,
        of=of,
        call=point.name,
        path=point.path,
        source=point.source,
        error=errno_name(error),
        raised=raised,
        died=died,
        calls=tuple(one.call for one in result.points),
        failed=point.call,
    )


def _variants(order: Order, whole: Run, settings: Settings) -> Iterator[Order]:
    """The ways to crash at one crash point."""
    point = whole.points[order.stop_at] if order.stop_at is not None else None
    can_lose_names = point.can_lose_names if point is not None else whole.can_lose_names
    order = replace(order, cut=settings.power is not None)
    yield order
    if settings.power == "strict" and can_lose_names:
        yield replace(order, lose_names=True)
    if settings.torn and point is not None and point.size > 1:
        yield replace(order, torn=True)


def _crash(number: int, result: Run, order: Order, of: int) -> Crash:
    point = result.points[-1] if result.stopped else None
    return Crash(
        number=number,
        of=of,
        call=point.name if point is not None else "",
        path=point.path if point is not None else "",
        source=point.source if point is not None else "",
        power=order.power if order.cut else None,
        names_lost=order.lose_names,
        torn=order.torn,
        mapped=result.mapped,
        calls=tuple(one.call for one in result.points),
    )


def _raise_what_it_raised(result: Run) -> None:
    ended = result.ended
    if ended is None:
        how = processes.describe_status(result.status or 0)
        raise SandboxError(
            "find the crash points of a function",
            cause=f"its process has ended by {how} before the function has returned",
            remedy="call the function in the test itself to see why",
        )
    if ended.raised is None:
        return
    if not ended.raised:
        raise SandboxError(
            "find the crash points of a function",
            cause=f"it has raised what cannot be pickled:\n{ended.traceback}",
        )
    error: BaseException = pickle.loads(ended.raised)
    raise error from FunctionRaised(ended.traceback)


class FunctionRaised(Exception):
    """Where the function has raised, in the process in which it ran: a traceback as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def run(function: Callable[[], object], order: Order) -> Run:
    """Run ``function`` once, under a supervisor. Raises :class:`SandboxError`."""
    machine = architecture()
    flush_output()
    with _adopting():
        return _run(function, order, machine)


@contextmanager
def _adopting() -> Iterator[None]:
    """Within the context orphans become children of this process.

    If a supervisor is killed, what the function has started can be found.
    """
    try:
        was = syscalls.is_subreaper()
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    except OSError as error:
        raise SandboxError("adopt what a function leaves running", said(error)) from error
    try:
        yield
    finally:
        if not was:
            syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 0)


def _run(function: Callable[[], object], order: Order, machine: Architecture) -> Run:
    receiver, sender = channel()
    parent = os.getpid()
    before = processes.own_children()
    try:
        child = processes.fork()
    except OSError as error:
        receiver.close()
        sender.close()
        raise SandboxError(
            "fork a supervisor",
            said(error),
            "too many processes, or not enough memory",
            "ulimit -u; free -m",
        ) from error
    if child == 0:
        _supervise(CrashSupervisor(order, function, machine), receiver, sender)
    sender.close()
    try:
        answer = receive_answer(receiver)
    finally:
        # If this process gives up (a timeout, Ctrl-C), the supervisor ends what it has started.
        receiver.close()
        _reap(child)
    content = answer.content
    if content is None:
        # The supervisor has left them.
        processes.end_children(before)
        raise SandboxError(
            "supervise the system calls of a process",
            cause="the supervisor has ended without an answer",
            remedy="dmesg; free -m",
        )
    if isinstance(content, SandboxError):
        raise content
    assert isinstance(content, Run)
    assert os.getpid() == parent
    return content


def _supervise(
    supervisor: CrashSupervisor, receiver: socket.socket, sender: socket.socket
) -> NoReturn:
    try:
        # No Python code of the test may run in this process: no signal handler, no finalizer.
        syscalls.block_all_signals(mask := syscalls.SignalSet())
        gc.disable()
        receiver.close()
        content: Run | SandboxError
        try:
            content = supervisor.run(mask, sender)
        except SandboxError as error:
            content = error
        except GivenUp:
            syscalls.exit_now(1)
        except Exception as error:  # noqa: BLE001 - for the other process to say
            content = SandboxError("supervise the system calls of a process", cause=repr(error))
        send_answer(sender, content)
        syscalls.exit_now(0)
    finally:
        syscalls.exit_now(1)


def _reap(child: int) -> None:
    deadline = time.monotonic() + _ENDS_WITHIN
    while not processes.reap_ended(child):
        if time.monotonic() > deadline:
            processes.end([child])
            return
        time.sleep(0.0005)
