"""pytest-mountns shell: in the state that a failure has left."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.helpers.kept import bundles, command, program
from tests.helpers.terminals import on_terminal

pytestmark = [pytest.mark.sandboxes, pytest.mark.layered]


@pytest.fixture
def bundle(pytester: pytest.Pytester) -> Path:
    shared = pytester.mkdir("shared")
    pytester.makepyfile(
        f"""
        import os, pytest

        HERE = os.path.dirname(__file__)

        @pytest.mark.mountns(volumes=[{str(shared)!r}], read_only=False, pid=True, size="9m")
        def test_it():
            os.remove(HERE + "/gone")
            with open(HERE + "/data", "a") as file:
                file.write("new\\n")
            os.mkdir(HERE + "/locked", 0o700)
            with open(HERE + "/locked/file", "w") as file:
                file.write("inside\\n")
            os.chmod(HERE + "/locked", 0)
            assert 0
        """
    )
    (pytester.path / "data").write_text("old\n")
    (pytester.path / "gone").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLOUR", "green")
        pytester.runpytest_subprocess("-p", "no:cacheprovider", "--mountns-keep=failed")
    (found,) = bundles(pytester.path / ".mountns")
    return found


def test_the_state(bundle: Path, pytester: pytest.Pytester) -> None:
    before = sorted(pytester.path.rglob("*"))
    script = """
        pwd; cat data; ls gone; stat -c %a locked; echo $COLOUR $MOUNTNS_SHELL
        echo more > written && cat written
        echo x > shared/file
        exit 7
    """
    shown = command("shell", str(bundle), text=script, SHELL="/bin/sh", cwd=Path("/"))
    assert shown.returncode == 7
    assert shown.stdout.splitlines() == [
        str(pytester.path),
        "old",
        "new",
        "0",
        f"green {bundle}",
        "more",
    ]
    assert "gone" in shown.stderr
    # A volume is read-only in a shell, though the test could write to it.
    assert "Read-only" in shown.stderr
    assert sorted(pytester.path.rglob("*")) == before


def test_a_volume_that_is_gone(bundle: Path, pytester: pytest.Pytester) -> None:
    (pytester.path / "shared").rmdir()
    shown = command("shell", str(bundle), text="cat data\n", SHELL="/bin/sh")
    assert (shown.returncode, shown.stdout) == (0, "old\nnew\n")


#: It starts no process, because a child of a shell cannot be stopped between fork and exec.
JOB = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGCONT, lambda *_: os.write(1, b"goes on\\n"))
os.write(1, b"sleeps\\n")
while True:
    time.sleep(1)
"""


def test_on_a_terminal(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("no bash here")
    monkeypatch.setenv("SHELL", shell)
    # Otherwise the user's own files could choose another prompt.
    monkeypatch.setenv("HOME", str(bundle))
    (bundle.parents[1] / "job.py").write_text(JOB)
    with on_terminal(Path("/"), program(), "shell", str(bundle)) as terminal:
        terminal.wait_for("nothing of it stays")
        terminal.type("PS1='>''> '\n")
        terminal.wait_for(">> ")
        terminal.type(f"{sys.executable} job.py\n")
        terminal.wait_for("sleeps")
        terminal.type("\x1a")
        terminal.wait_for("Stopped")
        terminal.type("echo st''ill; fg\n")
        terminal.wait_for("still")
        # Only from now on does the job have the terminal again.
        terminal.wait_for("goes on")
        terminal.type("\x03")
        terminal.wait_for(">> ")
        terminal.type("echo st''atus $?; cat data; stty size\n")
        terminal.wait_for("status 130\nold\nnew\n24 80")
        terminal.type("exit 3\n")
        assert terminal.end() == 3
    assert os.path.exists(bundle)
