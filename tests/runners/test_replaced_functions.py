"""Tests that replace functions of the standard library, and leave them replaced.

A sandbox is entered and left while they are replaced, and must be entered and left in full.
"""

from __future__ import annotations

import textwrap

import pytest

from tests.helpers.recording import Record

pytestmark = pytest.mark.sandboxes

#: Functions that pytest itself does not need between two tests.
REPLACED = {
    "os": (
        "chdir chmod chown chroot close fchdir fchmod fchown fork geteuid"
        " getgid getppid getuid getxattr kill killpg link listdir listxattr lseek lstat"
        " makedirs mkdir mknod open pidfd_open pipe pipe2 pread pwrite read readlink"
        " remove rename replace rmdir scandir sched_yield sendfile setgid setgroups setns setpgid"
        " setresgid setresuid setsid setuid setxattr statvfs symlink truncate umask unlink unshare"
        " utime wait wait3 wait4 waitid waitpid walk write"
    ),
    "posix": "chdir fchdir fork fstat getpid kill lstat open read readlink stat unlink waitpid",
    "socket": "socket socketpair fromfd create_connection send_fds recv_fds",
    "_socket": "socketpair getaddrinfo",
    "signal": "signal pthread_sigmask setitimer alarm getsignal pidfd_send_signal sigwait",
    "_signal": "signal pthread_sigmask setitimer alarm getsignal",
    "time": "sleep monotonic time time_ns monotonic_ns",
    "select": "poll select epoll",
    "fcntl": "fcntl flock ioctl lockf",
    "struct": "pack unpack unpack_from pack_into calcsize",
    "builtins": "open",
}

SUITE = f"""
import importlib, os
from unittest import mock

import pytest

REPLACED = {REPLACED!r}
# What the tests themselves use.
_listdir, _open, _close, _mkdir = os.listdir, os.open, os.close, os.mkdir
# An ordinary user can write here.
NEW = os.path.join(os.getcwd(), "new")


def forbidden(name):
    def fails(*args, **kwargs):
        raise AssertionError(f"the function {{name}} is replaced")
    return fails


@pytest.fixture(scope="session", autouse=True)
def replaced(request):
    patches = []
    for module, names in REPLACED.items():
        module = importlib.import_module(module)
        for name in names.split():
            if hasattr(module, name):
                one = mock.patch.object(module, name, forbidden(f"{{module.__name__}}.{{name}}"))
                one.start()
                patches.append(one)
    yield
    for one in reversed(patches):
        one.stop()


@pytest.mark.parametrize("number", range(3))
def test_isolated(overlay_root, number):
    assert "new" not in _listdir(".")
    _mkdir(NEW)
    _close(_open(NEW + "/file", os.O_CREAT | os.O_WRONLY))


def test_changes(overlay_root):
    _mkdir(NEW)
    assert NEW in [str(change.path) for change in overlay_root.changes()]
"""


@pytest.mark.parametrize("process", ["fork", "inline"])
def test_a_sandbox_does_not_see_replaced_functions(
    pytester: pytest.Pytester, record: Record, process: str
) -> None:
    pytester.makepyfile(SUITE)
    recorded = record("-pno:rerunfailures", "--mountns", f"--mountns-process={process}")
    assert [(one.name, one.text) for one in recorded.not_passed] == []
    assert recorded.status == 0
    assert len([one for one in recorded.reports if one.when == "call"]) == 4


@pytest.mark.parametrize("process", ["fork", "inline"])
def test_all_of_gevents_patches(pytester: pytest.Pytester, record: Record, process: str) -> None:
    pytest.importorskip("gevent")
    pytester.makeconftest("from gevent import monkey; monkey.patch_all()")
    pytester.makepyfile(
        textwrap.dedent(
            """
            import os, subprocess, threading, time
            import pytest

            @pytest.mark.parametrize("number", range(3))
            def test_isolated(overlay_root, number):
                assert not os.path.exists("new")
                os.mkdir("new")
                thread = threading.Thread(target=time.sleep, args=(0.01,))
                thread.start()
                thread.join()
                assert subprocess.run(["true"]).returncode == 0
            """
        )
    )
    recorded = record("-pno:rerunfailures", f"--mountns-process={process}")
    assert [(one.name, one.text) for one in recorded.not_passed] == []
    assert recorded.status == 0


#: As pyfakefs does it: in every loaded module, whatever is a module or function of such a name.
BY_NAME = """
import builtins, os, sys, types
import pytest


class Fake(types.ModuleType):
    def __getattr__(self, name):
        if name in ("environ", "environb", "fspath", "fsdecode", "fsencode", "getpid", "geteuid"):
            return getattr(os, name)
        raise AssertionError(f"{self.__name__}.{name} of another file system")


def fake_open(*args, **kwargs):
    raise AssertionError("open of another file system")


@pytest.fixture(scope="session", autouse=True)
def replaced():
    before = []
    for name, module in list(sys.modules.items()):
        if not name.startswith("pytest_mountns"):
            continue
        for attribute, value in list(vars(module).items()):
            fake = None
            if isinstance(value, types.ModuleType) and value.__name__ in ("os", "posix", "io"):
                fake = Fake(value.__name__)
            elif value is builtins.open or getattr(value, "__module__", "") in ("os", "posix"):
                if isinstance(value, types.FunctionType | types.BuiltinFunctionType):
                    fake = fake_open
            if fake is not None:
                before.append((module, attribute, value))
                setattr(module, attribute, fake)
    yield
    for module, attribute, value in before:
        setattr(module, attribute, value)


@pytest.mark.parametrize("number", range(3))
def test_isolated(number):
    assert not os.path.exists("new")
    os.mkdir("new")
"""


@pytest.mark.parametrize("process", ["fork", "inline"])
def test_modules_that_are_replaced_by_name(
    pytester: pytest.Pytester, record: Record, process: str
) -> None:
    pytester.makepyfile(BY_NAME)
    recorded = record("--mountns")
    assert [(one.name, one.text) for one in recorded.not_passed] == []
    assert recorded.status == 0


@pytest.mark.parametrize("process", ["fork", "inline"])
def test_pyfakefs_in_a_wider_fixture(
    pytester: pytest.Pytester, record: Record, process: str
) -> None:
    pytest.importorskip("pyfakefs.pytest_plugin")
    pytester.makepyfile(
        """
        import os

        def test_one(fs_module):
            fs_module.create_file("/of/fake")
            assert os.path.exists("/of/fake")

        def test_two(fs_module):
            assert not os.path.exists("/etc")
        """
    )
    recorded = record("--mountns")
    assert [(one.name, one.text) for one in recorded.not_passed] == []
