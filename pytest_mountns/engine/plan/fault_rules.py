"""Rules that say which system calls fail, read from text and checked. No system call is made."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from typing import Final, final

from .spec import SpecError

#: What a rule may name in place of a system call: every call that does the same.
FAMILIES: Final[dict[str, tuple[str, ...]]] = {
    "read": ("read", "pread64", "readv", "preadv", "preadv2"),
    "write": (
        *("write", "pwrite64", "writev", "pwritev", "pwritev2"),
        *("sendfile", "copy_file_range", "splice"),
    ),
    "open": ("open", "creat", "openat", "openat2"),
    "fsync": ("fsync", "fdatasync"),
    "truncate": ("truncate", "ftruncate"),
    "rename": ("rename", "renameat", "renameat2"),
    "link": ("link", "linkat"),
    "symlink": ("symlink", "symlinkat"),
    "unlink": ("unlink", "unlinkat"),
    "rmdir": ("rmdir", "unlinkat"),
    "mkdir": ("mkdir", "mkdirat"),
    "mknod": ("mknod", "mknodat"),
    "chmod": ("chmod", "fchmod", "fchmodat", "fchmodat2"),
    "chown": ("chown", "lchown", "fchown", "fchownat"),
    "utime": ("utime", "utimes", "futimesat", "utimensat"),
    "setxattr": ("setxattr", "lsetxattr", "fsetxattr", "setxattrat"),
    "removexattr": ("removexattr", "lremovexattr", "fremovexattr", "removexattrat"),
}
#: System calls that a rule may name alone.
SINGLE: Final = (
    *("fdatasync", "sync_file_range", "syncfs", "fallocate", "getdents64"),
    *("pread64", "pwrite64", "readv", "writev", "copy_file_range", "sendfile", "splice"),
    *("openat", "openat2", "renameat2", "ftruncate"),
)
#: In place of an errno: half of the bytes are transferred.
SHORT: Final = "short"

_OPTION: Final = re.compile("(nth|every|after_bytes|seed)=([0-9]+)|(probability|delay)=([0-9.]+)")


@final
@dataclass(frozen=True, slots=True)
class FaultRule:
    """Calls that fail. Raises :class:`SpecError` if it contradicts itself."""

    #: A key of :data:`FAMILIES`, or one of :data:`SINGLE`.
    call: str
    #: The paths that it is about, as in :meth:`.Changes.matching`.
    glob: str
    #: The name of an errno, "short", or "" for a delay alone.
    error: str = ""
    #: Only this one of the calls that match, from 1; 0 for all.
    nth: int = 0
    #: Only every so many of them; 0 for all.
    every: int = 0
    #: Only when so many bytes have been transferred by calls that match; None for all.
    after_bytes: int | None = None
    #: How likely it is, from 0 to 1.
    probability: float = 1.0
    #: Where the dice begin.
    seed: int = 0
    #: Seconds that the call is held up before it fails or goes on.
    delay: float = 0.0

    def __post_init__(self) -> None:
        if self.call not in FAMILIES and self.call not in SINGLE:
            raise SpecError(
                f"{self.call!r} is no system call that can be made to fail",
                remedy=f"choose from: {', '.join(sorted({*FAMILIES, *SINGLE}))}",
            )
        if self.error not in ("", SHORT) and self.number == 0:
            raise SpecError(
                f"{self.error!r} is not the name of an errno",
                remedy='write it as in errno(3), as EIO or ENOSPC, or "short"',
            )
        if self.error == SHORT and self.call not in ("read", "write", "pread64", "pwrite64"):
            raise SpecError(
                f"{self.call} cannot be short", remedy='"short" goes with read and write'
            )
        if not self.error and not self.delay:
            raise SpecError(
                f"{self} does nothing", remedy="name an errno, or a delay: fsync:/srv/**::delay=0.1"
            )
        if not 0 <= self.probability <= 1:
            raise SpecError(f"probability={self.probability}", remedy="from 0 to 1")

    @property
    def number(self) -> int:
        """The number of the errno; 0 if there is none."""
        number = getattr(errno, self.error, 0) if self.error.startswith("E") else 0
        return number if isinstance(number, int) else 0

    @property
    def calls(self) -> tuple[str, ...]:
        """The system calls that it is about."""
        return FAMILIES.get(self.call, (self.call,))

    @classmethod
    def parse(cls, text: str) -> FaultRule:
        r"""Read ``CALL:GLOB:ERRNO[:OPTION=VALUE]``; ``\:`` is a colon in the glob.

        Options: ``nth``, ``every``, ``after_bytes``, ``probability``, ``seed``, ``delay``. Raises
        :class:`SpecError` if the text is not valid.
        """
        fields = [part.replace("\\:", ":") for part in re.split(r"(?<!\\):", text)]
        if len(fields) < 3 or not fields[1].startswith(("/", "**")):
            raise SpecError(
                f"{text!r} is not a fault",
                remedy='write "CALL:GLOB:ERRNO", as "fsync:/var/lib/app/**:EIO"; the glob begins'
                " with / or **",
            )
        options: dict[str, float] = {}
        for option in fields[3:]:
            found = _OPTION.fullmatch(option)
            if found is None:
                raise SpecError(
                    f"{option!r} is not an option of a fault",
                    remedy="valid: nth=N, every=N, after_bytes=N, probability=P, seed=N,"
                    " delay=SECONDS",
                )
            if found[1]:
                options[found[1]] = int(found[2])
            else:
                try:
                    options[found[3]] = float(found[4])
                except ValueError:
                    raise SpecError(f"{option!r} has no number", remedy="as delay=0.5") from None
        return cls(fields[0], fields[1], fields[2], **options)  # type: ignore[arg-type]

    def __str__(self) -> str:
        whole = f"{self.call}:{self.glob}:{self.error}"
        for name in ("nth", "every", "after_bytes", "seed", "delay"):
            value = getattr(self, name)
            if value or (name == "after_bytes" and value is not None):
                whole += f":{name}={value:g}" if name == "delay" else f":{name}={value}"
        return whole if self.probability == 1 else f"{whole}:probability={self.probability:g}"
