"""pytest-mountns run: any command in a throwaway root."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.kept import bundles, command, document, members, program
from tests.helpers.terminals import on_terminal

pytestmark = pytest.mark.sandboxes


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("old\n")
    (tmp_path / "gone").write_text("")
    return tmp_path


def sh(script: str, *options: str, cwd: Path, text: str = "") -> subprocess.CompletedProcess[str]:
    return command("run", *options, "--", "sh", "-c", script, cwd=cwd, text=text)


@pytest.mark.parametrize("options", [[], ["--pid"], ["--upper=disk"]])
def test_what_it_changes(place: Path, options: list[str]) -> None:
    script = "echo new >> file; rm gone; mkdir -p made; pwd; echo said >&2; cat"
    shown = sh(script, *options, cwd=place, text="typed")
    assert shown.returncode == 0
    assert shown.stdout == f"{place}\ntyped"
    lines = shown.stderr.splitlines()
    assert lines[:5] == [
        "said",
        f"          {place}/",
        "modified    file  (4 -> 8 bytes)",
        "deleted     gone",
        "added       made/",
    ]
    assert "+new" in lines
    assert (place / "file").read_text() == "old\n"
    assert sorted(os.listdir(place)) == ["file", "gone"]


@pytest.mark.parametrize("pid", [[], ["--pid"]])
@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 143), ("kill -KILL $$", 137)],
)
def test_exit_status(tmp_path: Path, pid: list[str], script: str, status: int) -> None:
    shown = sh(script, "--quiet", *pid, cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (status, "")


def test_commands_that_cannot_be_run(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no program")
    missing = command("run", "--", "no-such-command", cwd=tmp_path)
    assert (missing.returncode, missing.stdout) == (127, "")
    assert "cannot run no-such-command: ENOENT" in missing.stderr
    closed = tmp_path / "closed"
    closed.mkdir(0)
    beside = command("run", "--", "no-such-command", cwd=tmp_path, PATH=f"{closed}:/bin")
    assert (beside.returncode, beside.stdout) == (127, "")
    refused = command("run", "--", "./data", cwd=tmp_path)
    assert refused.returncode == 126
    assert "cannot run ./data: EACCES" in refused.stderr


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        ([], 2, 'no command; it comes after "--"'),
        (["ls"], 2, "unrecognized arguments: ls"),
        (["--"], 2, "no command"),
        (["--upper=tape", "--", "true"], 2, "invalid choice"),
        (["--size=much", "--", "true"], 125, "'much' is not a size"),
        (["--inodes=0", "--", "true"], 125, "above 0"),
        (["--volume=/nowhere", "--", "true"], 125, "there is no /nowhere on the host"),
        (["--tmpfs=/proc", "--", "true"], 125, "/proc"),
        (["--upper=disk", "--size=1m", "--", "true"], 125, "cannot limit"),
        (["--keep=/nowhere/x", "--", "true"], 125, "/nowhere is not there"),
        (["--keep=/etc", "--", "true"], 125, "it is there already"),
    ],
)
def test_asked_for_wrongly(tmp_path: Path, options: list[str], status: int, said: str) -> None:
    shown = command("run", *options, cwd=tmp_path)
    assert shown.returncode == status
    assert said in shown.stderr
    assert "Traceback" not in shown.stderr


def test_options(place: Path) -> None:
    shared = place / "shared"
    shared.mkdir()
    (place / "mount").mkdir()
    shown = sh(
        "echo kept > shared/file; echo no > mount/file; ls -A mount; dd if=/dev/zero of=big bs=64k",
        f"--volume={shared}",
        f"--tmpfs={place}/mount:mode=700",
        "--size=1m",
        cwd=place,
    )
    assert shown.returncode == 1
    assert shown.stdout == "file\n"
    assert "No space left on device" in shown.stderr
    assert (shared / "file").read_text() == "kept\n"
    assert os.listdir(place / "mount") == []
    assert not (place / "big").exists()
    refused = sh("echo x > file", "--read-only", cwd=place)
    assert refused.returncode != 0
    assert "Read-only file system" in refused.stderr
    limited = sh("for n in $(seq 200); do : > f$n || exit 9; done", "--inodes=50", cwd=place)
    assert limited.returncode != 0
    alone = sh("echo $$", "--pid", "--quiet", cwd=place)
    assert alone.stdout == "2\n"


def test_roots_and_layers(place: Path) -> None:
    (place / "layer/opt/tool").mkdir(parents=True)
    (place / "layer/opt/tool/data").write_text("from a layer")
    code = "import os; print(open('/opt/tool/data').read(), os.path.exists('/bin/sh'))"
    words = ["--", sys.executable, "-c", code]
    for root, has_shell in (("host", True), ("minimal", False)):
        shown = command("run", f"--root={root}", "--layer=layer", *words, cwd=place)
        assert (shown.returncode, shown.stdout) == (0, f"from a layer {has_shell}\n"), shown.stderr


def test_namespaces(place: Path) -> None:
    shown = sh(
        "uname -n; tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '; id -u",
        "--hostname=inside",
        "--network=none",
        "--user=root",
        "--quiet",
        cwd=place,
    )
    assert shown.stderr == ""
    assert shown.stdout.split() == ["inside", "lo", "0"]
    assert os.uname().nodename != "inside"


@pytest.mark.as_root
@pytest.mark.parametrize("pid", [[], ["--pid"]])
def test_another_user(place: Path, pid: list[str]) -> None:
    shown = sh(
        "id -u; id -G; cat /etc/shadow; kill -TERM $$", "--user=65534", "--quiet", *pid, cwd=place
    )
    assert shown.returncode == 143
    assert shown.stdout.split() == ["65534", "65534"]
    assert "Permission denied" in shown.stderr


def test_a_bundle_of_it(place: Path) -> None:
    shown = sh("echo new >> file; exit 4", "--keep=kept", "--quiet", cwd=place)
    assert shown.returncode == 4
    (bundle,) = bundles(place)
    assert bundle == place / "kept"
    about = document(bundle)
    assert (about["kind"], about["outcome"]) == ("command", "status 4")
    assert about["argv"] == ["sh", "-c", "echo new >> file; exit 4"]
    assert members(bundle)[f"{place}/file".strip("/")] == b"old\nnew\n"
    assert "+new" in command("diff", "kept", cwd=place).stdout


@pytest.mark.layered
def test_a_shell_on_a_bundle_of_it(place: Path) -> None:
    sh("echo new >> file", "--keep=kept", "--quiet", cwd=place)
    shown = command("shell", "kept", cwd=place, text="cat file; exit 6\n", SHELL="/bin/sh")
    assert (shown.returncode, shown.stdout) == (6, "old\nnew\n")


def processes_with(mark: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark in path.read_text():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


@pytest.mark.parametrize("pid", [[], ["--pid"]])
def test_what_it_leaves_running(tmp_path: Path, pid: list[str]) -> None:
    mark = f"86400.{os.getpid()}"
    # Otherwise they would hold the output open, and its reader would wait for them.
    shown = sh(f"(setsid sleep {mark} &) > /dev/null 2>&1; exit 5", *pid, cwd=tmp_path)
    assert shown.returncode == 5
    assert processes_with(mark) == []


@pytest.mark.parametrize("pid", [[], ["--pid"]])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_passed_on(tmp_path: Path, pid: list[str], number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo caught; exit 7' {name}; echo ready; while :; do sleep 0.1; done"
    with subprocess.Popen(
        [program(), "run", *pid, "--", "sh", "-c", script],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "caught\n"
        assert process.wait(60) == 7


@pytest.mark.parametrize("pid", [[], ["--pid"]])
def test_killed(tmp_path: Path, pid: list[str]) -> None:
    mark = f"86401.{os.getpid()}"
    with subprocess.Popen(
        [program(), "run", *pid, "--", "sh", "-c", f"echo ready; exec sleep {mark}"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
        process.wait()
        # It ends when no process has the output open any more.
        assert process.stdout.read() == ""
    deadline = time.monotonic() + 60
    while processes_with(mark) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert processes_with(mark) == []


@pytest.mark.parametrize("pid", [[], ["--pid"]])
def test_ctrl_c_goes_to_the_command(tmp_path: Path, pid: list[str]) -> None:
    script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.1; done"
    with on_terminal(tmp_path, program(), "run", *pid, "--", "sh", "-c", script) as terminal:
        terminal.wait_for("ready")
        terminal.type("\x03")
        terminal.wait_for("caught")
        assert terminal.end() == 9


@pytest.mark.parametrize("pid", [[], ["--pid"]])
def test_it_can_ask(tmp_path: Path, pid: list[str]) -> None:
    script = 'printf "name? "; read name; echo "hello $name"; stty size'
    with on_terminal(tmp_path, program(), "run", *pid, "--", "sh", "-c", script) as terminal:
        terminal.wait_for("name? ")
        terminal.type("me\n")
        terminal.wait_for("hello me")
        terminal.wait_for("24 80")
        assert terminal.end() == 0


def test_open_directories_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("host")
    script = f"""
import os, subprocess, sys
fd = os.open({str(tmp_path)!r}, os.O_RDONLY)
code = "import os; os.unlink('file', dir_fd=%d)" % fd
sys.exit(subprocess.call(
    [{program()!r}, "run", "--quiet", "--", sys.executable, "-c", code], pass_fds=[fd]
))
"""
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "host"
