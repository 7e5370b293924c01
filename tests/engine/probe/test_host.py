"""What the machine shows to a user who is not root."""

from __future__ import annotations

import os
import shutil
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_mountns.engine.linux.namespaces import enter_user_namespace
from pytest_mountns.engine.plan.spec import SandboxSpec
from pytest_mountns.engine.planning.planner import Planner
from pytest_mountns.engine.sandbox.create import enter
from pytest_mountns.engine.sandbox.disk_uppers import DiskUppers
from tests.helpers.processes import fork
from tests.helpers.worlds import skip_unless

_UID = 12345


@pytest.fixture
def below_root() -> Iterator[Path]:
    """``/tmp/X/theirs/deep``: X is root's, ``theirs`` of a foreign group."""
    top = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        top.chmod(0o755)
        (top / "theirs" / "deep").mkdir(parents=True)
        os.chown(top / "theirs", _UID, 0)
        os.chown(top / "theirs" / "deep", _UID, _UID)
        yield top
    finally:
        shutil.rmtree(top)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of two owners")
@pytest.mark.sandboxes
def test_a_directory_below_those_of_others_can_be_written(below_root: Path) -> None:
    """An overlay of /tmp cannot copy up root's directory in between (EOVERFLOW)."""
    skip_unless("user")
    deep = below_root / "theirs" / "deep"
    reader, writer = os.pipe()
    child = fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(_UID)
            os.setuid(_UID)
            os.environ["HOME"] = "/nonexistent"
            os.chdir("/")
            plan = Planner([str(deep)]).plan(SandboxSpec())
            directory = DiskUppers().new() if plan.upper.medium == "disk" else None
            enter_user_namespace()
            sandbox = enter(plan, directory)
            (deep / "new").write_text("x")
            (deep.parent / "beside").write_text("y")
            os.write(writer, repr(sandbox.changes().as_dict()).encode())
        except BaseException:  # noqa: BLE001 - told to the parent
            os.write(writer, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as file:
        answer = file.read()
    os.waitpid(child, 0)
    expected = {str(deep.parent / "beside"): "added", str(deep / "new"): "added"}
    assert answer == repr(expected)
    assert sorted(p.name for p in below_root.rglob("*")) == ["deep", "theirs"]
