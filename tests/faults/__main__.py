"""Let every system call of entering, leaving and the channel fail in every way it may.

A run is recorded first: what a test on its way calls. Then each of these calls fails once with each
errno. Whatever happens, the test must not run un-isolated, the session goes on with a test that
passes, nothing is left, and what is said names the errno; or there is another way, and the test
passes. Prints a table of steps and errnos. Exit status 1 if there is any defect.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from .run import GOOD, Outcome, Runner, Way, all_cases, sample

#: To the engine, root that has to use a user namespace is an ordinary user.
_USER: Final = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
_LETTERS: Final = {"works": "w", "named": "n", "died": "d", "aborted": "a", "not reached": "."}


def ways() -> list[Way]:
    """Those that can be tried by whoever runs this."""
    plain = [Way("fork"), Way("pid", "pid=True"), Way("disk", "upper='disk'")]
    inline = [
        Way("inline", "process='inline'"),
        Way("inline-threads", "process='inline'", threads=3),
    ]
    # Of an ordinary user, with all ids that this user may map.
    shown_as_root = Way("shown-as-root", "user='root'", places=("/etc", "/usr/local"))
    writable = Way("writable", "user='root', writable=['/etc']", places=("/etc",))
    # newuidmap(1) is not found, so that the user has one id.
    one_id = replace(writable, name="writable-one-id", command=("env", "PATH=/no/programs"))
    guard = Way(
        "guard",
        command=(sys.executable, "-m", "tests.helpers.confined"),
        options=("--mountns", "--mountns-unavailable=guard"),
        guarded=True,
    )
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return [*plain, *inline, shown_as_root, writable, one_id, guard]
    as_user = [
        replace(way, name=f"user-{way.name}", command=_USER)
        for way in (*plain, *inline, shown_as_root)
    ]
    return [*plain, *inline, guard, *as_user]


def parser() -> argparse.ArgumentParser:
    summary, _, more = (__doc__ or "").partition("\n\n")
    made = argparse.ArgumentParser(prog="python -m tests.faults", description=summary, epilog=more)
    names = [way.name for way in ways()]
    made.add_argument("--way", nargs="+", choices=names, metavar="WAY", help=", ".join(names))
    made.add_argument("--errno", nargs="+", default=[], metavar="NAME")
    made.add_argument("--site", default="", metavar="TEXT", help="only sites that contain it")
    made.add_argument("--sample", type=int, metavar="COUNT", help="only so many, by chance")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--verbose", action="store_true", help="what was said of each fault")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    defects = 0
    wanted = options.way or [way.name for way in ways()]
    for way in ways():
        if way.name not in wanted:
            continue
        with tempfile.TemporaryDirectory(prefix="mountns-faults-", dir="/var/tmp") as place:
            runner = Runner(way, Path(place).resolve() / "run")
            sites = [site for site in runner.record() if options.site in site]
            cases = all_cases(sites, options.errno)
            if options.sample is not None:
                cases = sample(cases, options.sample, options.seed)
            outcomes = list(runner.try_all(cases))
        print(f"\n== {way.name}: {len(sites)} calls, {len(outcomes)} faults")
        print("\n".join(table(outcomes)))
        for outcome in outcomes:
            if options.verbose or not outcome.good:
                print(f"{' '.join(outcome.case)}: {outcome.kind}")
                print("".join(f"    {line}\n" for line in outcome.text.splitlines()[-25:]), end="")
        counts = Counter(outcome.kind for outcome in outcomes)
        print(", ".join(f"{kind}: {count}" for kind, count in counts.most_common()), flush=True)
        defects += sum(not outcome.good for outcome in outcomes)
    print(f"\n{defects} defects")
    return int(defects > 0)


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """Sites down, errnos across: w works otherwise, n a named error, d reported as a death.

    a: the session was aborted, loudly, because it could not leave a sandbox.
    """
    names = list(dict.fromkeys(outcome.case[1] for outcome in outcomes))
    sites: dict[str, dict[str, str]] = {}
    for outcome in outcomes:
        site, name = outcome.case
        letter = _LETTERS.get(outcome.kind, "X") if outcome.kind in GOOD else "X"
        # All calls of one place share a line, which shows the worst of them.
        row = sites.setdefault(site.rpartition(" ")[0], {})
        row[name] = max(row.get(name, ""), letter, key=".wndaX".find)
    width = max(map(len, sites), default=0)
    head = [f"{'':{width}}  {' '.join(names)}"]
    return head + [
        f"{site:{width}}  {' '.join(row.get(name, '').ljust(len(name)) for name in names)}"
        for site, row in sites.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
