import pytest


@pytest.fixture(autouse=True)
def add_name(doctest_namespace, tmp_path):
    doctest_namespace["given"] = 7
    doctest_namespace["directory"] = tmp_path


@pytest.fixture(scope="module", autouse=True)
def wide():
    print("wide begins")
    yield
    print("wide ends")
