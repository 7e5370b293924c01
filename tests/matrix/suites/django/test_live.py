import urllib.request

import pytest
from shelf.models import Book


def get(server, data=None):
    with urllib.request.urlopen(f"{server.url}/books/", data, timeout=10) as answer:
        return answer.read().decode()


def test_empty(live_server):
    assert get(live_server) == ""


def test_server_reads(live_server):
    Book.objects.create(title="of the test")
    assert get(live_server) == "of the test"


def test_server_writes(live_server):
    assert get(live_server, b"of the server") == "of the server"
    assert Book.objects.get().title == "of the server"


def test_flushed(live_server):
    assert get(live_server) == ""
