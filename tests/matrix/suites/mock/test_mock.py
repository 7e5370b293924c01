import os
import time

import pytest


def test_patch(mocker):
    mocker.patch("os.getcwd", return_value="/nowhere")
    assert os.getcwd() == "/nowhere"


def test_is_undone():
    assert os.getcwd() != "/nowhere"


@pytest.fixture(scope="module")
def all_module(module_mocker):
    return module_mocker.patch("time.ctime", return_value="noon")


def test_module(all_module):
    assert time.ctime() == "noon"


@pytest.fixture(scope="session", autouse=True)
def all_session(session_mocker):
    session_mocker.patch.dict(os.environ, {"MOCKED": "1"})


def test_session():
    assert os.environ["MOCKED"] == "1"


def test_message(mocker):
    stub = mocker.stub(name="stub")
    stub(1, a=2)
    stub.assert_called_once_with(1, a=3)


def test_spy(mocker):
    spy = mocker.spy(os.path, "basename")
    assert os.path.basename("/a/b") == "b"
    assert spy.spy_return == "b"


def test_open(mocker):
    mocker.patch("builtins.open", mocker.mock_open(read_data="made up"))
    with open("/etc/none") as file:
        assert file.read() == "made up"


@pytest.mark.parametrize("name", ["os.write", "os.read", "os.close", "os.fork", "os.getpid", "os._exit"])
def test_of_os(mocker, name):
    """Still mocked when the test ends, but for its fixtures."""
    mocker.patch(name)


@pytest.mark.parametrize("name", ["time.time", "time.sleep", "time.monotonic", "time.perf_counter"])
def test_of_time(mocker, name):
    mocker.patch(name, return_value=0)


@pytest.mark.parametrize("name", ["pickle.dumps", "socket.socket", "signal.signal", "sys.exit"])
def test_of_others(mocker, name):
    mocker.patch(name)
