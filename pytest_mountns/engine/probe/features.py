"""Finds out what this kernel lets this user do, by trying every step of making a sandbox.

The user id decides nothing. :func:`probe` makes a sandbox step by step and notes what came of each
step: in processes that it forks or, as root, in this one if all works. Nothing of these sandboxes
is left. The result decides how the sandboxes of a session are made. The doctor shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple, final

from ..linux import syscalls as sys
from ..linux.attributes import OVERFLOW_ID
from ..linux.environment import Environment, apparmor_profile, read_environment
from ..linux.errors import SandboxError
from ..linux.mountinfo import is_below, out_of_reach, parse, read
from ..linux.namespaces import (
    change_directory,
    enter_mount_namespace,
    enter_user_namespace,
    make_stage,
    signals_held,
    uts_namespace_kept,
    way_back,
    working_directory,
)
from ..linux.sockets import _socket
from ..linux.untouched import open, os
from ..mount.new_api import seal
from ..plan.decide import plan
from ..plan.exposed import exposed_paths
from ..plan.model import Features, Host, Plan, User
from ..plan.spec import SandboxSpec
from ..sandbox.create import enter, make
from ..sandbox.disk_uppers import DiskUppers
from .host import never_waits, survey
from .lowerdirs import (
    change_to_scratch,
    find_refused,
    mount_trial_overlay,
    possible_lowers,
    try_overlay,
)
from .trials import Answer, Trial, TrialLog, try_in_child

#: The names of errors that may not occur when a step is tried again a moment later.
TRANSIENT_ERRNOS: Final = frozenset({"ENOMEM", "EMFILE", "ENFILE", "EAGAIN", "EINTR"})
#: The name of the trial of :func:`probe_pid_namespace`.
PID_NAMESPACE: Final = "a PID namespace with its own /proc"
#: The name of the trial of a whole sandbox.
_WHOLE: Final = "a whole root and pivot_root"
#: What lays one upper over another.
_NEED_LAYERED_UPPERS: Final = "scope=, checkpoint(), crashes(), fault_points() and add_layer()"


@final
class ProbeResult(NamedTuple):
    """What a probe has found out about this machine."""

    #: All steps that were tried, in order.
    trials: tuple[Trial, ...]
    #: What sandboxes can be made with; None if no sandbox can be made.
    features: Features | None
    #: Directories that the kernel has refused as the lower of an overlay.
    unlayerable: frozenset[str] = frozenset()
    #: The environment of the process that has probed.
    environment: Environment = Environment()

    @property
    def user_namespace(self) -> bool:
        """Whether sandboxes are made in a user namespace; False if none can be made."""
        return self.features is not None and self.features.user_namespace

    @property
    def obstacle(self) -> Trial | None:
        """The first step that has failed and without which there can be no sandbox."""
        return next((t for t in self.trials if t.needed and not t.works), None)


def probe(places: Sequence[str]) -> ProbeResult:
    """Try everything that a sandbox needs. ``places`` are as for :func:`.host.survey`.

    If root may not make sandboxes, as in many containers, it is tried in a user namespace as well,
    as for an ordinary user.
    """
    here = read_environment()
    user_namespace = os.geteuid() != 0
    uppers = DiskUppers()
    try:
        findings = _probe_as(places, uppers, user_namespace=user_namespace)
        if findings.features is None and not user_namespace:
            as_user = _probe_as(places, uppers, user_namespace=True)
            if as_user.features is not None:
                findings, user_namespace = as_user, True
    finally:
        uppers.close()
    here = here._replace(apparmor_userns=findings.environment.apparmor_userns)
    trials = tuple(_diagnosed(trial, here, user_namespace) for trial in findings.trials)
    return findings._replace(trials=trials, environment=here)


def probe_pid_namespace(findings: ProbeResult, places: Sequence[str]) -> Trial:
    """Try a PID namespace with its own ``/proc``, which few tests need.

    ``findings`` are of this machine, with features; ``places`` are those of :func:`probe`.
    """
    features = findings.features
    assert features is not None
    log = TrialLog(features.user_namespace)
    uppers = DiskUppers()
    made: list[tuple[Host, str | None]] = []

    def prepare() -> None:
        host = survey(user_namespace=features.user_namespace, places=places)
        directory = None if features.memory_upper else uppers.new()
        made.append((host._replace(unlayerable=findings.unlayerable), directory))

    try:
        if not log.attempt(PID_NAMESPACE, prepare, needed=False):
            return log.trials[0]
        answer = try_in_child(lambda: _try_pid_namespace(made[0][0], features, made[0][1]))
    finally:
        uppers.close()
    trial = Trial(**answer["trials"][0])._replace(needed=False)
    return _diagnosed(trial, findings.environment, features.user_namespace)


def probe_optional(findings: ProbeResult) -> ProbeResult:
    """Try what only some keys of the marker need too: network, hostname and user.

    Returns ``findings`` with these trials added.
    """
    features = findings.features
    if features is None:
        return findings
    user_namespace = features.user_namespace
    answer = try_in_child(lambda: _try_keys(user_namespace))
    trials = (
        _diagnosed(Trial(**trial), findings.environment, user_namespace)
        for trial in answer["trials"]
    )
    return findings._replace(trials=(*findings.trials, *trials))


def _try_keys(user_namespace: bool) -> Answer:
    """Try the steps of :func:`probe_optional`, in this process."""
    from ..sandbox.credentials import become_user
    from ..sandbox.uts_and_network import bring_up_loopback

    log = TrialLog(user_namespace)
    if user_namespace:
        enter_user_namespace()

    def isolate_network() -> None:
        sys.unshare(sys.CLONE_NEWNET)
        bring_up_loopback()

    def name_host() -> None:
        sys.unshare(sys.CLONE_NEWUTS)
        _socket.sethostname("mountns")

    log.attempt(
        "network namespace",
        isolate_network,
        needed=False,
        without='network="none" and isolated_net do not work',
    )
    log.attempt("host name", name_host, needed=False, without="hostname does not work")
    if not user_namespace:
        log.attempt(
            "another user",
            lambda: become_user(User(OVERFLOW_ID, OVERFLOW_ID)),
            needed=False,
            without="user does not work",
        )
    return log.answer()


def _diagnosed(trial: Trial, here: Environment, user_namespace: bool) -> Trial:
    """The trial with the cause and the remedy for this environment, if they are sure."""
    if trial.works:
        return trial
    from ..linux.diagnosis import diagnose

    advice = diagnose(trial.name, trial.errno, here, user_namespace=user_namespace)
    return trial if advice is None else trial._replace(cause=advice[0], remedy=advice[1])


def _probe_as(places: Sequence[str], uppers: DiskUppers, *, user_namespace: bool) -> ProbeResult:
    """Probe as root, or as an ordinary user in a user namespace."""
    log = TrialLog(user_namespace)
    found: list[Host] = []
    if not log.attempt(
        "read /proc/self/mountinfo",
        lambda: found.append(survey(user_namespace=user_namespace, places=places)),
        doing="proc",
    ):
        return ProbeResult(tuple(log.trials), None)
    wanted = [os.path.realpath(place) for place in places]
    steps = None if user_namespace else _try_here(found[0], wanted)
    if steps is None:
        steps = try_in_child(lambda: _try_all(found[0], wanted, user_namespace))
    trials = [*log.trials, *(Trial(**trial) for trial in steps["trials"])]
    if any(trial.needed and not trial.works for trial in trials):
        known = Environment(apparmor_userns=steps.get("apparmor", ""))
        return ProbeResult(tuple(trials), None, environment=known)
    features = Features(user_namespace, **steps["features"])
    # If a tmpfs cannot be an upper, each of the two processes below has a directory on disk, and if
    # uppers cannot lie on detached mounts, the trials have covered the root.
    directories: list[str | None] = [None] * 2
    if not features.memory_upper:
        log, on_disk = TrialLog(user_namespace), list[str | None]()
        if log.attempt(
            "a directory for uppers on disk",
            lambda: on_disk.extend(uppers.new() for _ in directories),
        ):
            directories = on_disk
            steps = try_in_child(lambda: _try_on_disk(found[0], wanted, features, directories[0]))
            log.trials.extend(Trial(**trial) for trial in steps["trials"])
            detached = bool(steps.get("detached_uppers"))
            features = features._replace(detached_uppers=detached)
        trials += log.trials
        if any(trial.needed and not trial.works for trial in trials):
            return ProbeResult(tuple(trials), None)
    unlayerable = frozenset(steps["unlayerable"])
    answer = steps.get("whole")
    if answer is None:
        host = found[0]._replace(unlayerable=unlayerable)
        answer = try_in_child(
            lambda: _try_whole(plan(SandboxSpec(), host, features), host, directories[1])
        )
    whole = Trial(**answer["trials"][0])
    return ProbeResult((*trials, whole), features if whole.works else None, unlayerable)


def _try_here(host: Host, wanted: Sequence[str]) -> Answer | None:
    """Try all as root in this process, which is back where it was when this returns.

    Returns None if something does not work, or if a filesystem may keep this process waiting: then
    a process is to be forked for it, which can be ended. This exists for speed alone: after a fork,
    each page of memory that this process writes to costs a page fault, 6,000 of them in a session
    with one test. It takes 0.8 times the CPU time that such a session costs with a fork.
    """
    if host.dead or not all(map(never_waits, host.mounts)):
        return None
    opened: list[int] = []
    try:
        with signals_held(), way_back(False) as back, uts_namespace_kept():
            back.try_out()
            answer = _try_steps(host, wanted, False, opened)
    except (SandboxError, OSError):
        return None
    finally:
        for fd in opened:
            os.close(fd)
    if not _is_as_on_new_kernels(answer):
        return None
    wanted_plan = _plan_of(host, answer, user_namespace=False)

    def make_and_drop() -> None:
        stage = make_stage()
        try:
            sandbox = make(wanted_plan, stage)
            try:
                with (
                    _mounts_checked(wanted_plan, host) as check,
                    signals_held(),
                    way_back(False) as back,
                ):
                    back.leave_for(sandbox.namespace)
                    check()
            finally:
                sandbox.close()
        finally:
            os.close(stage)

    log = TrialLog(False)
    if not log.attempt(_WHOLE, make_and_drop):
        return None
    return {**answer, "whole": log.answer()}


def _try_all(host: Host, wanted: Sequence[str], user_namespace: bool) -> Answer:
    """Try the steps, in this process. If all work as on a new kernel, ``whole`` is tried, too."""
    directory = working_directory()
    answer = _try_steps(host, wanted, user_namespace, [])
    if _is_as_on_new_kernels(answer):
        # Nothing of the trials is mounted in this namespace.
        change_directory(directory)
        wanted_plan = _plan_of(host, answer, user_namespace=user_namespace)
        answer["whole"] = _try_whole(wanted_plan, host, None, is_mapped=True)
    return answer


def _is_as_on_new_kernels(answer: Answer) -> bool:
    """Whether a sandbox needs no upper on disk, and no mount over the old root."""
    if not all(trial["works"] for trial in answer["trials"] if trial["needed"]):
        return False
    features = answer["features"]
    return bool(features["memory_upper"] and features.get("detached_uppers"))


def _plan_of(host: Host, answer: Answer, *, user_namespace: bool) -> Plan:
    """The plan of a sandbox, by what the steps have found out."""
    features = Features(user_namespace, **answer["features"])
    host = host._replace(unlayerable=frozenset(answer["unlayerable"]))
    return plan(SandboxSpec(), host, features)


def _try_steps(
    host: Host, wanted: Sequence[str], user_namespace: bool, opened: list[int]
) -> Answer:
    """Try the namespaces and filesystems of a sandbox one by one, in this process.

    In at least one of the directories ``wanted`` it must be possible to write. Descriptors that
    stay open are put into ``opened``.
    """
    log = TrialLog(user_namespace)
    before = apparmor_profile()
    if user_namespace and not log.attempt("user namespace", enter_user_namespace):
        return log.answer(apparmor=_other_profile(before))
    if not log.attempt(
        "mount namespace", lambda: opened.append(enter_mount_namespace(user_namespace))
    ):
        return log.answer(apparmor=_other_profile(before))
    # The sandboxes of root always have a UTS namespace.
    uts = user_namespace or log.attempt("UTS namespace", lambda: sys.unshare(sys.CLONE_NEWUTS))
    if not uts:
        return log.answer()
    new_api = log.attempt(
        "new mount API",
        _use_new_api,
        needed=False,
        remedy="Linux 5.12 or later",
        without=f"mount(2) is used; bind_volume, {_NEED_LAYERED_UPPERS} do not work",
    )
    features = Features(user_namespace, new_api=new_api)
    if not log.attempt("tmpfs", lambda: change_to_scratch(features, opened)):
        return log.answer()
    memory = log.attempt(
        "extended attributes on tmpfs",
        lambda: os.setxattr(".", f"{features.xattr_prefix}mountns", b"1"),
        needed=False,
        remedy="Linux 6.6 or later",
        without="uppers are put on disk",
    )
    mknod = log.attempt(
        "mknod of devices",
        lambda: os.mknod("null", 0o20666, os.makedev(1, 3)),
        needed=False,
        remedy="none needed" if features.user_namespace else "",
        doing="mknod",
        without="the host's device nodes are bound",
    )
    kinds = {"new_api": new_api, "memory_upper": memory, "mknod": mknod}
    if not memory:
        return log.answer(features=kinds)
    refused, detached = _try_overlays(log, host, wanted, features, opened, None)
    kinds["detached_uppers"] = detached
    return log.answer(features=kinds, unlayerable=refused)


def _other_profile(before: str) -> str:
    """The AppArmor profile that this process has got by making a user namespace, "" if none."""
    now = apparmor_profile()
    return now if now != before else ""


def _try_on_disk(
    host: Host, wanted: Sequence[str], features: Features, directory: str | None
) -> Answer:
    """Try the rest of the steps with an upper on disk, where a tmpfs cannot be one."""
    log = TrialLog(features.user_namespace)

    def go() -> None:
        if features.user_namespace:
            enter_user_namespace()
        enter_mount_namespace(features.user_namespace)
        change_to_scratch(features, [], directory)

    if not log.attempt("uppers on disk", go):
        return log.answer()
    refused, detached = _try_overlays(log, host, wanted, features, [], directory)
    return log.answer(detached_uppers=detached, unlayerable=refused)


def _try_overlays(
    log: TrialLog,
    host: Host,
    wanted: Sequence[str],
    features: Features,
    opened: list[int],
    directory: str | None,
) -> tuple[list[str], bool]:
    """Try overlays, in this process.

    Returns the directories that are refused as a lower, and whether uppers can lie on a detached
    mount.
    """
    builder = change_to_scratch(features, opened, directory)
    detached = TrialLog(features.user_namespace)
    if not features.new_api or not detached.attempt(
        "uppers on a detached mount",
        lambda: try_overlay(builder, features),
        needed=False,
        remedy="Linux 6.15 or later",
        doing="overlay",
        without="they are mounted over the old root until that is left;"
        f" {_NEED_LAYERED_UPPERS} do not work",
    ):
        features = features._replace(detached_uppers=False)
        builder = change_to_scratch(features, opened, directory)
    if not log.attempt("overlay", lambda: try_overlay(builder, features), doing="overlay"):
        return [], False
    # An overlay works, so a failure of the first way is due to the detached mount. If neither way
    # works, it is not, and then that trial is left out.
    log.trials[-1:-1] = detached.trials
    refused = find_refused(log, builder, possible_lowers(host), features)
    # If tests could write to none of the wanted directories, there is no use in a sandbox.
    needed = [
        path
        for path in possible_lowers(host)
        if any(p == path or is_below(p, path) for p in wanted)
    ]
    if features.user_namespace and needed and not set(needed) - set(refused):
        log.attempt(
            f"overlay of {needed[0]}",
            lambda: os.close(mount_trial_overlay(needed[0], builder, features)),
            doing="overlay",
        )
    return refused, features.detached_uppers


def _use_new_api() -> None:
    """Make every call of the new mount API that is needed, the newest one (Linux 5.12) last."""
    context = sys.fsopen("tmpfs")
    try:
        sys.fsconfig_create(context, "tmpfs")
        os.close(sys.fsmount(context, 0))
    finally:
        os.close(context)
    # The tree that is cloned is attached: before Linux 6.15 detached trees cannot be cloned.
    flags = sys.OPEN_TREE_CLONE | sys.OPEN_TREE_CLOEXEC | sys.AT_RECURSIVE
    tree = sys.open_tree(sys.AT_FDCWD, "/proc", flags)
    try:
        seal(tree, read_only=True)
    finally:
        os.close(tree)


@contextmanager
def _mounts_checked(wanted: Plan, host: Host) -> Iterator[Callable[[], None]]:
    """Gives what is to be called in a sandbox.

    It raises :class:`SandboxError` if a test in this sandbox could write to what is the host's.
    """
    # The table of the namespace in which it was opened, proc_pid_mountinfo(5).
    with open("/proc/self/mountinfo", "rb") as of_host:

        def check() -> None:
            # What was unmounted meanwhile has left its number to others.
            still_there = {mount.device for mount in parse(of_host.read())}
            filesystems = {mount.device for mount in host.mounts} & still_there
            # What is mounted in a directory that is closed to this user is closed to tests as well.
            exposed = [
                path
                for path in exposed_paths(wanted, filesystems, read())
                if not out_of_reach(path)
            ]
            if exposed:
                raise SandboxError(
                    "protect the host's files",
                    cause=f"{', '.join(exposed)} can be written to in a sandbox, though each call"
                    " of the kernel has said that it has worked: a seccomp filter or the like"
                    " answers some of them in its place",
                    remedy="run outside of what emulates system calls, as build sandboxes do",
                )

        yield check


def _try_whole(
    wanted: Plan, host: Host, directory: str | None, *, is_mapped: bool = False
) -> Answer:
    """Enter a sandbox as tests will have it, pivot_root included.

    ``is_mapped``: this process is in the user namespace already, if there is to be one.
    """
    log = TrialLog(wanted.user_namespace)

    def enter_it() -> None:
        if wanted.user_namespace and not is_mapped:
            enter_user_namespace()
        with _mounts_checked(wanted, host) as check:
            enter(wanted, directory)
            check()

    log.attempt(_WHOLE, enter_it)
    return log.answer()


def _try_pid_namespace(host: Host, features: Features, directory: str | None) -> Answer:
    """Enter a sandbox with a PID namespace, from a process in between."""
    log = TrialLog(features.user_namespace)

    from ..linux.pid_namespace import NAMESPACES

    def make_in_pid_namespace() -> None:
        if features.user_namespace:
            enter_user_namespace()
        sys.unshare(NAMESPACES)
        answer = try_in_child(lambda: _try_proc(host, features, directory))
        log.trials.extend(Trial(**trial) for trial in answer["trials"])

    log.attempt("PID namespace", make_in_pid_namespace, needed=False)
    works = all(trial.works for trial in log.trials)
    failed = next((trial for trial in log.trials if not trial.works), None)
    last = Trial(PID_NAMESPACE, True) if failed is None else failed._replace(name=PID_NAMESPACE)
    without = "" if works else "pid=True and isolated_proc do not work"
    return {"trials": [last._replace(needed=False, without=without)._asdict()]}


def _try_proc(host: Host, features: Features, directory: str | None) -> Answer:
    """Enter a sandbox with a ``/proc`` of its own, as the first process of a PID namespace."""
    log = TrialLog(features.user_namespace)
    wanted = plan(SandboxSpec(pid=True), host, features)
    log.attempt("fresh /proc", lambda: enter(wanted, directory), needed=False)
    return log.answer()
