"""What this kernel lets this user do, found out by doing every step, never by looking at the uid.

:func:`probe` forks processes that make a sandbox step by step and report each; nothing of it
outlives them. The same facts choose the capabilities of a session and fill the doctor's table.
"""

from __future__ import annotations

import _socket
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Final, final

from ..linux import syscalls as sys
from ..linux.mountinfo import is_below
from ..linux.namespaces import enter_mount_namespace, enter_user_namespace
from ..linux.pid_namespace import NAMESPACES
from ..mount.new_api import set_read_only
from ..plan.decide import plan
from ..plan.model import Features, Host, User
from ..plan.spec import SandboxSpec
from ..sandbox.create import enter
from ..sandbox.credentials import become, have_loopback
from ..sandbox.disk_uppers import DiskUppers
from .diagnosis import diagnose
from .environment import Environment, look
from .host import survey
from .lowerdirs import go_to_scratch, lowers, refused_among, trial_overlay, try_overlay
from .trials import Answer, Log, Trial, try_in_child

_NOBODY: Final = 65534
#: What may be otherwise a moment later.
PASSING: Final = frozenset({"ENOMEM", "EMFILE", "ENFILE", "EAGAIN", "EINTR"})


@final
@dataclass(frozen=True, slots=True)
class Findings:
    """The trials, and what they add up to. ``capabilities`` is None if isolation is impossible.

    ``unlayerable``: directories the kernel refused as a lower of an overlay.
    """

    trials: tuple[Trial, ...]
    features: Features | None
    unlayerable: frozenset[str] = frozenset()
    environment: Environment = field(default_factory=Environment)

    @property
    def user_namespace(self) -> bool:
        """Whether sandboxes, if there can be any, take one."""
        return self.features is not None and self.features.user_namespace

    @property
    def obstacle(self) -> Trial | None:
        """The first needed step that failed."""
        return next((t for t in self.trials if t.needed and not t.works), None)


def probe(places: Sequence[str]) -> Findings:
    """Try everything, in processes of its own. ``places``: as for :func:`.host.survey`.

    Root that may not make mount namespaces is tried as an ordinary user, in a user namespace.
    """
    here = look()
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
    trials = tuple(_judged(trial, here, user_namespace) for trial in findings.trials)
    return replace(findings, trials=trials, environment=here)


def probe_keys(findings: Findings) -> Findings:
    """With trials of what only some tests ask for: network, host name, another user."""
    features = findings.features
    if features is None:
        return findings
    user_namespace = features.user_namespace
    answer = try_in_child(lambda: _try_keys(user_namespace))
    trials = (
        _judged(Trial(**trial), findings.environment, user_namespace) for trial in answer["trials"]
    )
    return replace(findings, trials=(*findings.trials, *trials))


def _try_keys(user_namespace: bool) -> Answer:
    log = Log(user_namespace)
    if user_namespace:
        enter_user_namespace()

    def isolate_network() -> None:
        sys.unshare(sys.CLONE_NEWNET)
        have_loopback()

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
            lambda: become(User(_NOBODY, _NOBODY)),
            needed=False,
            without="user does not work",
        )
    return log.answer()


def _judged(trial: Trial, here: Environment, user_namespace: bool) -> Trial:
    """With the reason that it has here, where that is sure."""
    if trial.works:
        return trial
    advice = diagnose(trial.name, trial.errno, here, user_namespace=user_namespace)
    return trial if advice is None else replace(trial, cause=advice[0], remedy=advice[1])


def _probe_as(places: Sequence[str], uppers: DiskUppers, *, user_namespace: bool) -> Findings:
    log = Log(user_namespace)
    found: list[Host] = []
    if not log.attempt(
        "read /proc/self/mountinfo",
        lambda: found.append(survey(user_namespace=user_namespace, places=places)),
        doing="proc",
    ):
        return Findings(tuple(log.trials), None)
    matter = [os.path.realpath(place) for place in places]
    steps = try_in_child(lambda: _try_steps(found[0], matter, user_namespace))
    trials = [*log.trials, *(Trial(**trial) for trial in steps["trials"])]
    if any(trial.needed and not trial.works for trial in trials):
        return Findings(tuple(trials), None)
    features = Features(user_namespace, **steps["features"])
    directories: list[str | None] = [None] * 3
    if not features.memory_upper:
        log, on_disk = Log(user_namespace), list[str | None]()
        if log.attempt(
            "a directory for uppers on disk",
            lambda: on_disk.extend(uppers.new() for _ in directories),
        ):
            directories = on_disk
            steps = try_in_child(lambda: _try_on_disk(found[0], matter, features, directories[0]))
            log.trials.extend(Trial(**trial) for trial in steps["trials"])
            detached = bool(steps.get("detached_uppers"))
            features = replace(features, detached_uppers=detached)
        trials += log.trials
        if any(trial.needed and not trial.works for trial in trials):
            return Findings(tuple(trials), None)
    unlayerable = frozenset(steps["unlayerable"])
    host = replace(found[0], unlayerable=unlayerable)
    whole, pid = (
        Trial(**try_in_child(partial(_try_whole, host, features, directory, pid=pid))["trials"][0])
        for pid, directory in ((False, directories[1]), (True, directories[2]))
    )
    trials += [whole, replace(pid, needed=False)]
    if not whole.works:
        return Findings(tuple(trials), None, unlayerable)
    features = replace(features, pid_namespace=pid.works)
    return Findings(tuple(trials), features, unlayerable)


def _try_steps(host: Host, matter: Sequence[str], user_namespace: bool) -> Answer:
    log = Log(user_namespace)
    if user_namespace and not log.attempt("user namespace", enter_user_namespace):
        return log.answer()
    if not log.attempt("mount namespace", lambda: enter_mount_namespace(user_namespace)):
        return log.answer()
    # Root's tests have one in any case.
    uts = user_namespace or log.attempt("UTS namespace", lambda: sys.unshare(sys.CLONE_NEWUTS))
    if not uts:
        return log.answer()
    new_api = log.attempt(
        "new mount API",
        _use_new_api,
        needed=False,
        remedy="Linux 5.12 or later",
        without="mount(2) is used; bind_volume does not work",
    )
    features = Features(user_namespace, new_api=new_api)
    if not log.attempt("tmpfs", lambda: go_to_scratch(features)):
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
    refused, detached = _try_overlays(log, host, matter, features, None)
    kinds["detached_uppers"] = detached
    return log.answer(features=kinds, unlayerable=refused)


def _try_on_disk(
    host: Host, matter: Sequence[str], features: Features, directory: str | None
) -> Answer:
    """What is left to try where a tmpfs is no upper."""
    log = Log(features.user_namespace)

    def go() -> None:
        if features.user_namespace:
            enter_user_namespace()
        enter_mount_namespace(features.user_namespace)
        go_to_scratch(features, directory)

    if not log.attempt("uppers on disk", go):
        return log.answer()
    refused, detached = _try_overlays(log, host, matter, features, directory)
    return log.answer(detached_uppers=detached, unlayerable=refused)


def _try_overlays(
    log: Log,
    host: Host,
    matter: Sequence[str],
    features: Features,
    directory: str | None,
) -> tuple[list[str], bool]:
    """Which directories are refused as a lower; whether uppers may lie on a detached mount."""
    builder = go_to_scratch(features, directory)
    detached = Log(features.user_namespace)
    if not features.new_api or not detached.attempt(
        "uppers on a detached mount",
        lambda: try_overlay(builder, features),
        needed=False,
        remedy="Linux 6.15 or later",
        doing="overlay",
        without="they are mounted over the old root until that is left",
    ):
        features = replace(features, detached_uppers=False)
        builder = go_to_scratch(features, directory)
    if not log.attempt("overlay", lambda: try_overlay(builder, features), doing="overlay"):
        return [], False
    # If neither way has worked, the reason is another.
    log.trials[-1:-1] = detached.trials
    refused = refused_among(log, builder, lowers(host), features)
    # A sandbox in which none of the places that matter can be written to is none.
    needed = [path for path in lowers(host) if any(p == path or is_below(p, path) for p in matter)]
    if features.user_namespace and needed and not set(needed) - set(refused):
        log.attempt(
            f"overlay of {needed[0]}",
            lambda: os.close(trial_overlay(needed[0], builder, features)),
            doing="overlay",
        )
    return refused, features.detached_uppers


def _use_new_api() -> None:
    """Every call of it that :class:`.new_api.NewMountApi` rests on, the youngest (5.12) last."""
    context = sys.fsopen("tmpfs")
    sys.fsconfig_create(context, "tmpfs")
    os.close(sys.fsmount(context, 0))
    os.close(context)
    # Of an attached tree: before Linux 6.15 a detached one cannot be cloned.
    flags = sys.OPEN_TREE_CLONE | sys.OPEN_TREE_CLOEXEC | sys.AT_RECURSIVE
    tree = sys.open_tree(sys.AT_FDCWD, "/proc", flags)
    try:
        set_read_only(tree)
    finally:
        os.close(tree)


def _try_whole(host: Host, features: Features, directory: str | None, *, pid: bool) -> Answer:
    """A sandbox as a test will have it, pivot_root included."""
    log = Log(features.user_namespace)

    def make() -> None:
        if features.user_namespace:
            enter_user_namespace()
        enter(plan(SandboxSpec(pid=pid), host, features), directory)

    if not pid:
        log.attempt("a whole root and pivot_root", make)
        return log.answer()

    def make_in_pid_namespace() -> None:
        if features.user_namespace:
            enter_user_namespace()
        sys.unshare(NAMESPACES)
        answer = try_in_child(lambda: _try_proc(host, features, directory))
        log.trials.extend(Trial(**trial) for trial in answer["trials"])

    log.attempt("PID namespace", make_in_pid_namespace, needed=False)
    works = all(trial.works for trial in log.trials)
    failed = next((trial for trial in log.trials if not trial.works), None)
    name = "a PID namespace with its own /proc"
    last = Trial(name, True) if failed is None else replace(failed, name=name)
    without = "" if works else "pid=True and isolated_proc do not work"
    return {"trials": [asdict(replace(last, needed=False, without=without))]}


def _try_proc(host: Host, features: Features, directory: str | None) -> Answer:
    log = Log(features.user_namespace)
    wanted = plan(SandboxSpec(pid=True), host, features)
    log.attempt("fresh /proc", lambda: enter(wanted, directory), needed=False)
    return log.answer()
