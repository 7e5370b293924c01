"""Sockets of the C module of the standard library.

Libraries replace what is in the module ``socket``: gevent puts a class of its own there,
pytest-socket one that refuses everything. This package uses the class below that, which hardly
anybody replaces. ``socket`` need not be loaded for it: that takes 2 ms where pytest does not load
it, as on Python 3.13. So this module is not loaded before the first test is isolated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["_socket", "socket"]

if TYPE_CHECKING:
    import _socket
    import socket
else:
    from .untouched import copied, early_sockets

    if early_sockets is None:
        import _socket

        _socket = copied(_socket)
    else:
        _socket = early_sockets

    class _Socket(_socket.socket):
        """A socket that blocks, whatever ``socket.setdefaulttimeout()`` a test has called."""

        __slots__ = ()

        def __init__(self, *arguments: object, **keywords: object) -> None:
            super().__init__(*arguments, **keywords)
            if self.gettimeout() is not None:
                self.settimeout(None)

        def __enter__(self) -> _Socket:
            return self

        def __exit__(self, *exception: object) -> None:
            self.close()

    def _socketpair(*arguments: object) -> tuple[_Socket, _Socket]:
        first, second = _socket.socketpair(*arguments)
        return _Socket(fileno=first.detach()), _Socket(fileno=second.detach())

    #: What this package uses of the module ``socket``.
    socket = copied(_socket, socket=_Socket, socketpair=_socketpair)
