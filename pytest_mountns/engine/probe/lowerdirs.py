"""Finds out by trying which directories can be the lower of an overlay."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final

from ..linux.errors import SandboxError
from ..linux.namespaces import enter_mount_namespace, enter_user_namespace
from ..linux.untouched import os
from ..mount.api import MountApi
from ..mount.root import mount_api_for
from ..plan.model import PSEUDO, Features, Host
from ..sandbox.disk_uppers import DiskUppers
from .trials import Answer, Trial, TrialLog, try_in_child

#: Errors of mount(2) that say that a directory cannot be a lower: OverlayFS refuses it, its
#: filesystem does, or it cannot be reached.
_REFUSALS: Final = frozenset(
    {
        *(errno.EINVAL, errno.ELOOP, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTDIR, errno.ENOENT),
        *(errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENOTCONN, errno.EIO, errno.EREMOTE),
    }
)


def possible_lowers(host: Host) -> list[str]:
    """The directories on which a plan may mount overlays.

    ``/`` is not among them: it is tried with a whole sandbox.
    """
    if host.writable or host.mixed:
        return list(host.writable)
    known = host.files | host.specials
    return [
        mount.mountpoint
        for mount in host.mounts[1:]
        if not mount.read_only and mount.fstype not in PSEUDO and mount.mountpoint not in known
    ]


def refused_lowers(paths: Sequence[str], features: Features) -> frozenset[str]:
    """Which of the directories ``paths`` cannot be the lower of an overlay.

    Raises :class:`SandboxError` if that cannot be found out now, as when there is no memory. The
    result is remembered by callers, so it must not rest on an error that may pass.
    """

    def attempt(directory: str | None) -> Answer:
        if features.user_namespace:
            enter_user_namespace()
        enter_mount_namespace(features.user_namespace)
        api = change_to_scratch(features, [], directory)
        log = TrialLog(features.user_namespace)
        refused = find_refused(log, api, paths, features)
        return log.answer() if log.trials else {"refused": refused, "trials": []}

    uppers = DiskUppers()
    try:
        directory = None if features.memory_upper else uppers.new()
        answer = try_in_child(lambda: attempt(directory))
    finally:
        uppers.close()
    if "refused" in answer:
        return frozenset(answer["refused"])
    trial = Trial(**answer["trials"][-1])
    raise SandboxError(f"try an {trial.name}", trial.kernel, trial.cause, trial.remedy)


def find_refused(
    log: TrialLog, api: MountApi, paths: Sequence[str], features: Features
) -> list[str]:
    """Which of ``paths`` are refused as the lower of an overlay.

    If that cannot be found out for one of them, a failed trial is added to ``log``.
    """
    refused = []
    for path in paths:
        try:
            if not _is_lower(api, path, features):
                refused.append(path)
        except OSError as error:
            log.failed(f"overlay of {path}", error, doing="overlay")
            break
    return refused


def change_to_scratch(
    features: Features, opened: list[int], directory: str | None = None
) -> MountApi:
    """Change to a new directory for uppers of trials: in memory, or in ``directory`` on disk.

    What has to stay open meanwhile is put into ``opened``.
    """
    api = mount_api_for(features)
    if directory is None:
        scratch = api.make_scratch([("mode", "0755")])
    else:
        scratch = api.make_scratch_on_disk(directory)
    opened.append(scratch)
    os.fchdir(scratch)
    return api


def try_overlay(api: MountApi, features: Features) -> None:
    """Mount an overlay, and make a directory in it anew.

    The latter fails if the mount options are not those that this kernel needs.
    """
    os.makedirs("lower/directory", exist_ok=True)
    mount = mount_trial_overlay("lower", api, features)
    try:
        os.rmdir("directory", dir_fd=mount)
        os.mkdir("directory", dir_fd=mount)
    finally:
        os.close(mount)


def _is_lower(api: MountApi, path: str, features: Features) -> bool:
    """Whether ``path`` can be the lower of an overlay.

    Raises :class:`OSError` if mounting fails for another reason than the directory.
    """
    # It is tried twice, because a single refusal may have another reason, which has passed then.
    for attempt in range(2):
        try:
            os.close(mount_trial_overlay(path, api, features))
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            if attempt:
                return False
        else:
            break
    return True


def mount_trial_overlay(lower: str, api: MountApi, features: Features) -> int:
    """Mount an overlay of ``lower`` that is dropped at the end, and return a descriptor of it."""
    name = f"trial{len(os.listdir('.'))}"
    for part in ("upper", "work", "merged"):
        os.makedirs(f"{name}.{part}")
    options = [
        ("upperdir", f"{name}.upper"),
        ("workdir", f"{name}.work"),
        *features.overlay_options,
    ]
    return api.open_overlay(lower, f"{name}.merged", options)
