"""A guard: a process that stays on the host and cannot write there, but for some places.

The pytest process makes it, and every test process enters it. It costs a test two system calls.

Things that do not work, and so are not done here:

* Guarding the pytest process itself: nobody can take a Landlock ruleset off again.
* Covering chmod(2), chown(2), utime(2) and setxattr(2): Landlock has no rights for them. A seccomp
  filter sees the numbers of a call and not its paths, so it could only forbid them everywhere, and
  ``shutil.copy`` in ``tmp_path`` would fail.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, final

from ..changes.changes import compile_globs
from ..linux.errno_advice import explain
from ..linux.errors import SandboxError, said
from ..linux.landlock import Ruleset, files_open_for_writing
from ..linux.pid_namespace import die_with_parent
from ..linux.untouched import os
from ..plan.guard import GuardPlan, is_allowed

_WHAT: Final = "guard this process with Landlock"


@final
@dataclass(frozen=True, slots=True)
class Guard:
    """A ruleset of Landlock's, and what it allows."""

    plan: GuardPlan
    ruleset: Ruleset
    #: The places and files that it allows, without symbolic links.
    allowed: tuple[str, ...]
    #: The places of the plan that were not there when it was made, so that no rule is possible.
    missing: tuple[str, ...] = ()

    def enter(self, parent: int) -> None:
        """Put this process under the guard, for good. ``parent``: see :meth:`.ForkedEntry.enter`.

        Raises :class:`SandboxError` if the kernel refuses.
        """
        die_with_parent(parent)
        try:
            self.ruleset.enforce()
        except OSError as error:
            raise _refused(error) from error

    def refuses(self, path: str) -> bool:
        """Whether it is the guard that keeps this process from changing ``path``.

        access(2) knows nothing of Landlock: it tells what would be allowed without it. An absolute
        path is meant, whose directory may be missing.
        """
        directory, name = os.path.split(path)
        place = os.path.join(os.path.realpath(directory), name)
        if is_allowed(place, self.allowed) or is_allowed(os.path.realpath(path), self.allowed):
            return False
        if os.path.exists(path) and os.access(path, os.W_OK):
            return True
        return os.access(directory, os.W_OK | os.X_OK)

    def why(self, path: str) -> str:
        """In words, why the guard refuses ``path`` although ``writes=`` may allow it; else ""."""
        if self.plan.globs and compile_globs(self.plan.globs).fullmatch(path):
            return (
                "writes= allows it by a pattern, and a guard can only allow files that exist and"
                ' whole directories ("/directory/**")'
            )
        if is_allowed(path, self.missing):
            return (
                "writes= allows it, but there is no rule for what is not there when a test begins"
            )
        return ""

    def close(self) -> None:
        """Let go of it. Processes that have entered it stay under it."""
        self.ruleset.close()


def make_guard(plan: GuardPlan, abi: int) -> Guard:
    """Make a guard as planned, for a kernel with version ``abi`` of Landlock.

    Raises :class:`SandboxError` if the kernel refuses.
    """
    allowed: list[str] = []
    missing: list[str] = []
    try:
        ruleset = Ruleset(abi, network=plan.no_network)
        try:
            for place in (*plan.places, *_matches(plan)):
                try:
                    ruleset.allow(place)
                except (FileNotFoundError, NotADirectoryError):
                    missing.append(place)
                else:
                    allowed.append(os.path.realpath(place))
            for file in files_open_for_writing():
                ruleset.allow(file)
        except BaseException:
            ruleset.close()
            raise
    except OSError as error:
        raise _refused(error) from error
    return Guard(plan, ruleset, tuple(allowed), tuple(missing))


def _matches(plan: GuardPlan) -> list[str]:
    """The files that the globs of a plan stand for now.

    They are looked for below the directory that a glob begins with; it has to begin with one.
    """
    found: list[str] = []
    for one in plan.globs:
        wanted = compile_globs([one])
        fixed = re.split(r"[*?[]", one)[0].rpartition("/")[0]
        for directory, _, names in os.walk(fixed or "/proc/self/no files"):
            found += filter(wanted.fullmatch, (os.path.join(directory, name) for name in names))
    return found


def _refused(error: OSError) -> SandboxError:
    return SandboxError(_WHAT, said(error), *explain(error.errno or 0, False, "landlock"))
