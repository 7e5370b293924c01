"""The parts that exist for speed alone, and a switch that leaves them out.

``MOUNTNS_ABLATE=fork_pages,templates`` in the environment of the pytest process leaves out the
parts that it names. Tests then behave as before and cost more. ``python -m benchmarks --ablation``
measures how much more. It is a switch for developers, not an option of the plugin.
"""

from __future__ import annotations

import os
from typing import Final, Literal, TypeAlias, get_args

Part: TypeAlias = Literal["fork_pages", "background_close", "templates", "root_calls", "made_ahead"]

VARIABLE: Final = "MOUNTNS_ABLATE"
PARTS: Final[tuple[Part, ...]] = get_args(Part)


def parse(text: str) -> frozenset[str]:
    """Returns the names in the value of the variable.

    Raises :class:`ValueError` if one of them is not a part: a misspelt name would measure nothing.
    """
    names = frozenset(name for name in map(str.strip, text.split(",")) if name)
    if unknown := sorted(names.difference(PARTS)):
        raise ValueError(
            f"{VARIABLE}: there is no part {', '.join(unknown)}; there are: {', '.join(PARTS)}"
        )
    return names


#: The parts that are left out in this process and in those that it forks.
LEFT_OUT: Final = parse(os.environ.get(VARIABLE, ""))


def is_left_out(part: Part) -> bool:
    """Whether this part is left out."""
    return part in LEFT_OUT
