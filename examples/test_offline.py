"""A program that must get along without the network, and with its own ports.

``isolated_net``, or ``network="none"`` of the mark: a network of the test's own, with nothing in it
but 127.0.0.1 and ::1. Nothing of the host can be reached, and every port is free.
"""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from pytest_mountns import IsolatedNet


def latest(urls: list[str]) -> str:
    """What the first server says that can be reached; "unknown" if there is none."""
    for url in urls:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return str(answer.read().decode())
        except urllib.error.URLError:
            continue
    return "unknown"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"1.2.3")

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_without_a_network(isolated_net: IsolatedNet) -> None:
    assert isolated_net.interfaces() == ["lo"]
    assert latest(["http://192.0.2.1/version"]) == "unknown"


def test_no_packet_leaves(isolated_net: IsolatedNet) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        pytest.raises(OSError, match="Network is unreachable"),
    ):
        sender.sendto(b"x", ("192.0.2.1", 9))


@pytest.mark.parametrize("number", range(2))
def test_a_port_is_free(isolated_net: IsolatedNet, number: int) -> None:
    """The same one in each of these tests, side by side under pytest-xdist, too."""
    with HTTPServer(("127.0.0.1", 18080), Handler) as server:
        Thread(target=server.serve_forever).start()
        try:
            mirrors = ["http://192.0.2.1/version", "http://127.0.0.1:18080/version"]
            assert latest(mirrors) == "1.2.3"
        finally:
            server.shutdown()
