"""Which attributes of a collected node are pytest's own, and which another plugin has added."""

from __future__ import annotations

import functools
import opcode
from collections.abc import Iterator
from types import CodeType
from typing import Final

from _pytest.nodes import Node

_STORE_ATTR: Final = opcode.opmap["STORE_ATTR"]


def foreign_attributes(node: Node) -> dict[str, object]:
    """The attributes of ``node`` that neither pytest nor the class of the node sets, by name."""
    own, attributes = _own_names(type(node)), vars(node)
    # The names alone: in a test process each value that is looked at has its page copied.
    return {name: attributes[name] for name in attributes if name not in own}


@functools.cache
def _own_names(kind: type[Node]) -> frozenset[str]:
    """The names that a class and its bases define, and the attributes that their methods set."""
    names: set[str] = set()
    for base in kind.__mro__:
        names.update(vars(base), getattr(base, "__annotations__", ()))
        for value in vars(base).values():
            function = getattr(value, "fget", None) or getattr(value, "__func__", value)
            if isinstance(code := getattr(function, "__code__", None), CodeType):
                names.update(_stored(code))
    # Set by pytest from elsewhere.
    return frozenset(names | {"_request", "funcargs", "_evaluated_markers", "_explain_cache"})


def _stored(code: CodeType) -> Iterator[str]:
    """The names of the attributes that ``code`` sets, of whichever object.

    An instruction is two bytes, dis; EXTENDED_ARG has the higher bits of the argument of the next
    one. ``dis.get_instructions()`` takes 18 ms for the classes of a session, and this takes 1 ms.
    """
    higher = 0
    for operation, argument in zip(code.co_code[::2], code.co_code[1::2], strict=True):
        argument |= higher
        higher = argument << 8 if operation == opcode.EXTENDED_ARG else 0
        if operation == _STORE_ATTR:
            yield code.co_names[argument]
