import pytest


def test_counts(request):
    count = request.config.cache.get("own/count", 0) + 1
    request.config.cache.set("own/count", count)
    print("runs so far:", count)
    assert count == 2


@pytest.fixture(scope="module")
def wide(pytestconfig):
    pytestconfig.cache.set("own/wide", pytestconfig.cache.get("own/wide", 0) + 1)


def test_sees_what_a_wider_fixture_set(wide, pytestconfig):
    assert pytestconfig.cache.get("own/wide", None) >= 1


def test_sees_what_another_test_set(cache):
    assert cache.get("own/count", None)


def test_directory(cache):
    directory = cache.mkdir("downloads")
    (directory / "file").write_text("kept")


def test_directory_again(cache):
    assert (cache.mkdir("downloads") / "file").read_text() == "kept"
