"""How large a layer may be: a few kilobytes can be made to unpack to terabytes."""

from __future__ import annotations

from typing import Final, NamedTuple, final

from ..plan.spec import SpecError, parse_size

#: Bytes of output up to which the ratio is not checked: small files of zeros are common.
UNSUSPECTED: Final = 256 << 20


@final
class Limits(NamedTuple):
    """The largest layer that is unpacked.

    ``members``: entries of one layer. ``bytes``: unpacked size of one layer or archive. ``ratio``:
    unpacked size by compressed size; it is checked after 256 MiB of output.
    """

    members: int = 1_000_000
    bytes: int = 32 << 30
    ratio: int = 200

    @classmethod
    def parse(cls, text: str) -> Limits:
        """Read ``members=N,bytes=SIZE,ratio=N``, each optional. Raises :class:`SpecError`."""
        limits = cls()
        for part in filter(None, (part.strip() for part in text.split(","))):
            key, _, value = part.partition("=")
            if key not in ("members", "bytes", "ratio"):
                raise SpecError(
                    f"{part!r} is not a limit of a layer", remedy="valid: members=, bytes=, ratio="
                )
            limits = limits._replace(**{key: parse_size(value)})
        return limits
