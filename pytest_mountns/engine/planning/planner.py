"""Makes the plans of one session's specs.

The machine is probed once. The mount table is read again when it has changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pwd
import stat
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, final

from ..linux.errors import SandboxError, Unavailable, said
from ..linux.mountinfo import is_below
from ..linux.namespaces import high, working_directory
from ..linux.untouched import os, posix, select
from ..plan.decide import plan
from ..plan.model import SHM, Features, Host, Plan, User
from ..plan.spec import SandboxSpec, SpecError, Volume
from ..probe.features import TRANSIENT_ERRNOS, ProbeResult, probe, probe_pid_namespace
from ..probe.host import survey
from ..probe.lowerdirs import possible_lowers, refused_lowers
from ..probe.trials import Trial

if TYPE_CHECKING:
    from ..layers.session import Sources
    from ..linux.subordinate_ids import IdMaps
    from .rootfs import RootPlanner
    from .writable_root import Copies


@final
class Planner:
    """Makes plans for sandboxes on this machine. It does nothing until the first one is asked for.

    ``places`` are directories that tests may write to in a sandbox, if the user may write to them
    on the host; the first one is the project. ``mounts_changed`` is called when all plans made so
    far are out of date: the mount table of the host has changed, or this run begins to use
    ``/dev/shm``. ``sources`` is called when the first root or layer is needed, and returns
    what unpacks it.
    """

    def __init__(
        self,
        places: Sequence[str],
        mounts_changed: Callable[[], None] = lambda: None,
        sources: Callable[[], Sources] | None = None,
    ) -> None:
        self._mounts_changed = mounts_changed
        self._make_sources = sources
        #: Made when the first root or layer is needed, like :attr:`_root_planner`.
        self._sources: Sources | None = None
        self._root_planner: RootPlanner | None = None
        #: Made when a user is first shown as root.
        self._copies: Copies | None = None
        #: What was found out about further ids then.
        self._ids: tuple[Trial, IdMaps | None] | None = None
        #: The directory that must be importable in every root.
        self._project = places[0] if places else os.getcwd()
        self._run_directories: list[str] = []
        #: Whether this process has entered the user namespace in which sandboxes are made.
        self._in_user_namespace = False
        home = os.path.expanduser("~")
        #: Directories that tests may write to in a sandbox.
        self.places = [*places, home, tempfile.gettempdir(), os.getcwd()]
        self._findings: ProbeResult | None = None
        #: Whether tests can have PID namespaces, when that was first asked for.
        self._pid_namespace: Trial | None = None
        self._host: Host | None = None
        #: A descriptor of ``/proc/self/mountinfo``, which the kernel notifies of changes.
        self._mount_table: int | None = None
        self._table_poll = select.poll()
        self._plans: dict[SandboxSpec, Plan] = {}
        #: What was in ``/dev/shm`` in the beginning, and when it was changed last.
        self._shm_before = _shm_entries()
        self._shm_looked_at = _shm_changed()
        self._used_shm = False
        #: Whether a directory of this run lies there.
        self._is_in_shm = any(is_below(os.path.realpath(place), SHM) for place in self.places)
        #: Directories that were tried as the lower of an overlay, and those that were refused.
        self._tried_lowers: set[str] | None = None
        self._unlayerable: frozenset[str] = frozenset()

    @property
    def findings(self) -> ProbeResult:
        """What this machine can do.

        It is probed when this is first read. If a trial has failed for a reason that may pass, as
        a lack of memory, it is probed again the next time.
        """
        if self._findings is not None:
            return self._findings
        findings = probe(self.places)
        if not any(one.errno in TRANSIENT_ERRNOS or one.of_process for one in findings.trials):
            self._findings = findings
        return findings

    @findings.setter
    def findings(self, known: ProbeResult) -> None:
        self._findings = known

    def plan(self, spec: SandboxSpec) -> Plan:
        """The plan of ``spec`` for this machine as it is now.

        Raises :class:`Unavailable` if this machine cannot make such a sandbox, :class:`SpecError`
        if the spec names a path, device or user that does not exist, and :class:`LayerError` if a
        root or layer cannot be read.
        """
        _check_volumes(spec.volumes)
        uses_shm = self._uses_shm()
        shows_other_shm = uses_shm != self._used_shm
        self._used_shm = uses_shm
        if self._table_changed() or shows_other_shm:
            self._host = None
            self._plans.clear()
            self._mounts_changed()
        return self._known_or_new(spec)

    def plan_on_stage(self, spec: SandboxSpec) -> Plan:
        """The plan of ``spec`` for the stage of a running test, which this thread is on.

        Raises as :meth:`plan`. The stage is older than the host's mounts of now, and may not follow
        them. So what is surveyed there is for this plan alone. Nor is it asked whether the host's
        have changed: the kernel tells that once, and a forked process has the same open file. It
        is for the next sandbox, and what would be closed then is in use by the test.
        """
        _check_volumes(spec.volumes)
        of_host = self._host, self._plans
        self._host, self._plans = None, {}
        try:
            return self._known_or_new(spec)
        finally:
            self._host, self._plans = of_host

    def _known_or_new(self, spec: SandboxSpec) -> Plan:
        known = self._plans.get(spec)
        if known is None:
            known = self._make(spec)
            if known.fake_root:
                known = self._with_ids(known)
            self._plans[spec] = known
        return known

    def _with_ids(self, plan: Plan) -> Plan:
        """The plan of a user who is shown as root, with all ids that this user may map."""
        if self._in_user_namespace:
            why = (
                "the pytest process is in a user namespace already, for tests that run inline;"
                " --mountns-process=fork"
            )
            return plan._replace(why_one_id=why)
        if self._ids is None:
            from ..probe.subordinate_ids import probe_subordinate_ids

            self._ids = probe_subordinate_ids()
        trial, maps = self._ids
        why = "" if maps else f"{trial.cause or trial.kernel}; {trial.remedy}"
        return plan._replace(id_maps=maps, why_one_id=why)

    def unpack(self, spec: SandboxSpec) -> None:
        """Unpack the root and the layers of ``spec``, and copy directories: that may take long.

        If that fails, nothing is raised here: :meth:`plan` raises it again.
        """
        takes_long = _has_root(spec) or spec.user == "root"
        features = self.findings.features if takes_long else None
        with contextlib.suppress(SandboxError):
            if features is not None and _has_root(spec):
                self._roots().unpack(spec, features)
            if features is not None and _has_writable_root(spec, features):
                self.plan(spec)

    def add_run_directory(self, directory: str) -> bool:
        """Show ``directory``, which belongs to the test run, in every root.

        Tests can write there; what they write is discarded. Returns whether the directory is new
        to this planner, so that plans made before may lack it.
        """
        if directory in self._run_directories:
            return False
        self._run_directories.append(directory)
        self._is_in_shm |= is_below(os.path.realpath(directory), SHM)
        self._plans = {spec: plan for spec, plan in self._plans.items() if not _has_root(spec)}
        return True

    def _roots(self) -> RootPlanner:
        if self._root_planner is None:
            from .rootfs import RootPlanner

            self._root_planner = RootPlanner(self._session_sources())
        return self._root_planner

    def _session_sources(self) -> Sources:
        if self._sources is None:
            from ..layers.session import Sources

            self._sources = self._make_sources() if self._make_sources else Sources()
        return self._sources

    def entered_user_namespace(self) -> None:
        """Drop what is known of the mounts, as this process is in another mount namespace now.

        It is called when the process has entered a user namespace in which sandboxes are made.
        """
        self._forget_table()
        self._in_user_namespace = True
        self._host = None
        self._plans.clear()

    def begin_in_fork(self) -> None:
        """In a fork of the process that has made plans: look out for changes of the mounts anew.

        The kernel tells of a change once for each opened file, and the parent is to hear of it.
        """
        self._forget_table()
        self._table_changed()

    def close(self) -> None:
        """Close the descriptor of the mount table, and let go of unpacked layers."""
        self._forget_table()
        if self._sources is not None:
            self._sources.close()
        if self._copies is not None:
            self._copies.close()

    def _forget_table(self) -> None:
        table, self._mount_table = self._mount_table, None
        if table is not None:
            os.close(table)

    def _make(self, spec: SandboxSpec) -> Plan:
        findings = self.findings
        features = findings.features
        if features is None:
            raise _unavailable(findings.obstacle)
        if spec.pid and not (trial := self._pid_namespace_trial(findings)).works:
            raise Unavailable(
                "a PID namespace of its own is not possible here",
                trial.kernel,
                trial.cause,
                trial.remedy,
            )
        if (spec.size or spec.inodes) and not features.memory_upper:
            reason = self._failed("extended attributes on tmpfs")
            raise Unavailable("limit an upper in memory: here uppers lie on disk", *reason)
        if spec.tmp_path == "own" and not features.layered_uppers:
            raise Unavailable(
                "make tmp_path a mount of its own",
                cause="before Linux 6.15 a directory of a mount that is in no namespace cannot be"
                " mounted",
                remedy='tmp_path="shared", which is slower and the same otherwise',
            )
        if self._host is None:
            self._host = self._survey(features)
        user = _user(spec.user, features)
        _check_devices(spec.devices)
        host = self._host
        if _has_writable_root(spec, features):
            host = self._with_writable_root(host, spec, features)
        if spec.root != "host":
            return self._plan_root(spec, host, features, user)
        resolved = tuple(
            dataclasses.replace(volume, target=_resolve(volume)) for volume in spec.volumes
        )
        spec = dataclasses.replace(spec, volumes=resolved)
        if spec.layers:
            return self._plan_root(spec, host, features, user)
        return plan(spec, host, features, user)

    def _with_writable_root(self, host: Host, spec: SandboxSpec, features: Features) -> Host:
        """The host, of which an ordinary user who is shown as root may write to more."""
        if self._copies is None:
            from .writable_root import Copies

            self._copies = Copies(self._session_sources().report)
        wanted = self._copies.divide(spec.writable, host)
        refused = self._refused(wanted.whole, features)
        return host._replace(
            writable_root=self._copies.make(wanted.without(refused)),
            unlayerable=self._unlayerable,
        )

    def _plan_root(
        self, spec: SandboxSpec, host: Host, features: Features, user: User | None
    ) -> Plan:
        return self._roots().plan(
            spec,
            host,
            features,
            user,
            project=self._project,
            run_directories=self._run_directories,
            in_user_namespace=self._in_user_namespace,
        )

    def _survey(self, features: Features) -> Host:
        """Read the mount table, and try directories as lowers that were not tried yet.

        Raises :class:`SandboxError` if that is not possible.
        """
        host = survey(user_namespace=features.user_namespace, places=self.places)
        if self._tried_lowers is None:
            # The probe has just tried all that there were.
            self._tried_lowers = set(possible_lowers(host))
            self._unlayerable = self.findings.unlayerable
        self._refused(possible_lowers(host), features)
        return host._replace(unlayerable=self._unlayerable, uses_shm=self._used_shm)

    def _refused(self, directories: Sequence[str], features: Features) -> frozenset[str]:
        """Which of the directories cannot be the lower of an overlay; each is tried once."""
        assert self._tried_lowers is not None
        new = [path for path in directories if path not in self._tried_lowers]
        if new:
            self._unlayerable |= refused_lowers(new, features)
            self._tried_lowers.update(new)
        return self._unlayerable.intersection(directories)

    def _uses_shm(self) -> bool:
        """Whether ``/dev/shm`` holds directories of this run, or what was made in it since.

        Once it does, it is taken to do so until the end: other programs use it as well, and each
        change would mean another plan.
        """
        if self._used_shm or self._is_in_shm or is_below(working_directory(), SHM):
            return True
        changed = _shm_changed()
        if changed == self._shm_looked_at:
            return False
        self._shm_looked_at = changed
        return bool(_shm_entries() - self._shm_before)

    def _pid_namespace_trial(self, findings: ProbeResult) -> Trial:
        trial = self._pid_namespace or probe_pid_namespace(findings, self.places)
        if trial.errno not in TRANSIENT_ERRNOS and not trial.of_process:
            self._pid_namespace = trial
        return trial

    def _failed(self, name: str) -> tuple[str, str, str]:
        """What the kernel said, the cause and the remedy of the trial ``name``."""
        trial = next(trial for trial in self.findings.trials if trial.name == name)
        return trial.kernel, trial.cause, trial.remedy

    def watch_mounts(self) -> None:
        """Open what tells of changes of the mount table.

        In the first test, a plugin that looks for files that tests leave open would find it.
        """
        self._table_changed()

    def _table_changed(self) -> bool:
        """Whether the mount table has changed since the last call; False at the first call.

        After a change, poll(2) reports an exceptional condition for the file once: see
        ``/proc/pid/mounts`` in proc_pid_mounts(5).
        """
        if self._mount_table is None:
            try:
                table = high(os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC))
            except OSError:
                # Without /proc the probe fails as well, with an explanation.
                return False
            self._table_poll = select.poll()
            self._table_poll.register(table, select.POLLPRI)
            self._mount_table = table
        told = self._table_poll.poll(0)
        return bool(told) and bool(told[0][1] & (select.POLLPRI | select.POLLERR))


def _shm_entries() -> frozenset[str]:
    try:
        return frozenset(posix.listdir(SHM))
    except OSError:
        return frozenset()


def _shm_changed() -> int:
    try:
        return posix.stat(SHM).st_mtime_ns
    except OSError:
        return 0


def _unavailable(obstacle: Trial | None) -> SandboxError:
    """The error of a machine, or a process, in which the trial ``obstacle`` has failed."""
    if obstacle is None:
        return Unavailable("this machine cannot isolate tests")
    kind = SandboxError if obstacle.of_process else Unavailable
    who = "process" if obstacle.of_process else "machine"
    return kind(
        f"this {who} cannot isolate tests: {obstacle.name} failed",
        obstacle.kernel,
        obstacle.cause,
        obstacle.remedy or "pytest --mountns-doctor",
    )


def _has_root(spec: SandboxSpec) -> bool:
    """Whether ``spec`` wants another root than the host's, or layers on it."""
    return spec.root != "host" or bool(spec.layers)


def _has_writable_root(spec: SandboxSpec, features: Features) -> bool:
    """Whether an ordinary user is shown as root, and may write to more of the host's root."""
    is_shown = features.user_namespace and spec.user == "root"
    return is_shown and spec.root == "host" and spec.writable != ()


def _user(wanted: str | int, features: Features) -> User | None:
    """The user that root's test process becomes.

    None if it stays the same user, or if an ordinary user becomes root in a user namespace. Raises
    :class:`SpecError` if there is no such user, :class:`Unavailable` if this process is not root.
    """
    if wanted in ("keep", "root", 0):
        return None
    if features.user_namespace:
        raise Unavailable(
            f"become user {wanted}",
            cause="only root can do that, and not in a user namespace",
            remedy='run as root, or leave out user; user="root" works for every user',
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


def _check_volumes(volumes: Sequence[Volume]) -> None:
    """Raise :class:`SpecError` if the source of one of ``volumes`` is not there."""
    for volume in volumes:
        if not os.path.exists(volume.source):
            raise SpecError(
                f"volume {volume}: there is no {volume.source} on the host",
                remedy=f"create it before the tests run: mkdir -p {volume.source}",
            )


def _check_devices(devices: Sequence[str]) -> None:
    """Raise :class:`SpecError` if one of ``devices`` is not a device node of the host."""
    for device in devices:
        try:
            mode = os.stat(device).st_mode
        except OSError as error:
            raise SpecError(
                f"device {device}: {said(error)}",
                remedy="name a node that the host has: ls -l /dev",
            ) from None
        if not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
            raise SpecError(f"device {device} is not a device node", remedy="ls -l /dev")


def _resolve(volume: Volume) -> str:
    """The target without symbolic links.

    A mount on a path with links would be made where the links of the host lead.
    """
    target = os.path.realpath(volume.target)
    if target == "/":
        raise SpecError(f"volume {volume}: its target is a link to /")
    return target
