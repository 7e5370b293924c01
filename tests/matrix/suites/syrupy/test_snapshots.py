import pytest
from syrupy.extensions.json import JSONSnapshotExtension
from syrupy.extensions.single_file import SingleFileSnapshotExtension


def test_text(snapshot):
    assert "a line\nanother" == snapshot


@pytest.mark.parametrize("number", [1, 2, 3])
def test_numbers(snapshot, number):
    assert {"number": number, "square": number**2} == snapshot


def test_two(snapshot):
    assert [1, 2] == snapshot
    assert [3] == snapshot(name="by name")


def test_json(snapshot):
    assert {"a": [1]} == snapshot(extension_class=JSONSnapshotExtension)


def test_bytes(snapshot):
    assert b"bytes" == snapshot(extension_class=SingleFileSnapshotExtension)


def test_dropped(snapshot):
    assert "soon unused" == snapshot


class TestInClass:
    def test_method(self, snapshot):
        assert {"of": "a class"} == snapshot
