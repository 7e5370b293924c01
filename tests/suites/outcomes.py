"""Not collected here: the suite that ``test_outcomes`` runs plainly and isolated."""

import asyncio
import logging
import os
import sys
import threading
import warnings

import pytest

log = logging.getLogger("suite")


def test_passes():
    pass


def test_fails():
    print("to stdout")
    print("to stderr", file=sys.stderr)
    log.warning("to the log")
    assert [1, 2] == [1, 3]


def test_skips():
    pytest.skip("because")


def test_skips_for_an_import():
    pytest.importorskip("no_such_module_anywhere")


@pytest.mark.skipif(True, reason="a reason")
def test_skipped_by_mark():
    pass


@pytest.mark.xfail(reason="known")
def test_xfails():
    assert 0


@pytest.mark.xfail
def test_xpasses():
    pass


@pytest.mark.xfail(strict=True)
def test_xpasses_strictly():
    pass


@pytest.mark.xfail(raises=ValueError)
def test_xfails_otherwise():
    raise KeyError("other")


@pytest.mark.xfail(run=False)
def test_not_run():
    os._exit(3)


def test_xfails_by_word():
    pytest.xfail("in the middle")


def test_warns():
    warnings.warn("by the user", UserWarning, stacklevel=1)
    warnings.warn("old", DeprecationWarning, stacklevel=1)


@pytest.mark.filterwarnings("error")
def test_warning_is_an_error():
    warnings.warn("fatal", stacklevel=1)


class Odd(Exception):
    def __init__(self, one, two):
        self.one = one
        self.two = two


def test_exception_that_cannot_be_pickled():
    raise Odd(1, lambda: 2)


class OddWarning(UserWarning):
    def __init__(self, text, *, more):
        super().__init__(text)
        self.more = more


def test_warning_that_cannot_be_pickled():
    warnings.warn(OddWarning("odd", more=lambda: 1), stacklevel=1)


def test_long_message():
    raise AssertionError("x" * 300_000)


def test_system_exit():
    sys.exit(3)


@pytest.fixture
def bad_setup():
    raise RuntimeError("setup")


@pytest.fixture
def bad_teardown():
    yield
    raise RuntimeError("teardown")


@pytest.fixture(scope="module")
def bad_module():
    raise RuntimeError("module")


def test_setup_fails(bad_setup):
    pass


def test_teardown_fails(bad_teardown):
    pass


def test_call_and_teardown_fail(bad_teardown):
    assert 0


def test_module_setup_fails(bad_module):
    pass


def test_module_setup_fails_again(bad_module):
    pass


@pytest.fixture(scope="class")
def of_class():
    print("class setup")
    yield 5
    print("class teardown")


class TestClass:
    @classmethod
    def setup_class(cls):
        cls.wide = 2

    def setup_method(self):
        self.narrow = 1

    def test_sees_both(self, of_class):
        assert (self.narrow, self.wide, of_class) == (1, 2, 5)

    def test_fails(self, of_class):
        assert 0

    @pytest.mark.parametrize("number", [1, 2])
    def test_parametrized(self, number):
        assert number == 1


def test_class_scope_without_a_class(of_class):
    assert of_class == 5


@pytest.fixture(scope="module", params=["a", "b"])
def switched(request):
    print("setup", request.param)
    yield request.param
    print("teardown", request.param)
    warnings.warn("while the module ends", stacklevel=1)
    assert request.param == "a"


def test_first_of_switched(switched):
    pass


def test_second_of_switched(switched):
    assert switched == "a"


def test_capsys(capsys):
    print("z")
    assert capsys.readouterr().out == "z\n"


def test_capfd(capfd):
    os.system("echo from a shell")
    assert capfd.readouterr().out == "from a shell\n"


def test_caplog(caplog):
    log.error("message")
    assert caplog.messages == ["message"]


def test_recwarn(recwarn):
    warnings.warn("seen", stacklevel=1)
    assert len(recwarn) == 1


def test_property_that_cannot_be_pickled(request):
    request.node.user_properties.append(("key", lambda: 1))
    request.node.user_properties.clear()


def test_property(request):
    request.node.user_properties.append(("key", {"a": [1, (2, 3)]}))


def test_tmp_path_dir(tmp_path):
    (tmp_path / "a").write_text("b")
    assert os.listdir(tmp_path) == ["a"]


def test_monkeypatch(monkeypatch):
    monkeypatch.setenv("A", "b")
    monkeypatch.chdir("/")


def test_thread_raises():
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()


class Deleted:
    def __del__(self):
        raise ValueError("while deleted")


def test_unraisable():
    Deleted()


def test_event_loop():
    asyncio.run(asyncio.sleep(0))


def test_subprocess_writes():
    os.system("echo from a subprocess; echo error >&2")
    assert 0
