"""From specs to plans for one session: probes once, reads the mount table when it changes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import select
import stat
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, final

from ..linux.errors import SandboxError, Unavailable, said
from ..linux.namespaces import high
from ..plan.decide import plan
from ..plan.model import Features, Host, Plan, User
from ..plan.spec import SandboxSpec, SpecError, Volume
from ..probe.features import PASSING, Findings, probe
from ..probe.host import survey
from ..probe.lowerdirs import lowers, refused_lowers
from ..probe.trials import Trial

if TYPE_CHECKING:
    from ..layers.session import Sources
    from .rootfs import RootFilesystems


@final
class Planner:
    """Plans for sandboxes on this machine. Costs nothing until the first is asked for.

    ``places``: directories a run needs to be writable where the user can write them.
    ``mounts_changed`` is called when the mount table is seen to be another than before.
    ``sources`` makes those of roots and layers, when they are first asked for.
    """

    def __init__(
        self,
        places: Sequence[str],
        mounts_changed: Callable[[], None] = lambda: None,
        sources: Callable[[], Sources] | None = None,
    ) -> None:
        self._mounts_changed = mounts_changed
        self._make_sources = sources
        self._sources: Sources | None = None
        self._bases: RootFilesystems | None = None
        #: What has to be importable in every root.
        self._project = places[0] if places else os.getcwd()
        self._kept: list[str] = []
        self._settled = False
        home = os.path.expanduser("~")
        #: Directories that tests are expected to write to.
        self.places = [*places, home, tempfile.gettempdir(), os.getcwd()]
        self._findings: Findings | None = None
        self._host: Host | None = None
        self._table: int | None = None
        self._plans: dict[SandboxSpec, Plan] = {}
        self._tried: set[str] | None = None
        self._unlayerable: frozenset[str] = frozenset()

    @property
    def findings(self) -> Findings:
        """What this machine can do; probed when first asked for, and again if what stands in the
        way may pass.
        """
        findings = self._findings or probe(self.places)
        if PASSING.isdisjoint(trial.errno for trial in findings.trials):
            self._findings = findings
        return findings

    @findings.setter
    def findings(self, known: Findings) -> None:
        self._findings = known

    def plan(self, spec: SandboxSpec) -> Plan:
        """The plan of ``spec`` here and now.

        Raises :class:`Unavailable` if this machine cannot make it, :class:`SpecError` if the
        spec names what is not there.
        """
        for volume in spec.volumes:
            if not os.path.exists(volume.source):
                raise SpecError(
                    f"volume {volume}: there is no {volume.source} on the host",
                    remedy=f"create it before the tests run: mkdir -p {volume.source}",
                )
        if self._table_changed():
            self._host = None
            self._plans.clear()
            self._mounts_changed()
        known = self._plans.get(spec)
        if known is None:
            known = self._plans[spec] = self._make(spec)
        return known

    def prepare(self, spec: SandboxSpec) -> None:
        """Unpack what ``spec`` needs, which may take its time. What fails is said by its plan."""
        features = self.findings.features if _has_base(spec) else None
        if features is not None:
            with contextlib.suppress(SandboxError):
                self._based().prepare(spec, features)

    def keep(self, directory: str) -> None:
        """Every root has this directory of the run, for tests to write to; what they write goes."""
        if directory not in self._kept:
            self._kept.append(directory)
            self._plans = {spec: plan for spec, plan in self._plans.items() if not _has_base(spec)}

    def _based(self) -> RootFilesystems:
        if self._bases is None:
            from ..layers.session import Sources
            from .rootfs import RootFilesystems

            self._sources = self._make_sources() if self._make_sources else Sources()
            self._bases = RootFilesystems(self._sources)
        return self._bases

    def forget_mounts(self) -> None:
        """This process has moved to another mount namespace, in a user namespace of its own."""
        self._forget_table()
        self._settled = True
        self._host = None
        self._plans.clear()

    def close(self) -> None:
        """Let go of the mount table, and of layers."""
        self._forget_table()
        if self._sources is not None:
            self._sources.close()

    def _forget_table(self) -> None:
        if self._table is not None:
            os.close(self._table)
            self._table = None

    def _make(self, spec: SandboxSpec) -> Plan:
        findings = self.findings
        features = findings.features
        if features is None:
            raise _unavailable(findings.obstacle)
        if spec.pid and not features.pid_namespace:
            trial = self.findings.trials[-1]
            raise Unavailable(
                "a PID namespace of its own is not possible here",
                trial.kernel,
                trial.cause,
                trial.remedy,
            )
        if (spec.size or spec.inodes) and not features.memory_upper:
            reason = self._failed("extended attributes on tmpfs")
            raise Unavailable("limit an upper in memory: here uppers lie on disk", *reason)
        if self._host is None:
            self._host = self._survey(features)
        user = _user(spec.user, features)
        _check_devices(spec.devices)
        if spec.root != "host":
            return self._plan_on_base(spec, self._host, features, user)
        resolved = tuple(
            dataclasses.replace(volume, target=_resolve(volume)) for volume in spec.volumes
        )
        spec = dataclasses.replace(spec, volumes=resolved)
        if spec.layers:
            return self._plan_on_base(spec, self._host, features, user)
        return plan(spec, self._host, features, user)

    def _plan_on_base(
        self, spec: SandboxSpec, host: Host, features: Features, user: User | None
    ) -> Plan:
        return self._based().plan(
            spec,
            host,
            features,
            user,
            project=self._project,
            kept=self._kept,
            settled=self._settled,
        )

    def _survey(self, features: Features) -> Host:
        """Raises :class:`SandboxError`."""
        host = survey(user_namespace=features.user_namespace, places=self.places)
        if self._tried is None:
            # The probe has tried them just now.
            self._tried = set(lowers(host))
            self._unlayerable = self.findings.unlayerable
        new = [path for path in lowers(host) if path not in self._tried]
        if new:
            self._unlayerable |= refused_lowers(new, features)
            self._tried.update(new)
        return dataclasses.replace(host, unlayerable=self._unlayerable)

    def _failed(self, name: str) -> tuple[str, str, str]:
        """What the kernel said, cause and remedy of a trial."""
        trial = next(trial for trial in self.findings.trials if trial.name == name)
        return trial.kernel, trial.cause, trial.remedy

    def _table_changed(self) -> bool:
        """Whether the mount table is another than at the last call; the first time it is not.

        proc_pid_mountinfo(5): the file polls as exceptional once after each change.
        """
        if self._table is None:
            try:
                self._table = high(os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC))
            except OSError:
                # The probe will say it better.
                return False
        poll = select.poll()
        poll.register(self._table, select.POLLPRI)
        return any(events & (select.POLLPRI | select.POLLERR) for _, events in poll.poll(0))


def _unavailable(obstacle: Trial | None) -> Unavailable:
    if obstacle is None:
        return Unavailable("this machine cannot isolate tests")
    return Unavailable(
        f"this machine cannot isolate tests: {obstacle.name} failed",
        obstacle.kernel,
        obstacle.cause,
        obstacle.remedy or "pytest --mountns-doctor",
    )


def _has_base(spec: SandboxSpec) -> bool:
    return spec.root != "host" or bool(spec.layers)


def _user(wanted: str | int, features: Features) -> User | None:
    """Whom root's test process becomes; None if it stays who it is, or becomes a fake root.

    Raises :class:`SpecError`, :class:`Unavailable`.
    """
    if wanted in ("keep", "root", 0):
        return None
    if features.user_namespace:
        raise Unavailable(
            f"become user {wanted}",
            cause="only root can, and not in a user namespace",
            remedy='run as root, or leave out user (user="root" is a fake root)',
        )
    try:
        known = pwd.getpwnam(wanted) if isinstance(wanted, str) else pwd.getpwuid(wanted)
    except KeyError:
        if isinstance(wanted, int):
            return User(wanted, wanted)
        raise SpecError(
            f"user {wanted!r}: the host knows no such user",
            remedy=f"useradd {wanted}, or give a uid as a number",
        ) from None
    groups = os.getgrouplist(known.pw_name, known.pw_gid)
    return User(known.pw_uid, known.pw_gid, tuple(groups), known.pw_name, known.pw_dir)


def _check_devices(devices: Sequence[str]) -> None:
    """Raises :class:`SpecError`."""
    for device in devices:
        try:
            mode = os.stat(device).st_mode
        except OSError as error:
            raise SpecError(
                f"device {device}: {said(error)}",
                remedy="name a node that the host has: ls -l /dev",
            ) from None
        if not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
            raise SpecError(f"device {device} is no device node", remedy="ls -l /dev")


def _resolve(volume: Volume) -> str:
    """The target without symlinks: mounts on a path that has some would miss the sandbox."""
    target = os.path.realpath(volume.target)
    if target == "/":
        raise SpecError(f"volume {volume}: its target is a link to /")
    return target
