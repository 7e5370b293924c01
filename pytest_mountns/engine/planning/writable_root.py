"""What an ordinary user who is shown as root may write to on the host's own root.

Each top-level directory gets an overlay over a skeleton: see :mod:`..layers.skeleton`. Skeletons
are made once and kept in the cache of layers; at the start of a session each is checked against
what it was made from. What is mounted below ``/`` is in the way: the kernel takes no lower that
contains a mount. So a directory with mounts is made of its entries, each of which is looked at in
the same way, and so is the directory that contains the cache, since lowers must not overlap.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final, final

from ..layers import skeleton
from ..layers.cache import Cache, Held
from ..layers.resolve import Report
from ..linux.errors import LayerError, SandboxError, said
from ..linux.mountinfo import is_below, owning
from ..linux.untouched import os
from ..plan.decide import is_system
from ..plan.model import PSEUDO, Host, WritableRoot
from ..plan.spec import SpecError

#: What is not written to unless it is asked for: homes of others, and what is mounted for a while.
_LEFT_OUT: Final = ("/home", "/media", "/mnt")
#: What is copied with everything in it, unless a directory is mounted there: it is small. So it is
#: no mountpoint, and can be removed as a whole.
_COPIED: Final = "/etc"


@final
@dataclass(frozen=True, slots=True)
class Division:
    """How the directories that may be written to are shown."""

    #: Those that are an overlay as a whole.
    whole: tuple[str, ...] = ()
    #: Those that are made of their entries.
    parted: tuple[str, ...] = ()
    #: Those of which everything is copied.
    copied: tuple[str, ...] = ()
    #: Entries of parted ones that are shown as they are.
    binds: tuple[str, ...] = ()
    #: Mountpoints that nothing may touch.
    untouched: frozenset[str] = frozenset()

    def without(self, refused: Collection[str]) -> Division:
        """The same, but the kernel has refused these as lowers: they are shown as they are."""
        whole = tuple(path for path in self.whole if path not in refused)
        return replace(self, whole=whole, binds=(*self.binds, *sorted(refused)))


def divide(wanted: Sequence[str] | None, host: Host, avoid: str) -> Division:
    """How the directories ``wanted`` of the host are shown; None for all of its root.

    ``avoid`` is a directory that no lower may contain. Directories that the user may write to on
    the host are left out: they have overlays anyway. Raises :class:`SpecError` if one of them does
    not exist.
    """
    found = _Found(host, os.path.realpath(avoid))
    if wanted is None or "/" in wanted:
        found.part("/")
    else:
        places = dict.fromkeys(os.path.realpath(path) for path in sorted(wanted))
        for path in places:
            if not os.path.isdir(path):
                raise SpecError(
                    f"writable: there is no directory {path} on the host",
                    remedy="name directories that exist",
                )
            if not any(is_below(path, other) for other in places):
                found.visit(path)
    automatic = (mount.mountpoint for mount in host.mounts if mount.fstype == "autofs")
    return Division(
        tuple(found.whole),
        tuple(found.parted),
        tuple(found.copied),
        tuple(found.binds),
        frozenset((*host.dead, *automatic)),
    )


@final
class _Found:
    """What :func:`divide` has found so far."""

    def __init__(self, host: Host, avoid: str) -> None:
        self._host = host
        self._avoid = avoid
        self._points = [*(mount.mountpoint for mount in host.mounts), *host.dead]
        self._written = {*host.writable, *host.mixed}
        self.whole: list[str] = []
        self.parted: list[str] = []
        self.copied: list[str] = []
        self.binds: list[str] = []

    def visit(self, path: str) -> None:
        """Look at a directory."""
        if is_system(path) or path in self._host.dead or path in self._written:
            return
        mount = owning(self._host.mounts, path)
        below = [point for point in self._points if is_below(point, path)]
        avoids = path == self._avoid or is_below(self._avoid, path)
        if mount is not None and (mount.read_only or mount.fstype in PSEUDO):
            self.binds.append(path)
        elif path == _COPIED and not avoids and self._host.files.issuperset(below):
            self.copied.append(path)
        elif avoids or below:
            self.part(path)
        else:
            self.whole.append(path)

    def part(self, path: str) -> None:
        """Take a directory apart."""
        self.parted.append(path)
        try:
            with os.scandir(path) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError:
            # It is empty, as all that may not be read.
            return
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                continue
            if path in _LEFT_OUT or entry.path == self._avoid:
                if entry.path not in self._written:
                    self.binds.append(entry.path)
            elif entry.path in _LEFT_OUT:
                self.part(entry.path)
            else:
                self.visit(entry.path)


@final
class Copies:
    """The skeletons of a session. Those in use are not removed from the cache meanwhile.

    ``report`` is called while they are made: see :mod:`..layers.resolve`.
    """

    def __init__(self, report: Report | None = None, cache: Cache | None = None) -> None:
        self._report = report or (lambda what, done, total: None)
        self._cache = cache or Cache()
        self._held: dict[str, tuple[Held, tuple[str, ...]]] = {}
        #: Names of skeletons that others have taken the place of.
        self._old: list[str] = []

    def divide(self, wanted: Sequence[str] | None, host: Host) -> Division:
        """See :func:`divide`."""
        return divide(wanted, host, self._cache.directory)

    def make(self, division: Division) -> WritableRoot:
        """Make the skeletons that are missing or old. Raises :class:`SandboxError`."""
        self._report("copy directories of /", 0, 0)
        overlays: list[tuple[str, tuple[str, ...]]] = []
        binds = list(division.binds)
        alone = [one for one in division.copied if os.path.dirname(one) not in division.parted]
        for path in (*division.parted, *alone):
            whole = [one for one in division.copied if one == path or os.path.dirname(one) == path]
            untouched = division.untouched
            held, places = self._skeleton(path, alone=True, whole=whole, untouched=untouched)
            overlays.append((path, (held.path,)))
            binds += [os.path.join(path, name) for name in places]
        for path in division.whole:
            held, _ = self._skeleton(path, alone=False)
            # What the user may not read is empty.
            below = (path,) if os.access(path, os.R_OK | os.X_OK) else ()
            overlays.append((path, (held.path, *below)))
        return WritableRoot(tuple(sorted(overlays)), tuple(binds))

    def _skeleton(
        self,
        path: str,
        *,
        alone: bool,
        whole: Collection[str] = (),
        untouched: Collection[str] = (),
    ) -> tuple[Held, tuple[str, ...]]:
        """The copies for a directory, and the files in it that are to be mounted."""
        question = skeleton.question(path, alone=alone, whole=whole)
        known = self._held.get(question)
        if known is None:
            try:
                known = self._find(question, path, alone, whole, untouched)
            except OSError as error:
                raise SandboxError(f"copy the directories of {path}", said(error)) from error
            self._held[question] = known
        return known

    def _find(
        self,
        question: str,
        path: str,
        alone: bool,
        whole: Collection[str],
        untouched: Collection[str],
    ) -> tuple[Held, tuple[str, ...]]:
        cache = self._cache
        facts = cache.recall(question)
        if facts is not None and skeleton.is_current(path, facts):
            held = cache.hold("skeleton", facts["diff_id"])
            if held is not None:
                return held, tuple(facts["places"])
        found = skeleton.survey(path, alone=alone, whole=whole, untouched=untouched)
        self._report("copy directories of /", 0, 0)
        held = cache.add(
            "skeleton", found.diff_id, path, lambda fd: skeleton.fill(found, fd), sync=False
        )
        now = found.facts()
        cache.remember(question, now)
        if facts is not None and facts["diff_id"] != now["diff_id"]:
            self._old.append(facts["diff_id"])
        return held, tuple(now["places"])

    def close(self) -> None:
        """Allow the cache to remove them, and remove those that have become old."""
        for held, _ in self._held.values():
            held.release()
        self._held.clear()
        # Only now: to remove ten thousand directories takes a while on some disks.
        while self._old:
            with contextlib.suppress(LayerError):
                # Another session may be doing it.
                self._cache.drop("skeleton", self._old.pop())
