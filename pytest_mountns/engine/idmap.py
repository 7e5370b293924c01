"""User and group ids as a user namespace shows them: user_namespaces(7)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, TypeAlias, final

#: Lines of ``/proc/PID/uid_map``: first id inside, first id outside, how many.
Ranges: TypeAlias = tuple[tuple[int, int, int], ...]

#: What stands for an id that is not mapped: the default of /proc/sys/kernel/overflowuid.
NOBODY: Final = 65534
_ACL_HEAD: Final = struct.Struct("<I")
_ACL_ENTRY: Final = struct.Struct("<HHI")
_ACL_USER: Final = 0x02
_ACL_GROUP: Final = 0x08


@final
@dataclass(frozen=True, slots=True)
class Ids:
    """From ids outside of a user namespace to those inside."""

    users: Ranges
    groups: Ranges

    def user(self, outside: int) -> int:
        """The user id inside; 65534 if it has none."""
        return _mapped(outside, self.users)

    def group(self, outside: int) -> int:
        """The group id inside; 65534 if it has none."""
        return _mapped(outside, self.groups)

    def acl(self, value: bytes) -> bytes:
        """An access control list as in ``system.posix_acl_access``, with ids inside.

        The layout is that of ``linux/posix_acl_xattr.h``. One of another version is left alone.
        """
        if len(value) % _ACL_ENTRY.size != _ACL_HEAD.size or _ACL_HEAD.unpack_from(value) != (2,):
            return value
        parts = [value[: _ACL_HEAD.size]]
        for tag, mode, number in _ACL_ENTRY.iter_unpack(value[_ACL_HEAD.size :]):
            inside = number
            if tag == _ACL_USER:
                inside = self.user(number)
            elif tag == _ACL_GROUP:
                inside = self.group(number)
            parts.append(_ACL_ENTRY.pack(tag, mode, inside))
        return b"".join(parts)


def _mapped(outside: int, ranges: Ranges) -> int:
    for inside, first, count in ranges:
        if first <= outside < first + count:
            return inside + outside - first
    return NOBODY
