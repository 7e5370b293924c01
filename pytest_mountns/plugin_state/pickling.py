"""Pickles an object, but not the objects in it that both processes have: these get names."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from io import BytesIO
from typing import Any, final


def dump(value: object, shared: Mapping[str, object], most: int) -> bytes | None:
    """Pickle ``value``, as :func:`pack` does; None if that takes more than ``most`` bytes.

    It is not loaded here: an object may do something when it is collected. Raises any exception if
    it cannot be pickled.
    """
    file = _Limited(most)
    try:
        _Pickler(file, shared).dump(value)
    except _TooLarge:
        return None
    return file.getvalue()


class _TooLarge(Exception):
    """The pickle has got larger than it may."""


@final
class _Limited(BytesIO):
    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self._most:
            raise _TooLarge
        return super().write(data)


def pack(state: object, shared: Mapping[str, object]) -> bytes:
    """Pickle ``state``, with names in place of ``shared`` objects.

    Raises any exception if it cannot be pickled, or cannot be loaded again: classes of other
    plugins may raise anything.
    """
    file = BytesIO()
    _Pickler(file, shared).dump(state)
    data = file.getvalue()
    # If it cannot be loaded, this process can say so; the other one could only lose the state.
    unpack(data, shared)
    return data


def unpack(data: bytes, shared: Mapping[str, object]) -> object:
    """Return what :func:`pack` has pickled, with the ``shared`` objects of this process.

    Raises any exception if it cannot be loaded.
    """
    return _Unpickler(BytesIO(data), shared).load()


@final
class _Pickler(pickle.Pickler):
    def __init__(self, file: BytesIO, shared: Mapping[str, object]) -> None:
        super().__init__(file, protocol=5)
        self._names = {id(value): name for name, value in shared.items()}

    def persistent_id(self, obj: object) -> str | None:
        return self._names.get(id(obj))


@final
class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BytesIO, shared: Mapping[str, object]) -> None:
        super().__init__(file)
        self._shared = shared

    def persistent_load(self, pid: Any) -> object:
        return self._shared[pid]
