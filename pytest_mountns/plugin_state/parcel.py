"""Pickles with names in the place of objects that both processes have."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from io import BytesIO
from typing import Any, final


def pack(state: object, shared: Mapping[str, object]) -> bytes:
    """Pickle ``state``; may raise anything."""
    file = BytesIO()
    _Pickler(file, shared).dump(state)
    data = file.getvalue()
    # What cannot be loaded again is better known here.
    unpack(data, shared)
    return data


def unpack(data: bytes, shared: Mapping[str, object]) -> object:
    """What :func:`pack` has packed; may raise anything."""
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
