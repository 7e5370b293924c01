"""End pytest by SIGKILL at random instants, and look for what is left: mounts, files, processes.

A session runs some tests, each of which writes everywhere; those with a PID namespace leave a
process behind. It is killed at an instant of its life that chance chooses. In the ways with "any",
"crashes" and "faults" one of all its processes is killed, as a test process or a supervisor of
system calls, and the session has to end by itself. Exit status 1 if anything is left or does not
end.
"""

from __future__ import annotations

import argparse
import os
import pickle
import pwd
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pytest_mountns.engine.linux import syscalls

from .run import WAYS, Range, Tally, Way

_MS_SHARED: Final = 0x100000


def parser() -> argparse.ArgumentParser:
    summary, _, more = (__doc__ or "").partition("\n\n")
    made = argparse.ArgumentParser(prog="python -m tests.kills", description=summary, epilog=more)
    names = [way.name for way in WAYS]
    made.add_argument("--way", nargs="+", choices=names, default=names, metavar="WAY")
    made.add_argument("--count", type=int, default=250, help="kills for each way; default: 250")
    made.add_argument("--seed", type=int, default=int(time.time()))
    made.add_argument("--user", metavar="NAME", help="as root: run the sessions as this user")
    made.add_argument("--work", default="/var/tmp", help="where the projects lie")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    user = pwd.getpwnam(options.user) if options.user else None
    print(f"seed {options.seed}")
    print(table([])[0], flush=True)
    tallies = []
    for way in WAYS:
        if way.name not in options.way:
            continue
        with tempfile.TemporaryDirectory(prefix="mountns-kills-", dir=options.work) as place:
            if user is not None:
                os.chown(place, user.pw_uid, user.pw_gid)
            tallies.append(in_child(way, Path(place).resolve(), options, user))
        print(table(tallies)[-1], flush=True)
    for tally in tallies:
        for kind, instants in tally.left.items():
            if instants:
                print(f"{tally.way}: {kind} left by kills at {'; '.join(instants)}")
    return int(not all(tally.clean for tally in tallies))


def in_child(
    way: Way, place: Path, options: argparse.Namespace, user: pwd.struct_passwd | None
) -> Tally:
    """The tally of one way, which a process of its own counts."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                set_apart()
            if user is not None:
                os.initgroups(user.pw_name, user.pw_gid)
                os.setgid(user.pw_gid)
                os.setuid(user.pw_uid)
                os.environ["HOME"] = user.pw_dir
                # setuid(2) has cleared it, and only a dumpable process may write the maps of a user
                # namespace (user_namespaces(7)).
                syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
            with open(writer, "wb") as file:
                pickle.dump(Range(way, place, options.seed).try_all(options.count), file)
        except BaseException:  # noqa: BLE001 - said here, for the parent has no result
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        data = file.read()
    os.waitpid(child, 0)
    if not data:
        raise SystemExit(f"{way.name}: no result")
    tally = pickle.loads(data)
    assert isinstance(tally, Tally)
    return tally


def set_apart() -> None:
    """Enter a mount namespace where nobody else mounts, with all mounts shared as is usual."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_PRIVATE | syscalls.MS_REC)
    syscalls.mount(None, "/", None, _MS_SHARED | syscalls.MS_REC)


def table(tallies: Sequence[Tally]) -> list[str]:
    head = (
        f"{'way':15} {'kills':>6} {'too late':>9} {'mounts':>7} {'files':>6} {'processes':>9}"
        f" {'hangs':>6}  depths"
    )
    return [
        head,
        *(
            f"{t.way:15} {t.kills:6} {t.ended:9} {len(t.left['mounts']):7}"
            f" {len(t.left['files']):6} {len(t.left['processes']):9} {len(t.left['hangs']):6}"
            f"  {', '.join(f'{depth}: {n}' for depth, n in sorted(t.depths.items()))}"
            for t in tallies
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
