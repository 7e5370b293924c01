"""What the standard library keeps in memory of a sandbox that is about to be gone.

When an inline test has ended, the process goes on, and the next test runs in another sandbox. The
processes that the test has started are ended, and its files are gone. :mod:`multiprocessing` and
libraries like it remember both: the process that forks for them, the one that tracks resources, a
temporary directory, semaphores and sockets to remove. The second test that uses them would fail.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final, final

from ..engine.linux.processes import has_ended
from ..engine.linux.untouched import os

#: Functions that remove what lies in the sandbox; ``multiprocessing.util.Finalize`` calls them when
#: an object is collected, or at the end of the process.
_REMOVERS: Final = frozenset({"SemLock._cleanup", "unlink", "_remove_temp_dir", "rmtree"})


#: What a ``multiprocessing.forkserver.ForkServer`` knows of its process.
_OF_ONE_SERVER: Final = frozenset(
    {"_forkserver_address", "_forkserver_alive_fd", "_forkserver_authkey", "_forkserver_pid"}
)


def worker_names() -> list[str]:
    """The names of living processes that :mod:`multiprocessing` has started in this process."""
    known: Any = getattr(sys.modules.get("multiprocessing.process"), "_children", None)
    if not known:
        return []
    alive = (one.name for one in tuple(known) if one.pid and not has_ended(one.pid))
    return sorted(alive)


@final
class ProcessState:
    """The state at the moment when an inline test begins."""

    def __init__(self) -> None:
        self._finalizers = frozenset(_finalizers())
        self._temporary: object = _configuration().get("tempdir")
        self._tempdir = tempfile.tempdir
        # The socket of a server of before is on the host, and cannot be reached from a sandbox.
        self._server_of_host = _take_server()

    @contextlib.contextmanager
    def outlived(self) -> Iterator[None]:
        """On the host for a moment: go on with what belongs there, and note it again."""
        finalizers, tempdir = frozenset(_finalizers()), tempfile.tempdir
        server = _take_server()
        _give_back_server(self._server_of_host)
        configuration = _configuration()
        temporary = configuration.get("tempdir")
        is_of_test = temporary != self._temporary
        if is_of_test:
            configuration["tempdir"] = self._temporary
        try:
            yield
        finally:
            self._finalizers |= frozenset(_finalizers()) - finalizers
            if tempfile.tempdir != tempdir:
                self._tempdir = tempfile.tempdir
            self._server_of_host = _take_server()
            _give_back_server(server)
            configuration = _configuration()
            self._temporary = configuration.get("tempdir")
            if is_of_test:
                configuration["tempdir"] = temporary

    def before_end(self, children: Collection[int]) -> None:
        """End what would miss its processes or files. Called in the sandbox.

        ``children`` are the processes that the test has started; they still live.
        """
        for module in _modules("reusable_executor") if children else ():
            # From loky 3.7 on it is a thread's own.
            place = getattr(module, "_executor_storage", module)
            name = "_executor" if place is module else "executor"
            executor: Any = getattr(place, name, None)
            workers = getattr(executor, "_processes", None) or ()
            if not set(workers).isdisjoint(children):
                with contextlib.suppress(Exception):
                    executor.shutdown(wait=True, kill_workers=True)
                setattr(place, name, None)
        for key, finalizer in _finalizers().items():
            callback: Callable[..., object] | None = getattr(finalizer, "_callback", None)
            if key not in self._finalizers and getattr(callback, "__qualname__", "") in _REMOVERS:
                # What is left of it is removed by this, or was removed by the test.
                with contextlib.suppress(Exception):
                    finalizer()
        configuration = _configuration()
        if configuration.get("tempdir") != self._temporary:
            configuration["tempdir"] = self._temporary

    def after_end(self, killed: Collection[int]) -> None:
        """Forget helper processes that were ``killed``: a later test is to start new ones."""
        if not killed:
            return
        for module in _modules("resource_tracker"):
            tracker: Any = getattr(module, "_resource_tracker", None)
            if getattr(tracker, "_pid", None) in killed:
                os.close(tracker._fd)
                tracker._fd = tracker._pid = None
                _send_only_of_now(tracker)
        for module in _modules("forkserver"):
            server: Any = getattr(module, "_forkserver", None)
            if getattr(server, "_forkserver_pid", None) in killed:
                os.close(server._forkserver_alive_fd)
                server._forkserver_address = None
                server._forkserver_alive_fd = server._forkserver_pid = None

    def after_leave(self) -> None:
        """Go on with what belongs to the host. Called on the host."""
        _give_back_server(self._server_of_host)
        if tempfile.tempdir != self._tempdir and not os.path.isdir(tempfile.tempdir or "/"):
            tempfile.tempdir = self._tempdir


def _take_server() -> dict[str, object]:
    """Have multiprocessing forget its fork server, if there is one. Returns what it knew of it."""
    server = _fork_server()
    if getattr(server, "_forkserver_pid", None) is None:
        return {}
    known = {name: value for name, value in vars(server).items() if name in _OF_ONE_SERVER}
    vars(server).update(dict.fromkeys(known))
    return known


def _give_back_server(known: dict[str, object]) -> None:
    """Have multiprocessing go on with this fork server."""
    if known:
        vars(_fork_server()).update(known)


def _fork_server() -> Any:
    module: Any = sys.modules.get("multiprocessing.forkserver")
    return getattr(module, "_forkserver", None)


def _send_only_of_now(tracker: Any) -> None:
    """Have a new process of ``tracker`` told only of what it was told to track.

    What was registered with the process of before lay in the sandbox. It is unregistered when an
    object is collected, or at the end, and the new process would complain that it does not know it.
    """
    known: set[tuple[str, str]] = set()
    send = type(tracker)._send

    def send_known(command: str, name: str, kind: str) -> None:
        if command == "REGISTER":
            known.add((name, kind))
        elif (name, kind) not in known:
            return
        send(tracker, command, name, kind)

    tracker._send = send_known


def _modules(name: str) -> Iterator[Any]:
    """The loaded modules of this name, in multiprocessing, loky, billiard or a copy of them."""
    for full, module in list(sys.modules.items()):
        if full.rpartition(".")[2] == name:
            yield module


def _finalizers() -> dict[object, Any]:
    module: Any = sys.modules.get("multiprocessing.util")
    return dict(module._finalizer_registry) if module is not None else {}


def _configuration() -> dict[str, object]:
    """What multiprocessing keeps for this process."""
    module: Any = sys.modules.get("multiprocessing.process")
    found: dict[str, object] = module.current_process()._config if module is not None else {}
    return found
