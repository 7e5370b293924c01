"""The standard library as it was before tests could replace parts of it.

A test, or a fixture wider than a test, may have replaced functions while code of this package runs
in the same process: ``mock.patch("os.open")``, pyfakefs, ``gevent.monkey.patch_all()``, a library
that forbids sockets. A sandbox that is left with a replaced ``os.fchdir`` is not left.

So this package takes these modules from here. They are copies of the modules' namespaces, made
when the plugin is loaded, which is before any ``conftest.py``; coverage.py's ``isolate_module``
does the same. All of them are modules that pytest itself has loaded by then.

A function that is written in Python looks up names in its own module and so sees replaced ones:
``os.walk`` calls the ``os.scandir`` of now. Where that matters, the functions of :mod:`posix` are
called instead.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import builtins
import fcntl
import os
import posix
import select
import signal
import socket
import time
from types import ModuleType
from typing import TYPE_CHECKING

__all__ = [
    "_signal",
    "_socket",
    "fcntl",
    "open",
    "os",
    "posix",
    "select",
    "signal",
    "socket",
    "time",
]

if TYPE_CHECKING:
    from builtins import open  # noqa: UP029 - so that the type checker knows its signature
else:

    def _copied(module: ModuleType) -> ModuleType:
        copy = ModuleType(module.__name__, module.__doc__)
        vars(copy).update(vars(module))
        return copy

    _signal = _copied(_signal)
    _socket = _copied(_socket)
    fcntl = _copied(fcntl)
    os = _copied(os)
    posix = _copied(posix)
    select = _copied(select)
    signal = _copied(signal)
    socket = _copied(socket)
    time = _copied(time)
    open = builtins.open
