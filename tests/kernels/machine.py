"""One boot: a kernel, the root filesystem, a job; and what the job has written.

The machine is qemu's, without acceleration and without a network. Its disks: the root image (what
is written to it is forgotten), a tar with the checkout and the plugin, and an empty one that the
job leaves a tar of results on.
"""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.conformance.fetch import CHECKOUT, PreparationError, Workshop, checked

from .fetch import SITE, Store

#: In the order in which they have to be loaded. What a kernel has built in is no file there.
_MODULES: Final = (
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "fuse",
    "loop",
)
_INIT: Final = """#!/bin/busybox sh
busybox mount -t devtmpfs devtmpfs /dev
for module in {modules}; do busybox insmod /$module.ko; done
busybox mount -t ext4 /dev/vda /new
if [ -e /overlay.ko ]; then busybox cp /overlay.ko /new; fi
busybox mount --move /dev /new/dev
exec busybox switch_root /new /bin/sh -c '
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir /checkout
tar -xf /dev/vdb -C /
python3 /checkout/tests/kernels/guest.py "$@" || echo the job has failed
tar -cf /dev/vdc -C /run/results .
sync
echo o >/proc/sysrq-trigger
sleep 60' job {job}
"""
_CHECKOUT: Final = (
    "conftest.py",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "tests",
    "examples",
    "docs",
)
_RESULTS_BYTES: Final = 64 << 20


def make_initramfs(kernel: Path, busybox: Path, place: Path, job: Sequence[str]) -> Path:
    """The busybox, the modules, and an init that goes on to the root image and starts the job."""
    tree = place / "initramfs"
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("bin", "dev", "new"):
        (tree / name).mkdir(parents=True)
    shutil.copy(busybox, tree / "bin/busybox")
    found = []
    for module in (*_MODULES, "overlay"):
        for path in kernel.glob(f"**/modules/**/{module}.ko*"):
            data = path.read_bytes()
            (tree / f"{module}.ko").write_bytes(
                lzma.decompress(data) if path.suffix == ".xz" else data
            )
            found.append(module)
    init = tree / "init"
    # The job itself loads the last one, after it has looked at the machine without it.
    loaded = " ".join(module for module in found if module != "overlay")
    init.write_text(_INIT.format(modules=loaded, job=" ".join(job)))
    init.chmod(0o755)
    archive = place / "initramfs.cpio"
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    with archive.open("wb") as file:
        subprocess.run(
            [busybox, "cpio", "-o", "-H", "newc"],
            cwd=tree,
            input=names.encode(),
            stdout=file,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    return archive


def pack_checkout(wheel: Path, place: Path, site: str = SITE) -> Path:
    """The tests, and the plugin as it is installed: from the wheel."""
    archive = place / "checkout.tar"
    with tarfile.open(archive, "w") as tar:
        for name in _CHECKOUT:
            tar.add(CHECKOUT / name, f"checkout/{name}", filter=_as_root)
        unpacked = place / "wheel"
        shutil.rmtree(unpacked, ignore_errors=True)
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(unpacked)
        for path in sorted(unpacked.iterdir()):
            tar.add(path, f"{site}/{path.name}", filter=_as_root)
    return archive


def _as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if "__pycache__" in entry.name or "/suites/.pytest-tmp" in entry.name:
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


def run_job(
    kernel: Path, store: Store, workshop: Workshop, place: Path, job: Sequence[str], seconds: float
) -> Path:
    """Boot ``kernel``, run the job, power off. Returns the directory of its results.

    Raises :class:`PreparationError` if there are none.
    """
    place.mkdir(parents=True, exist_ok=True)
    results = place / "results"
    shutil.rmtree(results, ignore_errors=True)
    disk = place / "results.tar"
    with disk.open("wb") as file:
        file.truncate(_RESULTS_BYTES)
    drives: list[str | Path] = []
    for image, more in (
        (store.root(), ",snapshot=on"),
        (pack_checkout(workshop.wheel(), place), ",readonly=on"),
        (disk, ""),
    ):
        drives += ["-drive", f"file={image},format=raw,if=virtio{more}"]
    console = place / "console.txt"
    command = [
        *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max"),
        *("-m", "2048", "-smp", str(min(os.cpu_count() or 1, 4))),
        *("-display", "none", "-monitor", "none", "-no-reboot", "-nic", "none"),
        *("-serial", f"file:{console}"),
        *("-kernel", next(kernel.glob("boot/vmlinuz-*"))),
        *("-initrd", make_initramfs(kernel, store.busybox(), place, job)),
        # Without the last one a kernel gives up where the machine is too busy for its timer to tick
        # in time.
        *("-append", "console=ttyS0 quiet panic=-1 rdinit=/init no_timer_check"),
        *drives,
    ]
    process = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise PreparationError(f"not done after {seconds:.0f} s; see {console}") from None
    finally:
        process.kill()
        process.wait()
    results.mkdir()
    try:
        checked(["tar", "-xf", disk, "-C", results])
    except PreparationError as error:
        raise PreparationError(f"no results; see {console}: {error}") from error
    disk.unlink()
    return results
