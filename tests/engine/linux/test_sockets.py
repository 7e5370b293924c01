"""The sockets of this package are not those of the module ``socket``."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from pytest_mountns.engine.linux import sockets


@pytest.fixture
def timeout() -> Any:
    socket.setdefaulttimeout(0.01)
    yield
    socket.setdefaulttimeout(None)


@pytest.mark.usefixtures("timeout")
def test_they_block_whatever_the_default_is() -> None:
    first, second = sockets.socket.socketpair()
    third = sockets.socket.socket(fileno=first.detach())
    with second, third:
        assert (second.gettimeout(), third.gettimeout()) == (None, None)


def test_a_class_that_is_replaced_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", None)
    monkeypatch.setattr(socket, "socketpair", None)
    first, second = sockets.socket.socketpair()
    with first, second:
        first.sendall(b"whole")
        assert second.recv(5) == b"whole"
    assert first.fileno() == -1
