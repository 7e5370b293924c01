"""Which directories can be the lower of an overlay, found out by trying."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Final

from ..linux.errors import SandboxError
from ..linux.namespaces import enter_mount_namespace, enter_user_namespace
from ..mount.api import MountApi
from ..mount.root import mount_api_for
from ..plan.model import PSEUDO, Features, Host
from ..sandbox.disk_uppers import DiskUppers
from .trials import Answer, Log, Trial, try_in_child

#: What is said of a directory that can be no lower: of OverlayFS, of its filesystem, of the way.
_REFUSALS: Final = frozenset(
    {
        *(errno.EINVAL, errno.ELOOP, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTDIR, errno.ENOENT),
        *(errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENOTCONN, errno.EIO, errno.EREMOTE),
    }
)


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


def refused_lowers(paths: Sequence[str], features: Features) -> frozenset[str]:
    """Which of these directories cannot be the lower of an overlay, by trying.

    Raises :class:`SandboxError` if that cannot be found out now: what another time may be
    otherwise is no answer to be remembered.
    """

    def attempt(directory: str | None) -> Answer:
        if features.user_namespace:
            enter_user_namespace()
        enter_mount_namespace(features.user_namespace)
        api = go_to_scratch(features, directory)
        log = Log(features.user_namespace)
        refused = refused_among(log, api, paths, features)
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


def refused_among(log: Log, api: MountApi, paths: Sequence[str], features: Features) -> list[str]:
    """Those of ``paths``. If it cannot be told of one, there is a failed trial in ``log``."""
    refused = []
    for path in paths:
        try:
            if not _is_lower(api, path, features):
                refused.append(path)
        except OSError as error:
            log.failed(f"overlay of {path}", error, doing="overlay")
            break
    return refused


def go_to_scratch(features: Features, directory: str | None = None) -> MountApi:
    """Go to where the uppers of trials lie: in memory, or in ``directory`` on disk."""
    api = mount_api_for(features)
    if directory is None:
        os.fchdir(api.make_scratch([("mode", "0755")]))
    else:
        os.fchdir(api.make_scratch_on_disk(directory))
    return api


def try_overlay(api: MountApi, features: Features) -> None:
    """Mount one and remake a merged directory in it: what fails without the right options."""
    os.makedirs("lower/directory", exist_ok=True)
    mount = trial_overlay("lower", api, features)
    try:
        os.rmdir("directory", dir_fd=mount)
        os.mkdir("directory", dir_fd=mount)
    finally:
        os.close(mount)


def _is_lower(api: MountApi, path: str, features: Features) -> bool:
    """Raises :class:`OSError` if the reason is none of the directory's own."""
    # Twice: what it is asked for once it may be denied for another reason.
    for attempt in range(2):
        try:
            os.close(trial_overlay(path, api, features))
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            if attempt:
                return False
        else:
            break
    return True


def trial_overlay(lower: str, api: MountApi, features: Features) -> int:
    """A throwaway overlay of one lower; returns a descriptor of its root."""
    name = f"trial{len(os.listdir('.'))}"
    for part in ("upper", "work", "merged"):
        os.makedirs(f"{name}.{part}")
    options = [
        ("upperdir", f"{name}.upper"),
        ("workdir", f"{name}.work"),
        *features.overlay_options,
    ]
    return api.open_overlay(lower, f"{name}.merged", options)
