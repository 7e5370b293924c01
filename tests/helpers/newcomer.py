"""Follow the documentation as a new user would: ``python -m tests.helpers.newcomer``, as root.

Makes a Debian root with debootstrap and follows the tutorial and README in it, as an ordinary user
and then as root. Every file is written and every command is typed, also ``pip install
pytest-mountns``, which installs the wheel of this checkout. The exit status is 1 if a command
prints something that the pages do not show.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Final

from tests.helpers.pages import ROOT, read
from tests.helpers.walk import walk

PACKAGES: Final = "python3,python3-venv"
PAGES: Final = ("docs/tutorial.md", "README.md")
MIRROR: Final = "http://deb.debian.org/debian"

#: Makes the directory the root of a mount namespace. A chroot would not do: user namespaces cannot
#: be made in one (user_namespaces(7), EPERM).
ENTER: Final = """
set -e
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount --rbind /dev dev
mount --rbind /sys sys
mount -t tmpfs tmpfs tmp
mkdir -p .before
pivot_root . .before
umount -l /.before
rmdir /.before
shift
exec "$@"
"""


def debian(place: Path, release: str) -> None:
    """Make a root at ``place``, unless there is one already."""
    if not (place / "usr/bin/python3").exists():
        debootstrap = ("debootstrap", "--variant=minbase", f"--include={PACKAGES}")
        _run(["unshare", "--mount", *debootstrap, release, place, MIRROR])
    if not (place / "home/you").exists():
        _run(["chroot", place, "useradd", "--create-home", "--shell", "/bin/bash", "you"])


def wheels(place: Path, root: Path) -> None:
    """Collect wheels of this checkout and of its dependencies, for the Python in ``root``."""
    version = ("chroot", root, "python3", "-c", "import sys; print(*sys.version_info[:2], sep='.')")
    python = subprocess.check_output(version, text=True).strip()
    place.mkdir(parents=True)
    hatchling = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", place)
    subprocess.run(hatchling, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (own,) = place.iterdir()
    download = (sys.executable, "-m", "pip", "download", "-q", "-d", place, own)
    _run([*download, "--python-version", python, "--only-binary=:all:"])


def newcomer(root: Path, user: str, home: str) -> bool:
    """Follow the pages as this user, and print what differs from them.

    Returns whether there were commands, and all printed what the pages show.
    """
    shell = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    shell += ["bash", "-c", ENTER, "enter", str(root)]
    shell += ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "bash", "-c"]
    shell += ["cd; exec bash"]
    environment = {
        "HOME": home,
        "USER": user,
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "COLUMNS": "80",
        "LC_ALL": "C.UTF-8",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "/wheels",
    }
    blocks = chain.from_iterable(read(ROOT / page) for page in PAGES)
    good, number = True, 0
    for step in walk(blocks, root, environment, home=home, shell=shell, skipped=True):
        number += 1
        print(f"{'ok' if step.as_shown else 'NO':4}{step.where:24}{step.command}", flush=True)
        if not step.as_shown:
            good = False
            print(f"is shown:\n{step.shown}\nbut was:\n{step.output}")
    print(f"{user}: {number} commands")
    return good and number > 0


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stdout[-2000:]}")


def main() -> int:
    """Make the root, and follow the pages in it."""
    parser = argparse.ArgumentParser(prog="python -m tests.helpers.newcomer", description=__doc__)
    parser.add_argument("--root", type=Path, help="a Debian root to use, or to make and keep")
    parser.add_argument("--release", default="trixie", help="which Debian (trixie)")
    options = parser.parse_args()
    if os.geteuid():
        parser.error("only root can do this")
    good = True
    with tempfile.TemporaryDirectory(dir="/var/tmp") as work:
        root = (options.root or Path(work, "root")).absolute()
        debian(root, options.release)
        wheels(Path(work, "wheels"), root)
        shutil.rmtree(root / "wheels", ignore_errors=True)
        shutil.copytree(Path(work, "wheels"), root / "wheels")
        for user, home in (("you", "/home/you"), ("root", "/root")):
            shutil.rmtree(f"{root}{home}/greeter", ignore_errors=True)
            good = newcomer(root, user, home) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
