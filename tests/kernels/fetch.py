"""Kernels of other Debian releases, and a root filesystem for them, from the machine's mirror.

Nothing is installed on the machine: packages are downloaded by an apt with directories of its own,
and unpacked. Everything is kept in the work directory:

    apt/RELEASE/       lists and packages of a release
    kernels/RELEASE/   its kernel, unpacked: boot/vmlinuz-*, lib/modules/*
    busybox/           the static busybox, unpacked
    root-HASH.img      the root filesystem, an ext4 image of its own
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.conformance.fetch import PreparationError, checked, digest

#: The release whose userland all kernels are given, and the version of its Python.
USERLAND: Final = "bookworm"
PYTHON: Final = "3.11"
#: Where Debian's Python looks for what is not Debian's.
SITE: Final = f"usr/local/lib/python{PYTHON}/dist-packages"
_PACKAGES: Final = ("python3", "python3-venv", "iproute2", "util-linux", "procps", "kmod", "uidmap")
_IMAGE_SIZE: Final = "2G"
_DEFAULT_MIRROR: Final = "http://deb.debian.org/debian"
_TOOLS: Final = {
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "debootstrap": "debootstrap",
    "mke2fs": "e2fsprogs",
    "qemu-system-x86_64": "qemu-system-x86",
}


@dataclass(frozen=True)
class Release:
    """A Debian release, and the kernel it is known for."""

    name: str
    number: str
    kernel: str


RELEASES: Final = (
    Release("bullseye", "11", "5.10"),
    Release("bookworm", "12", "6.1"),
    Release("trixie", "13", "6.12"),
)


def check_tools() -> None:
    """Raises :class:`PreparationError` naming the packages that are missing."""
    missing = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    if missing:
        raise PreparationError(f"missing: apt-get install {' '.join(missing)}")


def mirror() -> str:
    """The URI of Debian's main archive as this machine's apt is set up."""
    sources = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*.*")]
    for source in sources:
        text = source.read_text(errors="replace") if source.is_file() else ""
        found = re.search(r"^(?:deb\s.*?|URIs:\s*)(https?://\S+/debian)/?\s", text, re.M)
        if found:
            return found[1]
    return _DEFAULT_MIRROR


@dataclass(frozen=True)
class Store:
    """The work directory."""

    work: Path

    def kernel(self, release: Release) -> Path:
        """The directory that ``release``'s newest kernel for virtual machines is unpacked in."""
        place = self.work / "kernels" / release.name
        if not place.exists():
            depends = self._apt(release.name, "apt-cache", "depends", "linux-image-cloud-amd64")
            names = re.findall(r"Depends: (linux-image-\S+)", depends)
            if not names:
                raise PreparationError(f"{release.name} has no linux-image-cloud-amd64")
            self._unpack(release.name, names[0], place)
        return place

    def busybox(self) -> Path:
        """A busybox that needs no libraries."""
        place = self.work / "busybox"
        if not place.exists():
            self._unpack(USERLAND, "busybox-static", place)
        return place / "bin" / "busybox"

    def root(self) -> Path:
        """An image of a Debian with Python and what the tests need."""
        wanted = requirements()
        name = digest(*(part.encode() for part in (*_PACKAGES, *wanted, _IMAGE_SIZE)))
        image = self.work / f"root-{name}.img"
        if not image.exists():
            tree, unfinished = self.work / f"root-{name}", image.with_suffix(".unfinished")
            shutil.rmtree(tree, ignore_errors=True)
            checked(
                [
                    "debootstrap",
                    "--variant=minbase",
                    f"--include={','.join(_PACKAGES)}",
                    USERLAND,
                    tree,
                    mirror(),
                ]
            )
            shutil.rmtree(tree / "var/cache/apt/archives")
            install(tree / SITE, wanted)
            checked(["chroot", tree, "python3", "-m", "compileall", "-q", f"/{SITE}"])
            checked(["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, unfinished, _IMAGE_SIZE])
            unfinished.rename(image)
            shutil.rmtree(tree)
        return image

    def _unpack(self, release: str, package: str, place: Path) -> None:
        downloads = self.work / "apt" / release / "packages"
        downloads.mkdir(parents=True, exist_ok=True)
        self._apt(release, "apt-get", "download", package, cwd=downloads)
        file = next(downloads.glob(f"{package}_*.deb"))
        unfinished = place.with_name(f"{place.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        checked(["dpkg-deb", "-x", file, unfinished])
        unfinished.rename(place)
        file.unlink()

    def _apt(self, release: str, *command: str, cwd: Path | None = None) -> str:
        """Run a command of apt's that knows ``release`` and nothing else."""
        base = self.work / "apt" / release
        sources = base / "sources.list"
        options = [
            *("-o", f"Dir::Etc::SourceList={sources}", "-o", "Dir::Etc::SourceParts=-"),
            *("-o", f"Dir::State={base}/state", "-o", f"Dir::Cache={base}/cache"),
            *("-o", "Dir::State::status=/dev/null", "-o", "APT::Sandbox::User=root"),
            *("-o", "APT::Architecture=amd64", "-o", "APT::Architectures=amd64"),
        ]
        if not sources.exists():
            for place in ("state/lists/partial", "cache/archives/partial"):
                (base / place).mkdir(parents=True, exist_ok=True)
            new = sources.with_name("sources.list.new")
            new.write_text(f"deb {mirror()} {release} main\n")
            new.rename(sources)
            try:
                checked(["apt-get", *options, "-q", "update"])
            except PreparationError:
                sources.unlink()
                raise
        return checked([command[0], *options, "-q", *command[1:]], cwd)


def requirements() -> list[str]:
    """What the plugin and its tests import, as the project says it."""
    needed = []
    for one in importlib.metadata.requires("pytest-mountns") or ():
        name, _, condition = one.partition(";")
        if condition.strip().replace('"', "'") in ("", "extra == 'test'"):
            needed.append(name.strip())
    return needed


def install(place: Path, wanted: Sequence[str], python: str = PYTHON) -> None:
    """Wheels for another Python than the one that runs this. Nothing is run in there."""
    options = ["--quiet", "--no-compile", f"--target={place}", "--only-binary=:all:"]
    pip = [sys.executable, "-m", "pip", "install", *options, f"--python-version={python}"]
    checked([*pip, *wanted])
