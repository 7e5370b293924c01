"""Which values of the environment are pipes and sockets that sandboxes show."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pytest_mountns.session.runner_pipes import RunnerPipes, pipes_in

MODES = {
    "/tmp/pipe": stat.S_IFIFO,
    "/run/socket": stat.S_IFSOCK,
    "/tmp/file": stat.S_IFREG,
    "/dev/fd/63": stat.S_IFIFO,
    "/proc/self/fd/1": stat.S_IFIFO,
    "/tmp/agent": stat.S_IFSOCK,
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (
            {"TEST_RUN_PIPE": "/tmp/pipe", "EDITOR_SOCKET": "/run/socket"},
            ("/run/socket", "/tmp/pipe"),
        ),
        ({"A": "/tmp/pipe", "B": "/tmp/../tmp/pipe"}, ("/tmp/pipe",)),
        ({"A": "/tmp/file", "B": "/tmp/none", "C": "tmp/pipe", "D": ""}, ()),
        ({"A": "/tmp/pipe:/tmp/pipe"}, ()),
        # Of this process alone, or made anew in each sandbox.
        ({"A": "/dev/fd/63", "B": "/proc/self/fd/1"}, ()),
        # Of the login session.
        ({"SSH_AUTH_SOCK": "/tmp/agent"}, ()),
    ],
)
def test_which_are_found(environment: dict[str, str], expected: tuple[str, ...]) -> None:
    assert pipes_in(environment, lambda path: MODES.get(path, 0)) == expected


def test_a_pipe_is_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader does not see its end when the writer that has opened it closes it."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    monkeypatch.setenv("SOME_PIPE", str(path))
    pipes = RunnerPipes()
    assert pipes.left_open() == []
    pipes.hold([str(path)])
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY)
    assert pipes.left_open() == [str(path)]
    pipes.hold(pipes.left_open())
    assert pipes.left_open() == []
    os.close(writer)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    pipes.close()
    assert os.read(reader, 1) == b""
    os.close(reader)
