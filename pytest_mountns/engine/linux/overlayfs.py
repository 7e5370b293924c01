"""What OverlayFS writes into an upper directory.

The format is that of Documentation/filesystems/overlayfs.rst in the kernel's source: "whiteouts and
opaque directories", "Redirecting directories" and "Metadata only copy up".
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from typing import Final, NamedTuple

from .untouched import os

#: How the names of OverlayFS's own attributes begin; the second prefix is that of mounts with the
#: option ``userxattr``, which are the only ones in a user namespace.
TRUSTED: Final = "trusted.overlay."
USER: Final = "user.overlay."
PREFIXES: Final = (TRUSTED, USER)


class Marks(NamedTuple):
    """What the attributes of a directory in an upper say."""

    #: What lies below does not show through. A new directory may carry this mark, too: it has
    #: replaced a directory only if there is one below.
    opaque: bool
    #: The directory below that shows through in place of the one of the same name; "" if it is
    #: that one. See :func:`redirect_source`.
    redirect: str


def marks(xattrs: Mapping[str, bytes], prefix: str) -> Marks:
    """What the attributes of a directory say; ``prefix`` is one of :data:`PREFIXES`."""
    return Marks(
        xattrs.get(f"{prefix}opaque") == b"y",
        os.fsdecode(xattrs.get(f"{prefix}redirect", b"")),
    )


def redirect_source(redirect: str, lower: str | None, top: str) -> str | None:
    """The directory below that a redirect leads to; None if there is no redirect.

    Paths are relative to the root of the tree below. ``lower`` is where the tree below would show
    through if there were no redirect, None if its parent has nothing below. ``top`` is where the
    overlay is mounted, "" for the root.
    """
    if not redirect:
        return None
    if redirect.startswith("/"):
        parent = top
    elif lower is None:
        return None
    else:
        # A sibling in the tree below, whose parent may have been renamed itself.
        parent = lower.rpartition("/")[0]
    name = redirect.lstrip("/")
    return f"{parent}/{name}" if parent else name


def is_whiteout(status: os.stat_result) -> bool:
    """Whether it marks a deleted entry: a character device with the number 0:0."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
