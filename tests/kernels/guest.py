"""The job on a machine that was booted for it: the tests as root and as an ordinary user.

Started by the machine's first process with what to test as arguments. Of the project it imports
nothing. Writes, for each of the two, ``WHO.txt`` (what pytest has printed), ``WHO.xml`` (JUnit),
the same of ``suite.py`` as ``WHO-suite.txt`` and ``WHO-suite.xml``, and what the doctor says in
words as ``WHO-doctor.txt`` and in facts as ``WHO.json`` to /run/results; and to ``no-overlay.txt``
what the doctor says before OverlayFS is loaded.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path("/run/results")
USER = "tester"
#: What the kernel gives, see there.
SUITE = "tests/kernels/suite.py"


def main(tests: list[str]) -> None:
    prepare()
    RESULTS.mkdir()
    compile_plugin()
    run("root", Path("/checkout"), ["-m", "pytest_mountns.reports.doctor"], "no-overlay.txt")
    if os.path.exists("/overlay.ko"):
        subprocess.run(["insmod", "/overlay.ko"], check=True)
    for who in ("root", USER):
        home = Path(pwd.getpwnam(who).pw_dir)
        checkout = home / "checkout"
        shutil.copytree("/checkout", checkout)
        if who != "root":
            subprocess.run(["chown", "-R", f"{who}:", checkout], check=True)
        name = "root" if who == "root" else "user"
        doctor = ["-m", "pytest_mountns.reports.doctor"]
        run(who, checkout, [*doctor, "--json"], f"{name}.json")
        run(who, checkout, doctor, f"{name}-doctor.txt")
        for run_name, files in ((f"{name}-suite", [SUITE]), (name, tests)):
            junit = checkout / f"{run_name}.xml"
            command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={junit}"]
            # In the newer form a test can say nothing but whether it has passed.
            command += ["-o", "junit_family=xunit1"]
            run(who, checkout, [*command, *files], f"{run_name}.txt")
            if junit.exists():
                shutil.copy(junit, RESULTS)


def prepare() -> None:
    """What an ordinary machine's init does before anybody logs in."""
    mounts = (
        ("sysfs", "/sys"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("mqueue", "/dev/mqueue"),
    )
    for fstype, target in mounts:
        os.makedirs(target, exist_ok=True)
        subprocess.run(["mount", "-t", fstype, fstype, target], check=True)
    subprocess.run(["mount", "--make-rshared", "/"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for target in ("/dev/shm", "/tmp", "/var/tmp", "/run/lock"):
        os.makedirs(target, exist_ok=True)
        os.chmod(target, 0o1777)
    Path("/etc/hosts").write_text("127.0.0.1 localhost\n")
    # useradd gives ranges of subordinate ids only if there are files for them.
    for file in ("/etc/subuid", "/etc/subgid"):
        Path(file).touch()
    subprocess.run(["useradd", "--create-home", "--shell", "/bin/bash", USER], check=True)


def compile_plugin() -> None:
    """Once, and not in each of the many processes that the tests start."""
    spec = importlib.util.find_spec("pytest_mountns")
    assert spec is not None
    for place in spec.submodule_search_locations or ():
        subprocess.run([sys.executable, "-m", "compileall", "-q", place], check=True)


def run(who: str, place: Path, arguments: list[str], output: str) -> None:
    home = pwd.getpwnam(who)
    environ = {
        "HOME": home.pw_dir,
        "USER": who,
        "LOGNAME": who,
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        # On these machines a process takes seconds to load plugins that the tests do not need.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_PLUGINS": "pytest_mountns.plugin",
    }
    began = time.monotonic()
    with open(RESULTS / output, "wb") as file:
        subprocess.run(
            [sys.executable, *arguments],
            user=home.pw_uid,
            group=home.pw_gid,
            extra_groups=[],
            cwd=place,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT if output.endswith(".txt") else None,
            check=False,
        )
    # For who looks at the console meanwhile: nothing else comes out before all is done.
    print(f"{output}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
