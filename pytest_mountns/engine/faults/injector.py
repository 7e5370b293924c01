"""Makes system calls of a test process fail: the supervisor, and the test process's side of it.

The test process puts a seccomp filter on itself, which stays there for good and on everything that
it starts. The supervisor is forked before that, so that the filter is not on it. It is no child of
the test process, which would meet it in its own waitpid(2), and it ends when the last process
under the filter has ended. It runs no code of the test.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import pickle
import stat
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Final, NoReturn, final

from ..linux import processes, syscalls
from ..linux.errors import SandboxError, said
from ..linux.namespaces import privileged
from ..linux.sockets import socket
from ..linux.untouched import open as open_file
from ..linux.untouched import os, select, struct, time
from ..plan.fault_rules import FAMILIES, SINGLE, FaultRule
from .calls import Architecture, Call, architecture, numbered
from .filters import install, program
from .listener import Listener, Notification, hand_over, take_over
from .rules import Failure, Rules
from .tracee import Gone, read_memory, read_path, resolve, write_memory

#: The filter is put on all threads; if that is not possible it is an error.
_ALL_THREADS: Final = syscalls.SECCOMP_FILTER_FLAG_TSYNC | syscalls.SECCOMP_FILTER_FLAG_TSYNC_ESRCH
_AT_REMOVEDIR: Final = 0x200
#: Calls that the supervisor can do half of. The others transfer between two files, of which one is
#: often a pipe or a socket.
_VECTORED: Final = ("readv", "preadv", "preadv2", "writev", "pwritev", "pwritev2")
_HALVED: Final = ("read", "pread64", "write", "pwrite64", *_VECTORED)
#: In place of an offset: where the descriptor is in the file. preadv2(2) takes it as well.
_POSITION: Final = (1 << 64) - 1
#: How many faults a report lists.
_LISTED: Final = 50
#: Seconds in which the supervisor has to answer the test process.
_PATIENCE: Final = 60.0


@final
class Injector:
    """The test process's side: which rules hold now, and what they have done."""

    def __init__(self, control: socket.socket, supervisor: int, calls: frozenset[str]) -> None:
        self._control = control
        #: The calls that are stopped.
        self._calls = calls
        self._lock = threading.Lock()
        self._process = os.getpid()
        #: The process id of the supervisor.
        self.supervisor = supervisor

    @contextlib.contextmanager
    def active(self, rules: Sequence[FaultRule]) -> Iterator[None]:
        """Within the context these rules hold, too. Raises :class:`SandboxError`."""
        for rule in rules:
            if not self._calls.issuperset(rule.calls):
                raise SandboxError(
                    f"have {rule} fail",
                    cause="the filter of this process, which was made for faults= of the marker,"
                    " does not stop this call, and cannot be changed",
                    remedy="name overlay_root in the test's arguments, or the fault in the marker",
                )
        number = self._ask("add", list(rules))
        try:
            yield
        finally:
            self._ask("remove", number)

    @contextlib.contextmanager
    def begin_again(self) -> Iterator[None]:
        """Within the context no rule holds; after it those of the start, which count anew.

        What was done up to then is forgotten. Raises :class:`SandboxError`.
        """
        self._ask("stop", None)
        try:
            yield
        finally:
            self._ask("begin", None)

    def injected(self) -> list[str]:
        """What has been done so far, in words. Raises :class:`SandboxError`."""
        found: list[str] = self._ask("injected", None)
        return found

    def _ask(self, what: str, argument: object) -> Any:
        if os.getpid() != self._process:
            raise SandboxError(
                "change the faults of a test",
                cause="this is another process, which the test has started",
                remedy="change them in the test process",
            )
        with self._lock:
            try:
                self._control.send(pickle.dumps((what, argument)))
                answer = self._control.recv(1 << 20)
            except OSError as error:
                raise SandboxError("talk to the supervisor of the test", said(error)) from error
        if not answer:
            raise SandboxError(
                "talk to the supervisor of the test", cause="its process has ended: was it killed?"
            )
        return pickle.loads(answer)


def start(rules: Sequence[FaultRule], *, everything: bool, drops_capabilities: bool) -> Injector:
    """Have system calls of this process, and of all that it starts, fail from now on.

    ``everything``: rules about other calls may be added later. Without it only the calls of these
    rules are stopped; all others run at their own speed. Raises :class:`SandboxError`.
    """
    machine = architecture()
    names = {name for rule in rules for name in rule.calls}
    if everything:
        names |= {name for names in FAMILIES.values() for name in names} | set(SINGLE)
    instructions = program(machine, names, changes_only=False)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        between = processes.fork()
    except OSError as error:
        raise SandboxError("fork a supervisor", said(error), remedy="ulimit -u; free -m") from error
    if between == 0:
        _fork_supervisor(machine, rules, theirs, drops_capabilities)
    theirs.close()
    processes.reap(between)
    ours.settimeout(_PATIENCE)
    try:
        supervisor = int.from_bytes(ours.recv(8), "little")
        if not supervisor:
            raise SandboxError(
                "start a supervisor", cause="its process has ended at once", remedy="dmesg; free -m"
            )
        # Yama lets only an ancestor look into a process, unless that says who may; PR_SET_PTRACER.
        with contextlib.suppress(OSError):
            # Without Yama there is no such option, and nothing to allow.
            syscalls.prctl(syscalls.PR_SET_PTRACER, supervisor)
        listener = install(machine, instructions, flags=_ALL_THREADS)
        hand_over(listener, ours)
    except OSError as error:
        ours.close()
        raise SandboxError("start a supervisor", said(error)) from error
    except SandboxError:
        ours.close()
        raise
    return Injector(ours, supervisor, frozenset(names))


def _fork_supervisor(
    machine: Architecture,
    rules: Sequence[FaultRule],
    control: socket.socket,
    drops_capabilities: bool,
) -> NoReturn:
    try:
        syscalls.block_all_signals()
        if processes.fork() == 0:
            gc.disable()
            processes.withdraw([control.fileno()])
            syscalls.set_thread_name(processes.HELPER_NAME)
            control.send(os.getpid().to_bytes(8, "little"))
            fd, _ = take_over(control)
            if fd >= 0:
                with privileged(drops_capabilities):
                    _Supervisor(machine, rules, control, Listener(fd)).run()
    finally:
        syscalls.exit_now(0)


@final
class _Supervisor:
    """Answers the system calls of a test."""

    def __init__(
        self,
        machine: Architecture,
        rules: Sequence[FaultRule],
        control: socket.socket,
        listener: Listener,
    ) -> None:
        self._machine = machine
        #: Those that hold from the start.
        self._first = rules
        self._calls = numbered(machine)
        self._control = control
        self._listener = listener
        self._number = 0
        self._rules = {0: Rules(rules)}
        self._injected: list[str] = []
        self._omitted = 0
        #: Calls that are held up, with the time at which they are answered.
        self._held: list[tuple[float, Notification, Call, Failure]] = []

    def run(self) -> None:
        """Go on until no process is left under the filter."""
        poll = select.poll()
        poll.register(self._listener.fd, select.POLLIN)
        poll.register(self._control.fileno(), select.POLLIN)
        while True:
            ready = dict(poll.poll(self._answer_held()))
            if self._control.fileno() in ready and not self._hear():
                # The test process has ended. What it has started may go on.
                poll.unregister(self._control.fileno())
            if (events := ready.get(self._listener.fd, 0)) & select.POLLIN:
                self._answer()
            elif events:
                return

    def _hear(self) -> bool:
        """Answer a request of the test process. Returns whether there was one."""
        try:
            data = self._control.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            return False
        what, argument = pickle.loads(data)
        answer: object = None
        if what == "add":
            self._number += 1
            self._rules[self._number] = Rules(argument)
            answer = self._number
        elif what == "remove":
            self._rules.pop(argument, None)
        elif what == "stop":
            self._rules.clear()
        elif what == "begin":
            self._rules = {0: Rules(self._first)}
            self._injected.clear()
            self._omitted = 0
        elif what == "injected":
            more = [f"... and {self._omitted} more"] if self._omitted else []
            answer = [*self._injected, *more]
        self._control.send(pickle.dumps(answer))
        return True

    def _answer(self) -> None:
        notification = self._listener.receive()
        if notification is None:
            return
        call = self._calls.get(notification.number)
        failure = None
        if call is not None and notification.audit == self._machine.audit:
            failure = self._decide(notification, call)
        if failure is None or call is None:
            self._listener.go_on(notification)
        elif not self._listener.is_valid(notification):
            return
        elif failure.delay:
            self._held.append((time.monotonic() + failure.delay, notification, call, failure))
        else:
            self._fail(notification, call, failure)

    def _answer_held(self) -> int | None:
        """Answer what was held up long enough. Returns the milliseconds until the next."""
        now = time.monotonic()
        for held in sorted(self._held, key=lambda one: one[0]):
            until, notification, call, failure = held
            if until > now:
                return int((until - now) * 1000) + 1
            self._held.remove(held)
            self._fail(notification, call, failure)
        return None

    def _decide(self, notification: Notification, call: Call) -> Failure | None:
        asked = [rules for rules in self._rules.values() if call.name in rules.calls]
        if not asked:
            return None
        try:
            paths = _paths(notification, call)
            size = _size(notification, call)
        except SandboxError as error:
            self._note(f"{call.name}: went on, as it could not be looked at: {error.kernel}")
            return None
        except (Gone, OSError):
            # What the call is about does not exist. The kernel says so to whom it concerns.
            return None
        name = call.name
        if name == "unlinkat" and notification.arguments[2] & _AT_REMOVEDIR:
            name = "rmdir"
        failure = None
        for rules in asked:
            found = rules.decide(
                name, paths, size, can_be_short=lambda: _can_be_halved(notification, call)
            )
            failure = failure or found
        return failure

    def _fail(self, notification: Notification, call: Call, failure: Failure) -> None:
        self._note(failure.text)
        if failure.number:
            self._listener.fail(notification, failure.number)
        elif failure.short:
            self._transfer_half(notification, call)
        else:
            self._listener.go_on(notification)

    def _note(self, text: str) -> None:
        if len(self._injected) < _LISTED:
            self._injected.append(text)
        else:
            self._omitted += 1

    def _transfer_half(self, notification: Notification, call: Call) -> None:
        """Do half of what a read or write is to do, in its place."""
        thread, arguments = notification.thread, notification.arguments
        try:
            fd = _descriptor_of(thread, _int(arguments[0]))
        except (Gone, OSError):
            self._listener.go_on(notification)
            return
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                # The number stands for something else since the call was held up.
                self._listener.go_on(notification)
                return
            pieces = _half(_pieces(notification, call))
            size = sum(length for _, length in pieces)
            offset = arguments[3] if call.name.startswith("p") else _POSITION
            if "write" in call.name:
                content = b"".join(read_memory(thread, *piece) for piece in pieces)
                at_position = offset == _POSITION
                done = os.write(fd, content) if at_position else os.pwrite(fd, content, offset)
            else:
                data = os.read(fd, size) if offset == _POSITION else os.pread(fd, size, offset)
                done = len(data)
                for address, length in pieces:
                    write_memory(thread, address, data[:length])
                    data = data[length:]
            self._listener.succeed(notification, done)
        except Gone:
            # The process has ended, and hears nothing, or the address is not one of its memory.
            self._listener.fail(notification, errno.EFAULT)
        except OSError as error:
            self._listener.fail(notification, error.errno or 0)
        finally:
            os.close(fd)


def _int(argument: int) -> int:
    return ctypes.c_int(argument & 0xFFFFFFFF).value


def _paths(notification: Notification, call: Call) -> list[str]:
    """The paths that a call is about; of a rename or link the old one first.

    Pipes, sockets and the like have none.
    """
    thread, arguments = notification.thread, notification.arguments
    if call.path is None:
        assert call.descriptor is not None
        path = os.readlink(f"/proc/{thread}/fd/{_int(arguments[call.descriptor])}")
        # What has no path, as "pipe:[1]", is nothing that a glob is about.
        return [path.removesuffix(" (deleted)")] if path.startswith("/") else []
    found = []
    for where in filter(None, (call.source, call.path)):
        directory = None if where.directory is None else _int(arguments[where.directory])
        text = read_path(thread, arguments[where.path]) if arguments[where.path] else b""
        if not text and directory is not None:
            found.append(os.readlink(f"/proc/{thread}/fd/{directory}"))
            continue
        place = resolve(thread, text, directory, follows=where.follows)
        try:
            found.append(place.path)
        finally:
            place.close()
    return found


def _size(notification: Notification, call: Call) -> int:
    """How many bytes a read or write transfers; 0 of others."""
    if call.name in _VECTORED:
        return sum(length for _, length in _pieces(notification, call))
    if call.name in (*FAMILIES["read"], *FAMILIES["write"]) and call.detail is not None:
        return notification.arguments[call.detail]
    return 0


def _pieces(notification: Notification, call: Call) -> list[tuple[int, int]]:
    """The addresses and lengths of what a read or write transfers."""
    arguments = notification.arguments
    if call.name not in _VECTORED:
        return [(arguments[1], arguments[2])]
    vector = read_memory(notification.thread, arguments[1], 16 * min(arguments[2], 1024))
    return list(struct.iter_unpack("PN", vector[: len(vector) // 16 * 16]))


def _half(pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The first half of them."""
    left = sum(length for _, length in pieces) // 2
    found = []
    for address, length in pieces:
        found.append((address, min(length, left)))
        left -= found[-1][1]
    return [piece for piece in found if piece[1]]


def _can_be_halved(notification: Notification, call: Call) -> bool:
    """Whether the supervisor can do half of a call and is not kept waiting by that.

    There is one supervisor for all. Would it wait at a pipe or a terminal, nobody could write to
    the other end.
    """
    arguments = notification.arguments
    if call.name not in _HALVED or (call.name.endswith("2") and arguments[5]):
        return False
    link = f"/proc/{notification.thread}/fd/{_int(arguments[0])}"
    try:
        return stat.S_ISREG(os.stat(link).st_mode)
    except OSError:
        return False


def _descriptor_of(thread: int, fd: int) -> int:
    """A copy of a descriptor of another process, with the offset in common; pidfd_getfd(2)."""
    with open_file(f"/proc/{thread}/status", "rb") as file:
        fields = dict(line.split(b":", 1) for line in file if b":" in line)
    pidfd = os.pidfd_open(int(fields[b"Tgid"]))
    try:
        return syscalls.pidfd_getfd(pidfd, fd)
    finally:
        os.close(pidfd)
