"""The standard library as it was before tests could replace parts of it.

A test, or a fixture wider than a test, may have replaced functions while code of this package runs
in the same process: ``mock.patch("os.open")``, pyfakefs, ``gevent.monkey.patch_all()``, a library
that forbids sockets. With a replaced ``os.fchdir``, this process would stay in the sandbox.

So this package takes these modules from here. They are copies of the modules' namespaces, made
when the plugin is loaded, which is before any ``conftest.py``; coverage.py's ``isolate_module``
does the same. All of them are modules that pytest itself has loaded by then.

A function that is written in Python looks up names in its own module: ``os.path.exists`` calls the
``os.stat`` of now. These functions are made anew, so that they look into the copies. Sockets have a
module of their own, :mod:`.sockets`, which is loaded later.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import builtins
import fcntl
import functools
import genericpath
import os
import posix
import posixpath
import select
import signal
import struct
import sys
import time
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING

__all__ = [
    "_signal",
    "fcntl",
    "open",
    "os",
    "posix",
    "select",
    "signal",
    "struct",
    "time",
]


def copied(module: ModuleType, **replaced: object) -> ModuleType:
    """Copy a module. ``replaced``: names in it that are to be other values."""
    # pyfakefs replaces modules wherever it finds one by its name, and functions likewise.
    name = f"untouched {module.__name__}"
    copy = ModuleType(name, module.__doc__)
    names = vars(copy)
    names.update(vars(module), **replaced, __name__=name)
    for name, value in vars(module).items():
        if isinstance(value, FunctionType) and value.__globals__ is vars(module):
            function = FunctionType(
                value.__code__, names, value.__name__, value.__defaults__, value.__closure__
            )
            function.__kwdefaults__ = value.__kwdefaults__
            function.__dict__.update(value.__dict__)
            names[name] = function
    return copy


if TYPE_CHECKING:
    from builtins import open  # noqa: UP029 - so that the type checker knows its signature
else:
    _signal = copied(_signal)
    fcntl = copied(fcntl)
    posix = copied(posix)
    select = copied(select)
    signal = copied(signal, _signal=_signal)
    struct = copied(struct)
    time = copied(time)
    #: For :mod:`.sockets`. It is not loaded for that: pytest does not load it on Python 3.13.
    early_sockets = copied(sys.modules["_socket"]) if "_socket" in sys.modules else None
    open = functools.partial(builtins.open)

    os = copied(os)
    _genericpath = copied(genericpath, os=os)
    # posixpath has imported its functions by name.
    _generic = {name: vars(_genericpath)[name] for name in genericpath.__all__}
    os.path = copied(posixpath, os=os, genericpath=_genericpath)
    vars(os.path).update(
        (name, function)
        for name, function in _generic.items()
        if vars(posixpath).get(name) is vars(genericpath)[name]
    )
