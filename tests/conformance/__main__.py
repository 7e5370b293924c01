"""Run other projects' test suites plainly and with --mountns, and compare outcome by outcome.

Fetches the suites of tests/conformance/suites.toml from the package registry, gives each a virtual
environment of its own with this checkout installed, and runs it three times: plainly, plainly
again (a test that differs between the two is unstable and is left out), and with --mountns. Every
report of every test is compared, subtests included; then what the run left on the host is looked
for. Exit status 1 if anything differs that the list does not allow.

The suites have a home directory of their own in the work directory, because plain runs litter it.
What was fetched and built is kept there for the next time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from . import report, suites
from .fetch import CHECKOUT, SOURCES, PreparationError, Workshop, clean_environ
from .run import run_suite


def parser() -> argparse.ArgumentParser:
    summary, _, more = (__doc__ or "").partition("\n\n")
    made = argparse.ArgumentParser(
        prog="python -m tests.conformance",
        description=summary,
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--suite", nargs="+", action="extend", metavar="NAME", help="only these")
    made.add_argument("--process", choices=["auto", "fork", "module", "inline"], default="auto")
    made.add_argument("--user", metavar="NAME", help="as root: run everything as this user")
    made.add_argument("--plain-only", action="store_true", help="no plugin: are the suites sound?")
    made.add_argument("--python", metavar="PY", help="default: this one; with --user, Debian's")
    made.add_argument("--work", type=Path, metavar="DIR", help="default: in the cache directory")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    made.add_argument("--jobs", type=int, default=1, help="suites at a time (times then mean less)")
    made.add_argument("--keep", action="store_true", help="keep the trees and homes of the runs")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parser().parse_args(arguments)
    try:
        chosen = suites.select(suites.load(), options.suite)
    except ValueError as error:
        parser().error(str(error))
    if options.user and options.user != pwd.getpwuid(os.geteuid()).pw_name:
        if os.geteuid() != 0:
            parser().error("--user needs root")
        return as_user(options.user, options)

    work = (options.work or default_work()).resolve()
    try:
        work.mkdir(parents=True, exist_ok=True)
        workshop = Workshop(work, options.python or sys.executable)
        print(
            f"{pwd.getpwuid(os.geteuid()).pw_name}, {workshop.key}, Linux {platform.release()}, "
            f"process={options.process}, work directory {work}"
        )
        workshop.environment("tools")
        if not options.plain_only:
            workshop.wheel()
    except (PreparationError, OSError) as error:
        print(f"cannot begin: {error}", file=sys.stderr)
        return 2
    run = partial(
        run_suite,
        workshop=workshop,
        process=options.process,
        plain_only=options.plain_only,
        keep=options.keep,
        say=partial(print, flush=True),
    )
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(run, chosen))
    print()
    print("\n".join(report.lines(results)))
    if options.json:
        options.json.write_text(json.dumps(report.as_json(results), indent=1) + "\n")
    return int(any(map(report.failed, results)))


def default_work() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "pytest-mountns" / "conformance"


def as_user(name: str, options: argparse.Namespace) -> int:
    """Start this command again as someone else, who may be able to read neither tree nor Python.

    They get a copy of both that they can only read, and a file for the results.
    """
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        parser().error(f"no user named {name}")
    work = options.work
    if work and not work.exists():
        work.mkdir(parents=True)
        os.chown(work, user.pw_uid, user.pw_gid)
    command = [options.python or "/usr/bin/python3", "-m", "tests.conformance"]
    command += ["--process", options.process, "--jobs", str(options.jobs)]
    command += ["--work", str(work.resolve())] if work else []
    command += ["--suite", *options.suite] if options.suite else []
    command += ["--plain-only"] if options.plain_only else []
    command += ["--keep"] if options.keep else []
    with tempfile.TemporaryDirectory(prefix="mountns-conformance-") as directory:
        copy = Path(directory)
        copy.chmod(0o755)
        for source in (*SOURCES, "tests/__init__.py", "tests/conformance"):
            copy_readable(CHECKOUT / source, copy / source)
        results = copy / "results.json"
        if options.json:
            results.touch()
            os.chown(results, user.pw_uid, user.pw_gid)
            command += ["--json", str(results)]
        environ = clean_environ(os.environ)
        environ.update(HOME=user.pw_dir, USER=name, LOGNAME=name, SHELL=user.pw_shell)
        # They cannot use root's directories, and bytecode would be written into the copy.
        environ.update(PATH="/usr/local/bin:/usr/bin:/bin", PYTHONDONTWRITEBYTECODE="1")
        done = subprocess.run(
            command,
            cwd=copy,
            env=environ,
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=os.getgrouplist(name, user.pw_gid),
            umask=0o022,
            check=False,
        )
        if options.json and results.stat().st_size:
            shutil.copyfile(results, options.json)
        return done.returncode


def copy_readable(source: Path, target: Path) -> None:
    if source.is_dir():
        for path in source.iterdir():
            if path.name != "__pycache__":
                copy_readable(path, target / path.name)
    elif source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


if __name__ == "__main__":
    sys.exit(main())
