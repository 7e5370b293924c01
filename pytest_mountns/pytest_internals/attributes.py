"""Which attributes of a collected node are pytest's own, and which another plugin has added."""

from __future__ import annotations

import dis
import functools
from types import CodeType

from _pytest.nodes import Node


def foreign_attributes(node: Node) -> dict[str, object]:
    """The attributes of ``node`` that neither pytest nor the class of the node sets, by name."""
    own = _own_names(type(node))
    return {name: value for name, value in vars(node).items() if name not in own}


@functools.cache
def _own_names(kind: type[Node]) -> frozenset[str]:
    """The names that a class and its bases define, and the attributes that their methods set."""
    names: set[str] = set()
    for base in kind.__mro__:
        names.update(vars(base), getattr(base, "__annotations__", ()))
        for value in vars(base).values():
            function = getattr(value, "fget", None) or getattr(value, "__func__", value)
            if isinstance(code := getattr(function, "__code__", None), CodeType):
                names.update(
                    str(one.argval)
                    for one in dis.get_instructions(code)
                    if one.opname == "STORE_ATTR"
                )
    # Set by pytest from elsewhere.
    return frozenset(names | {"_request", "funcargs", "_evaluated_markers", "_explain_cache"})
