"""Run tests on the kernels of other Debian releases, under qemu, and on this machine's.

Kernels and a root filesystem come from the Debian mirror that apt knows. Each kernel is booted
once, two at a time; the tests run as root and as an ordinary user. Needs root, qemu-system-x86,
debootstrap, and an hour or two. Exit status 1 if a test fails. A run of everything writes its table
into docs/kernels.md.
"""

from __future__ import annotations

import argparse
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tests.conformance.__main__ import default_work
from tests.conformance.fetch import CHECKOUT, PreparationError, Workshop
from tests.matrix import page

from .fetch import RELEASES, Release, Store, check_tools, install, requirements
from .guest import SUITE
from .machine import pack_checkout, run_job
from .results import COLUMNS, Row, rows

PAGE: Final = CHECKOUT / "docs" / "kernels.md"
DOCTOR_PAGE: Final = CHECKOUT / "docs" / "doctor.md"
HERE: Final = "here"
TESTS: Final = (
    "tests/engine",
    "tests/runners/test_crash.py",
    "tests/test_fixtures.py",
    "tests/config/test_markers.py",
    "tests/runners/test_outcomes.py",
    "tests/runners/test_inline_threads.py",
    "tests/session/test_scopes.py",
    "tests/session/test_guard.py",
    "tests/session/test_old_kernels.py",
    "tests/session/test_unavailable.py",
    "tests/test_crashes.py",
    "tests/test_fault_points.py",
    "tests/test_faults_key.py",
    "tests/test_shown_as_root.py",
)
_NAMES: Final = (*(release.name for release in RELEASES), HERE)
_SECONDS: Final = 7200.0
#: A machine has two cores, for a test and what it starts, and uses little more than one.
_AT_ONCE: Final = 2
_HEAD: Final = ("system", "kernel", "who", "how a sandbox is made", "tests")
#: An ordinary user of this machine who owns nothing and has no entry in /etc/passwd.
_NOBODY_ELSE: Final = 54322


def parser() -> argparse.ArgumentParser:
    summary, _, more = (__doc__ or "").partition("\n\n")
    made = argparse.ArgumentParser(
        prog="python -m tests.kernels",
        description=summary,
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--on", nargs="+", metavar="NAME", help=f"of {', '.join(_NAMES)}")
    made.add_argument("--work", type=Path, metavar="DIR", help="default: in the cache directory")
    made.add_argument("--page", type=Path, metavar="FILE", help="write the table there")
    made.add_argument("--seconds", type=float, default=_SECONDS, help="for each kernel")
    made.add_argument("--at-once", type=int, default=_AT_ONCE, metavar="N", help="kernels")
    made.add_argument("tests", nargs="*", help="default: the engine's and the core tests")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    # Of "--on bullseye here tests/engine" argparse takes all for names.
    if options.on:
        options.tests = [*(name for name in options.on if "/" in name), *options.tests]
        options.on = [name for name in options.on if "/" not in name]
        if unknown := set(options.on) - set(_NAMES):
            parser().error(f"--on: {', '.join(sorted(unknown))}: choose from {', '.join(_NAMES)}")
    work = (options.work or default_work().with_name("kernels")).resolve()
    tests = options.tests or TESTS
    wanted = options.on or [*_NAMES]
    found: list[Row] = []
    try:
        work.mkdir(parents=True, exist_ok=True)
        store, workshop = Store(work), Workshop(work, sys.executable)
        if wanted != [HERE]:
            check_tools()
        releases = [release for release in RELEASES if release.name in wanted]
        # What the machines share is fetched and built before any of them starts.
        kernels = [store.kernel(release) for release in releases]
        if releases:
            store.root()
            store.busybox()
            workshop.wheel()

        def boot(release: Release, kernel: Path) -> list[Row]:
            began = time.monotonic()
            place = work / "runs" / release.name
            results = run_job(kernel, store, workshop, place, tests, options.seconds)
            return say(f"Debian {release.number}", results, began)

        with ThreadPoolExecutor(options.at_once) as pool:
            for booted in pool.map(boot, releases, kernels):
                found += booted
        if HERE in wanted:
            began = time.monotonic()
            results = run_here(workshop, work / "runs" / HERE, tests)
            found += say("this machine", results, began)
    except (PreparationError, OSError) as error:
        print(f"cannot go on: {error}", file=sys.stderr)
        return 2
    table = page.table(_HEAD, [row.cells() for row in found])
    gives = page.table(("kernel", "who", *COLUMNS), [row.gives() for row in found])
    print("\n".join([*gives, "", *table]))
    if options.page or not (options.on or options.tests):
        page.write("kernels", table, options.page or PAGE)
        page.write("kernels-give", gives, options.page or PAGE)
    if not options.page and "bookworm" in wanted:
        for block, name in (("no-overlay", "no-overlay.txt"), ("user", "user-doctor.txt")):
            said = (work / "runs" / "bookworm" / "results" / name).read_text()
            page.write(block, ["```", *said.splitlines(), "```"], DOCTOR_PAGE)
    return int(not all(row.good for row in found))


def say(system: str, results: Path, began: float) -> list[Row]:
    found = list(rows(system, results))
    for row in found:
        seconds = time.monotonic() - began
        print(f"{' | '.join(row.cells())} (after {seconds:.0f} s, {results})", flush=True)
        print("".join(f"    failed: {name}\n" for name in row.failed), end="", flush=True)
    return found


def run_here(workshop: Workshop, place: Path, tests: Sequence[str]) -> Path:
    """The same on this machine, as it is, from copies that an ordinary user can read."""
    results = place / "results"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    python = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
    version = subprocess.run(
        [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    base = Path(tempfile.mkdtemp(prefix="mountns-kernels-", dir="/var/tmp"))
    try:
        base.chmod(0o755)
        install(base / "site", requirements(), version)
        packed = pack_checkout(workshop.wheel(), place, site="site")
        subprocess.run(["tar", "-xf", packed, "-C", base], check=True)
        for name, uid in (("root", 0), ("user", _NOBODY_ELSE)):
            home = base / name
            shutil.copytree(base / "checkout", home / "checkout")
            subprocess.run(["chown", "-R", f"{uid}:{uid}", home], check=True)
            _run_as(uid, home, python, tests, results / name, base / "site")
    finally:
        shutil.rmtree(base)
    return results


def _run_as(
    uid: int, home: Path, python: str, tests: Sequence[str], output: Path, site: Path
) -> None:
    checkout = home / "checkout"
    environ = {
        "HOME": pwd.getpwuid(0).pw_dir if uid == 0 else str(home),
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(site),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    # In the newer form a test can say nothing but whether it has passed.
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "junit_family=xunit1"]
    for arguments, suffix in (
        (["-m", "pytest_mountns.reports.doctor", "--json"], ".json"),
        ([*pytest, "--junitxml=suite.xml", SUITE], "-suite.txt"),
        ([*pytest, "--junitxml=junit.xml", *tests], ".txt"),
    ):
        with open(f"{output}{suffix}", "wb") as file:
            subprocess.run(
                [python, *arguments],
                user=uid,
                group=uid,
                extra_groups=[],
                cwd=checkout,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
            )
    for name, suffix in (("suite.xml", "-suite.xml"), ("junit.xml", ".xml")):
        if (checkout / name).exists():
            shutil.copy(checkout / name, f"{output}{suffix}")


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("python -m tests.kernels: needs root")
    sys.exit(main())
