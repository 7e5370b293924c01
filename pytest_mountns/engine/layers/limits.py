"""How much a layer may be: a few kilobytes can be made to unpack to terabytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, final

from ..plan.spec import SpecError, parse_size

#: Output up to which no ratio is looked at: small things full of zeros are nothing unusual.
UNSUSPECTED: Final = 256 << 20


@final
@dataclass(frozen=True, slots=True)
class Limits:
    """``members``: entries of one layer. ``bytes``: of one layer or archive, unpacked.

    ``ratio``: times as big as it was compressed, once over 256 MiB have come out.
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
                    f"{part!r} is no limit of a layer", remedy="valid: members=, bytes=, ratio="
                )
            limits = replace(limits, **{key: parse_size(value)})
        return limits
