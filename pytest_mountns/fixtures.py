"""The fixtures ``overlay_root``, ``bind_volume``, ``isolated_proc`` and ``isolated_net``."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn, ParamSpec, TypeVar, final

import pytest

from . import activation
from .config import options
from .engine.linux.errors import SandboxError
from .engine.plan.spec import SandboxSpec, Volume

if TYPE_CHECKING:
    from .engine.changes.changes import Changes
    from .engine.faults.exploration import Crash, Fault
    from .engine.layers.layer_writer import WrittenLayer
    from .engine.plan.model import Plan
    from .engine.sandbox.sandbox import Usage
    from .session.current import Current, RunningTest
    from .session.exploring import Exploring


_P = ParamSpec("_P")
_R = TypeVar("_R")


def _ends_at_the_test(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let the traceback of a :class:`SandboxError` end at the line of the test that has called.

    The message says what the kernel has answered; how the plugin came to ask is not the test's.
    """

    @functools.wraps(method)
    def call(*arguments: _P.args, **keywords: _P.kwargs) -> _R:
        __tracebackhide__ = True
        try:
            return method(*arguments, **keywords)
        except SandboxError as error:
            raise error.with_traceback(None) from None

    return call


@final
class OverlayRoot:
    """The handle of the test's own root filesystem."""

    def __init__(
        self,
        test: RunningTest,
        spec: SandboxSpec,
        find_plan: Callable[[SandboxSpec], Plan],
        exploring: Exploring,
    ) -> None:
        self._test = test
        self._spec = spec
        self._find_plan = find_plan
        self._exploring = exploring

    @_ends_at_the_test
    def changes(self, *globs: str) -> Changes:
        """What the test has changed so far, ordered by path, against what was there before it.

        In a :meth:`checkpoint`: what was changed since that, or since a :meth:`reset` in it.

        ``globs``: only paths that match one; ``*`` stays within a directory, ``**`` does not, and
        a path without wildcards takes in everything below it. Raises :class:`SandboxError`.
        """
        return self._test.stack.sandbox.changes().matching(*globs)

    @_ends_at_the_test
    def reset(self) -> None:
        """Drop everything written so far; the root is as it was when the test began.

        The working directory is kept if it still exists. Processes that the test has started
        keep the root they have. Raises :class:`SandboxError`.
        """
        self._test.reset()

    def checkpoint(self) -> AbstractContextManager[None]:
        """A context that, when it ends, drops what was written in it.

        They nest. The working directory is then the one of before; what :class:`BindVolume` has
        mounted meanwhile is gone. A file that was opened before the context is not affected: what
        is written to it is not dropped. Raises :class:`SandboxError` when the context is entered.
        """
        return self._test.checkpoint()

    @property
    def layers(self) -> tuple[str, ...]:
        """What the root and what is stacked on it came from, the lowest first.

        The root is ``"host"``, ``"minimal"`` or a path; the layers are paths.
        """
        return (self._spec.root, *self._spec.layers)

    @_ends_at_the_test
    def add_layer(self, tree: str | os.PathLike[str]) -> None:
        """Put a layer under everything that the test writes, and over the other layers, now.

        It acts as the last of the marker's ``layers``. ``tree``: a directory, archive or image
        of the host; what the test itself has made cannot be one. What was written stays, and so
        does what :class:`BindVolume` has mounted; files that are open, and processes that were
        started, keep the root they have. Needs Linux 6.15. Raises :class:`SandboxError`.
        """
        layers = (*self._spec.layers, os.path.abspath(tree))
        spec = dataclasses.replace(self._spec, layers=layers)
        self._test.restack(lambda: self._find_plan(spec))
        self._spec = spec

    @_ends_at_the_test
    def usage(self) -> Usage:
        """What the upper takes up to now, in bytes and inodes. Raises :class:`SandboxError`."""
        return self._test.stack.sandbox.usage()

    @_ends_at_the_test
    def export(self, path: str | os.PathLike[str]) -> WrittenLayer:
        """Write what the test has changed so far to ``path``, as the layer of an OCI image.

        The name says how it is compressed: ``.gz`` and ``.tgz`` with gzip, ``.zst`` with zstd,
        any other not. ``path`` is one of the sandbox: in a volume it outlives the test. Returns
        digests, size, and notes of what no archive can hold. Raises :class:`LayerError`,
        :class:`SandboxError`, and :class:`OSError` if it cannot be written.
        """
        from .engine.linux.namespaces import privileged

        # The user of the test need not be able to read this package.
        with privileged(self._test.stack.sandbox.plan.drops_capabilities):
            from .engine.layers.tar_writer import compression_of_name

        place = os.path.realpath(path)
        # A name of its own: another process may export to the same path, in a volume. What is not
        # opened here is not this file, so it is opened before the cleaning up begins.
        partial = f"{place}.{os.urandom(4).hex()}"
        file = open(partial, "x+b")  # noqa: SIM115 - closed below
        try:
            with file:
                written = self._test.stack.sandbox.write_layer(
                    file, compression=compression_of_name(place), ignore=(partial,)
                )
            os.replace(partial, place)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
            raise
        return written

    @_ends_at_the_test
    def crashes(
        self,
        function: Callable[[], object],
        *,
        power: bool | Literal["ordered", "strict"] = False,
        torn: bool = False,
        watch: Sequence[str] | None = None,
    ) -> Iterator[Crash]:
        """Crash ``function`` wherever it changes a file, and go on as if it had happened.

        ``function`` runs in a forked process, once for each system call that changes a file. All
        processes that it has started are killed before that call takes effect. The body of the loop
        then sees the files as they are. What it writes, and what ``function`` has written, is
        dropped when the next crash is asked for. The last crash comes when ``function`` has ended.

        ``power``: the power is cut, too. What was not synced is lost, by the model "ordered", which
        True stands for, or by "strict". ``torn``: each write is also cut in half. ``watch``: globs
        of the paths whose changes count; without it all but caches of the interpreter.

        Raises what ``function`` raises by itself, and :class:`SandboxError`.
        """
        return self._exploring.crashes(function, power=power, torn=torn, watch=watch)

    @_ends_at_the_test
    def fault_points(
        self, function: Callable[[], object], *, watch: Sequence[str] | None = None
    ) -> Iterator[Fault]:
        """Have each distinct call of ``function`` that changes or syncs a file fail once.

        It fails with each errno that it may have: EIO, ENOSPC, EINTR. ``function`` runs in a forked
        process, and the body of the loop sees the files as it has left them, and in ``raised`` what
        it has raised; as in :meth:`crashes` all is dropped then. ``watch``: globs of the paths that
        count; what is read from those fails, too.

        Raises what ``function`` raises without a fault, and :class:`SandboxError`.
        """
        return self._exploring.fault_points(function, watch=watch)

    def faults(self, *rules: str) -> AbstractContextManager[None]:
        """A context in which system calls fail, of this process and of all that it has started.

        ``rules``: as of the marker's ``faults``, ``"fsync:/var/lib/app/**:EIO"``. A failing test
        lists what was made to fail. When the context ends, nothing fails any more; but a seccomp
        filter stays on the process, so that setuid programs of an ordinary user's test gain no
        rights from then on. Raises :class:`SandboxError`.
        """
        return self._exploring.faults(*rules)


@final
class BindVolume:
    """Call it to bind-mount a host directory or file into the running test."""

    def __init__(self, test: RunningTest) -> None:
        self._test = test

    @_ends_at_the_test
    def __call__(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str] | None = None,
        *,
        read_only: bool = False,
    ) -> Path:
        """Show the host's ``source`` at ``target`` (default: at its own path), now.

        What is written there is written on the host and stays. A missing target is made, in the
        sandbox. Returns the target. Raises :class:`SandboxError`.
        """
        origin = os.path.abspath(source)
        volume = Volume(origin, os.path.abspath(target or origin), read_only)
        self._test.bind(volume.source, volume.target, read_only=read_only)
        return Path(volume.target)


@final
class IsolatedProc:
    """The test's own PID namespace. PID 1 is an init that reaps; the test is another process."""

    def __init__(self, current: Current) -> None:
        self._current = current

    def pids(self) -> list[int]:
        """Every process of the namespace, init and the test itself included."""
        injector = self._current.injector
        hidden = injector.supervisor if injector is not None else 0
        found = (int(name) for name in os.listdir("/proc") if name.isdigit())
        return sorted(pid for pid in found if pid != hidden)

    def children(self) -> list[int]:
        """Every process but init and the test itself."""
        return [pid for pid in self.pids() if pid not in (1, os.getpid())]

    def kill_all(self, timeout: float = 10.0) -> int:
        """SIGKILL to every process but init and the test; wait until they are gone.

        Returns how many there were. Raises :class:`TimeoutError` after ``timeout`` seconds.
        """
        # Not for every session.
        from .engine.linux import processes

        killed: set[int] = set()
        deadline = time.monotonic() + timeout
        while alive := [pid for pid in self.children() if not processes.has_ended(pid)]:
            for pid in alive:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                killed.add(pid)
            if time.monotonic() > deadline:
                raise TimeoutError(f"still there after {timeout} s: {alive}")
            time.sleep(0.001)
        return len(killed)


@final
class IsolatedNet:
    """The test's own network namespace: loopback, and nothing else."""

    def interfaces(self) -> list[str]:
        """Names of the network interfaces, if_nameindex(3); ``["lo"]`` at first."""
        from .engine.linux.sockets import socket

        return [name for _, name in socket.if_nameindex()]


def _running(request: pytest.FixtureRequest) -> RunningTest:
    active = activation.find(request.config)
    test = active.session.current.test if active is not None else None
    if test is None:
        pytest.fail(
            f"{request.fixturename}: this test is not in a sandbox, it was asked for too late."
            " Name the fixture in the test's arguments, or mark the test with"
            " @pytest.mark.mountns.",
            pytrace=False,
        )
    if test.guard is not None:
        pytest.skip(f"{request.fixturename}: this machine cannot isolate tests, only guard them")
    return test


def _too_late(request: pytest.FixtureRequest, key: str) -> NoReturn:
    pytest.fail(
        f"{request.fixturename} was asked for too late: name it in the test's arguments, or mark"
        f" the test with @pytest.mark.mountns({key}).",
        pytrace=False,
    )


@pytest.fixture
def overlay_root(request: pytest.FixtureRequest) -> Iterator[OverlayRoot]:
    """Isolates the test and gives the handle of its root: what changed, reset."""
    test = _running(request)
    session = activation.activate(request.config).session

    def find_plan(spec: SandboxSpec) -> Plan:
        return session.sandboxes.plan_on_stage(request.node, spec)

    exploring = session.exploring(test, options.crash_point(request.config))
    try:
        yield OverlayRoot(test, session.selection.spec(request.node), find_plan, exploring)
    finally:
        exploring.close()


@pytest.fixture
def bind_volume(request: pytest.FixtureRequest) -> BindVolume:
    """Isolates the test; call it with a host path to mount that into the running test."""
    return BindVolume(_running(request))


@pytest.fixture
def isolated_net(request: pytest.FixtureRequest) -> IsolatedNet:
    """Isolates the test and its network: its own namespace, with loopback up."""
    if not _running(request).stack.sandbox.plan.network_namespace:
        _too_late(request, 'network="none"')
    return IsolatedNet()


@pytest.fixture
def isolated_proc(request: pytest.FixtureRequest) -> IsolatedProc:
    """Isolates the test and its processes: its own PID namespace and /proc."""
    if not _running(request).stack.sandbox.plan.pid_namespace:
        _too_late(request, "pid=True")
    return IsolatedProc(activation.activate(request.config).session.current)
