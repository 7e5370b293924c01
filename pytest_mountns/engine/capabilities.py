"""What this kernel lets this user do, found out by doing every step, never by looking at the uid.

:func:`probe` forks processes that make a sandbox step by step and report each; nothing of it
outlives them. The same facts choose the capabilities of a session and fill the doctor's table.
"""

from __future__ import annotations

import _socket
import errno
import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Final, NoReturn, TypeAlias, final

from . import syscalls as sys
from .advice import Doing, explain
from .builders import Builder, builder_for, set_read_only
from .circumstances import Circumstances, look
from .decide import plan
from .diagnosis import diagnose
from .disk import DiskUppers
from .enter import enter
from .errors import SandboxError, SyscallError, errno_name, said
from .host import survey
from .init import NAMESPACES, die_with_parent
from .mountinfo import is_below
from .moving import enter_mount_namespace, enter_user_namespace
from .outer import become, bring_up_loopback
from .plan import PSEUDO, Capabilities, Host, User
from .processes import fork, reap
from .spec import SandboxSpec

_PROBE_SECONDS: Final = 30
_NOBODY: Final = 65534
#: What is said of a directory that can be no lower: of OverlayFS, of its filesystem, of the way.
_REFUSALS: Final = frozenset(
    {
        *(errno.EINVAL, errno.ELOOP, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTDIR, errno.ENOENT),
        *(errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENOTCONN, errno.EIO, errno.EREMOTE),
    }
)
#: What may be otherwise a moment later.
PASSING: Final = frozenset({"ENOMEM", "EMFILE", "ENFILE", "EAGAIN", "EINTR"})
_Answer: TypeAlias = dict[str, Any]


@final
@dataclass(frozen=True, slots=True)
class Trial:
    """One step that was tried: whether it worked; if not, what the kernel said, why, what helps.

    ``needed``: without it nothing can be isolated here. ``errno``: its name. ``without``: what is
    done, or does not work, where the step fails.
    """

    name: str
    works: bool
    kernel: str = ""
    cause: str = ""
    remedy: str = ""
    needed: bool = True
    errno: str = ""
    without: str = ""


@final
@dataclass(frozen=True, slots=True)
class Findings:
    """The trials, and what they add up to. ``capabilities`` is None if isolation is impossible.

    ``unlayerable``: directories the kernel refused as a lower of an overlay.
    """

    trials: tuple[Trial, ...]
    capabilities: Capabilities | None
    unlayerable: frozenset[str] = frozenset()
    circumstances: Circumstances = field(default_factory=Circumstances)

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
        if findings.capabilities is None and not user_namespace:
            as_user = _probe_as(places, uppers, user_namespace=True)
            if as_user.capabilities is not None:
                findings, user_namespace = as_user, True
    finally:
        uppers.close()
    trials = tuple(_judged(trial, here, user_namespace) for trial in findings.trials)
    return replace(findings, trials=trials, circumstances=here)


def probe_keys(findings: Findings) -> Findings:
    """With trials of what only some tests ask for: network, host name, another user."""
    capabilities = findings.capabilities
    if capabilities is None:
        return findings
    user_namespace = capabilities.user_namespace
    answer = _in_child(lambda: _try_keys(user_namespace))
    trials = (
        _judged(Trial(**trial), findings.circumstances, user_namespace)
        for trial in answer["trials"]
    )
    return replace(findings, trials=(*findings.trials, *trials))


def _try_keys(user_namespace: bool) -> _Answer:
    log = _Log(user_namespace)
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
            lambda: become(User(_NOBODY, _NOBODY)),
            needed=False,
            without="user does not work",
        )
    return log.answer()


def _judged(trial: Trial, here: Circumstances, user_namespace: bool) -> Trial:
    """With the reason that it has here, where that is sure."""
    if trial.works:
        return trial
    advice = diagnose(trial.name, trial.errno, here, user_namespace=user_namespace)
    return trial if advice is None else replace(trial, cause=advice[0], remedy=advice[1])


def refused_lowers(paths: Sequence[str], capabilities: Capabilities) -> frozenset[str]:
    """Which of these directories cannot be the lower of an overlay, by trying.

    Raises :class:`SandboxError` if that cannot be found out now: what another time may be
    otherwise is no answer to be remembered.
    """

    def attempt(directory: str | None) -> _Answer:
        if capabilities.user_namespace:
            enter_user_namespace()
        enter_mount_namespace(capabilities.user_namespace)
        builder = _go_to_scratch(capabilities, directory)
        log = _Log(capabilities.user_namespace)
        refused = _refused(log, builder, paths, capabilities)
        return log.answer() if log.trials else {"refused": refused, "trials": []}

    uppers = DiskUppers()
    try:
        directory = None if capabilities.memory_upper else uppers.new()
        answer = _in_child(lambda: attempt(directory))
    finally:
        uppers.close()
    if "refused" in answer:
        return frozenset(answer["refused"])
    trial = Trial(**answer["trials"][-1])
    raise SandboxError(f"try an {trial.name}", trial.kernel, trial.cause, trial.remedy)


def _refused(
    log: _Log, builder: Builder, paths: Sequence[str], capabilities: Capabilities
) -> list[str]:
    """Those of ``paths``. If it cannot be told of one, there is a failed trial in ``log``."""
    refused = []
    for path in paths:
        try:
            if not _is_lower(builder, path, capabilities):
                refused.append(path)
        except OSError as error:
            log.attempt(f"overlay of {path}", partial(_raise, error), doing="overlay")
            break
    return refused


def _raise(error: OSError) -> None:
    raise error


def _go_to_scratch(capabilities: Capabilities, directory: str | None = None) -> Builder:
    """Go to where the uppers of trials lie: in memory, or in ``directory`` on disk."""
    builder = builder_for(capabilities)
    if directory is None:
        os.fchdir(builder.scratch([("mode", "0755")]))
    else:
        os.fchdir(builder.scratch_on_disk(directory))
    return builder


def _probe_as(places: Sequence[str], uppers: DiskUppers, *, user_namespace: bool) -> Findings:
    log = _Log(user_namespace)
    found: list[Host] = []
    if not log.attempt(
        "read /proc/self/mountinfo",
        lambda: found.append(survey(user_namespace=user_namespace, places=places)),
        doing="proc",
    ):
        return Findings(tuple(log.trials), None)
    matter = [os.path.realpath(place) for place in places]
    steps = _in_child(lambda: _try_steps(found[0], matter, user_namespace))
    trials = [*log.trials, *(Trial(**trial) for trial in steps["trials"])]
    if any(trial.needed and not trial.works for trial in trials):
        return Findings(tuple(trials), None)
    capabilities = Capabilities(user_namespace, **steps["capabilities"])
    directories: list[str | None] = [None] * 3
    if not capabilities.memory_upper:
        log, on_disk = _Log(user_namespace), list[str | None]()
        if log.attempt(
            "a directory for uppers on disk",
            lambda: on_disk.extend(uppers.new() for _ in directories),
        ):
            directories = on_disk
            steps = _in_child(lambda: _try_on_disk(found[0], matter, capabilities, directories[0]))
            log.trials.extend(Trial(**trial) for trial in steps["trials"])
            detached = bool(steps.get("detached_uppers"))
            capabilities = replace(capabilities, detached_uppers=detached)
        trials += log.trials
        if any(trial.needed and not trial.works for trial in trials):
            return Findings(tuple(trials), None)
    unlayerable = frozenset(steps["unlayerable"])
    host = replace(found[0], unlayerable=unlayerable)
    whole, pid = (
        Trial(**_in_child(partial(_try_whole, host, capabilities, directory, pid=pid))["trials"][0])
        for pid, directory in ((False, directories[1]), (True, directories[2]))
    )
    trials += [whole, replace(pid, needed=False)]
    if not whole.works:
        return Findings(tuple(trials), None, unlayerable)
    capabilities = replace(capabilities, pid_namespace=pid.works)
    return Findings(tuple(trials), capabilities, unlayerable)


class _Log:
    """Collects trials."""

    def __init__(self, user_namespace: bool) -> None:
        self.trials: list[Trial] = []
        self._user = user_namespace

    def attempt(
        self,
        name: str,
        action: Callable[[], object],
        *,
        needed: bool = True,
        remedy: str = "",
        doing: Doing = "",
        without: str = "",
    ) -> bool:
        try:
            action()
        except (SandboxError, OSError) as error:
            if isinstance(error, SandboxError):
                kernel, cause, advice = _in_words(error), error.cause, error.remedy
                number = _errno(error)
            else:
                kernel, number = said(error), error.errno or 0
                cause, advice = explain(number, self._user, doing)
            named = errno_name(number) if number else ""
            trial = Trial(name, False, kernel, cause, remedy or advice, needed, named, without)
        else:
            trial = Trial(name, True, needed=needed)
        self.trials.append(trial)
        return trial.works

    def answer(self, **more: object) -> _Answer:
        return {"trials": [asdict(trial) for trial in self.trials], **more}


def _in_words(error: SandboxError) -> str:
    if not error.kernel:
        return error.tried
    # A system call names itself, and so does what has a path; a write does not say of what.
    cause = error.__cause__
    own = error.tried.startswith("make a ") and isinstance(cause, SyscallError)
    own = own or (isinstance(cause, OSError) and cause.filename is not None)
    return error.kernel if own else f"{error.tried}: {error.kernel}"


def _errno(error: SandboxError) -> int:
    cause = error.__cause__
    return cause.errno or 0 if isinstance(cause, OSError) else 0


def _try_steps(host: Host, matter: Sequence[str], user_namespace: bool) -> _Answer:
    log = _Log(user_namespace)
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
    capabilities = Capabilities(user_namespace, new_api=new_api)
    if not log.attempt("tmpfs", lambda: _go_to_scratch(capabilities)):
        return log.answer()
    memory = log.attempt(
        "extended attributes on tmpfs",
        lambda: os.setxattr(".", f"{capabilities.xattr_prefix}mountns", b"1"),
        needed=False,
        remedy="Linux 6.6 or later",
        without="uppers are put on disk",
    )
    mknod = log.attempt(
        "mknod of devices",
        lambda: os.mknod("null", 0o20666, os.makedev(1, 3)),
        needed=False,
        remedy="none needed",
        doing="mknod",
        without="the host's device nodes are bound",
    )
    kinds = {"new_api": new_api, "memory_upper": memory, "mknod": mknod}
    if not memory:
        return log.answer(capabilities=kinds)
    refused, detached = _try_overlays(log, host, matter, capabilities, None)
    kinds["detached_uppers"] = detached
    return log.answer(capabilities=kinds, unlayerable=refused)


def _try_on_disk(
    host: Host, matter: Sequence[str], capabilities: Capabilities, directory: str | None
) -> _Answer:
    """What is left to try where a tmpfs is no upper."""
    log = _Log(capabilities.user_namespace)

    def go() -> None:
        if capabilities.user_namespace:
            enter_user_namespace()
        enter_mount_namespace(capabilities.user_namespace)
        _go_to_scratch(capabilities, directory)

    if not log.attempt("uppers on disk", go):
        return log.answer()
    refused, detached = _try_overlays(log, host, matter, capabilities, directory)
    return log.answer(detached_uppers=detached, unlayerable=refused)


def _try_overlays(
    log: _Log,
    host: Host,
    matter: Sequence[str],
    capabilities: Capabilities,
    directory: str | None,
) -> tuple[list[str], bool]:
    """Which directories are refused as a lower; whether uppers may lie on a detached mount."""
    builder = _go_to_scratch(capabilities, directory)
    detached = _Log(capabilities.user_namespace)
    if not capabilities.new_api or not detached.attempt(
        "uppers on a detached mount",
        lambda: _try_overlay(builder, capabilities),
        needed=False,
        remedy="Linux 6.15 or later",
        doing="overlay",
        without="they are mounted over the old root until that is left",
    ):
        capabilities = replace(capabilities, detached_uppers=False)
        builder = _go_to_scratch(capabilities, directory)
    if not log.attempt("overlay", lambda: _try_overlay(builder, capabilities), doing="overlay"):
        return [], False
    # If neither way has worked, the reason is another.
    log.trials[-1:-1] = detached.trials
    refused = _refused(log, builder, lowers(host), capabilities)
    # A sandbox in which none of the places that matter can be written to is none.
    needed = [path for path in lowers(host) if any(p == path or is_below(p, path) for p in matter)]
    if capabilities.user_namespace and needed and not set(needed) - set(refused):
        log.attempt(
            f"overlay of {needed[0]}",
            lambda: os.close(_overlay(needed[0], builder, capabilities)),
            doing="overlay",
        )
    return refused, capabilities.detached_uppers


def _use_new_api() -> None:
    """Every call of it that :class:`.build.NewApi` rests on, the youngest (5.12) last."""
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


def _try_overlay(builder: Builder, capabilities: Capabilities) -> None:
    """Mount one and remake a merged directory in it: what fails without the right options."""
    os.makedirs("lower/directory", exist_ok=True)
    mount = _overlay("lower", builder, capabilities)
    try:
        os.rmdir("directory", dir_fd=mount)
        os.mkdir("directory", dir_fd=mount)
    finally:
        os.close(mount)


def _is_lower(builder: Builder, path: str, capabilities: Capabilities) -> bool:
    """Raises :class:`OSError` if the reason is none of the directory's own."""
    # Twice: what it is asked for once it may be denied for another reason.
    for attempt in range(2):
        try:
            os.close(_overlay(path, builder, capabilities))
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            if attempt:
                return False
        else:
            break
    return True


def _overlay(lower: str, builder: Builder, capabilities: Capabilities) -> int:
    """A throwaway overlay of one lower; returns a descriptor of its root."""
    name = f"trial{len(os.listdir('.'))}"
    for part in ("upper", "work", "merged"):
        os.makedirs(f"{name}.{part}")
    options = [
        ("upperdir", f"{name}.upper"),
        ("workdir", f"{name}.work"),
        *capabilities.overlay_options,
    ]
    return builder.overlay_descriptor(lower, f"{name}.merged", options)


def lowers(host: Host) -> list[str]:
    """The directories a plan may lay overlays over, but for ``/`` which is tried as a whole."""
    if host.writable or host.mixed:
        return list(host.writable)
    known = host.files | host.specials
    return [
        mount.mountpoint
        for mount in host.mounts[1:]
        if not mount.read_only and mount.fstype not in PSEUDO and mount.mountpoint not in known
    ]


def _try_whole(
    host: Host, capabilities: Capabilities, directory: str | None, *, pid: bool
) -> _Answer:
    """A sandbox as a test will have it, pivot_root included."""
    log = _Log(capabilities.user_namespace)

    def make() -> None:
        if capabilities.user_namespace:
            enter_user_namespace()
        enter(plan(SandboxSpec(pid=pid), host, capabilities), directory)

    if not pid:
        log.attempt("a whole root and pivot_root", make)
        return log.answer()

    def make_in_pid_namespace() -> None:
        if capabilities.user_namespace:
            enter_user_namespace()
        sys.unshare(NAMESPACES)
        answer = _in_child(lambda: _try_proc(host, capabilities, directory))
        log.trials.extend(Trial(**trial) for trial in answer["trials"])

    log.attempt("PID namespace", make_in_pid_namespace, needed=False)
    works = all(trial.works for trial in log.trials)
    failed = next((trial for trial in log.trials if not trial.works), None)
    name = "a PID namespace with its own /proc"
    last = Trial(name, True) if failed is None else replace(failed, name=name)
    without = "" if works else "pid=True and isolated_proc do not work"
    return {"trials": [asdict(replace(last, needed=False, without=without))]}


def _try_proc(host: Host, capabilities: Capabilities, directory: str | None) -> _Answer:
    log = _Log(capabilities.user_namespace)
    wanted = plan(SandboxSpec(pid=True), host, capabilities)
    log.attempt("fresh /proc", lambda: enter(wanted, directory), needed=False)
    return log.answer()


def _in_child(action: Callable[[], _Answer]) -> _Answer:
    reader, writer = os.pipe()
    parent = os.getpid()
    child = fork()
    if child == 0:
        _report(action, parent, writer)
    os.close(writer)
    with open(reader, "rb") as file:
        data = file.read()
    status = reap(child)
    if data:
        answer: _Answer = json.loads(data)
        return answer
    code = os.waitstatus_to_exitcode(status)
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    lost = Trial("try a sandbox", False, f"the process that tried it ended by {how}")
    return {"trials": [asdict(lost)]}


def _report(action: Callable[[], _Answer], parent: int, writer: int) -> NoReturn:
    try:
        # A network filesystem that does not answer must not stop the session.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_PROBE_SECONDS)
        # In a PID namespace of its own the parent's number is not known; it waits in any case.
        if os.getppid():
            die_with_parent(parent)
        try:
            answer = action()
        except Exception as error:  # noqa: BLE001  # the other end has to hear of any
            answer = {"trials": [asdict(Trial("try a sandbox", False, repr(error)))]}
        data = json.dumps(answer).encode()
        while data:
            data = data[os.write(writer, data) :]
    finally:
        sys.exit_now(0)
