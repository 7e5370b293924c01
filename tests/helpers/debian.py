"""Another release of Debian than that of this machine, from the network."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

MIRROR = "http://deb.debian.org/debian"
#: By the version of this machine's Debian.
RELEASES = {"12": "trixie", "13": "bookworm"}

#: The marks of tests that need it.
MARKS = [
    pytest.mark.as_root,
    pytest.mark.skipif(
        "MOUNTNS_DEBIAN" not in os.environ,
        reason="takes minutes and a mirror of Debian's: MOUNTNS_DEBIAN=1",
    ),
    pytest.mark.skipif(shutil.which("debootstrap") is None, reason="no debootstrap here"),
    pytest.mark.skipif(os.geteuid() != 0, reason="debootstrap is for root"),
]


def bootstrap(root: Path, *packages: str) -> None:
    """Install a minimal system with these packages into a new directory.

    Skips the test if that is not possible.
    """
    here = Path("/etc/debian_version")
    version = here.read_text().partition(".")[0].strip() if here.exists() else ""
    release = RELEASES.get(version, "bookworm")
    include = [f"--include={','.join(packages)}"] if packages else []
    # What debootstrap mounts in the root goes away with its mount namespace.
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private"),
            *("debootstrap", "--variant=minbase", *include, release, str(root), MIRROR),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    if done.returncode:
        pytest.skip(f"debootstrap cannot make a root here: {done.stdout[-300:]}")
