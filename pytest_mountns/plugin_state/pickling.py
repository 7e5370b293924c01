"""Pickles an object, but not the objects in it that both processes have: these get names."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO, StringIO
from typing import Any, final


@final
class Names:
    """Objects that both processes have, and a name for each."""

    def __init__(self, shared: Mapping[str, object]) -> None:
        #: The objects by their names.
        self.objects = dict(shared)
        #: The names by the ids of the objects.
        self.of = {id(value): name for name, value in shared.items()}

    @contextmanager
    def naming(self, name: str, value: object) -> Iterator[None]:
        """A context in which ``value`` has this name as well, unless it is None."""
        if value is None:
            yield
            return
        self.objects[name] = value
        self.of[id(value)] = name
        try:
            yield
        finally:
            del self.objects[name], self.of[id(value)]


def dump(value: object, names: Names) -> bytes:
    """Pickle ``value``, with names in place of objects.

    Raises any exception if it cannot be pickled, or would do something when it is collected.
    """
    file = BytesIO()
    _Cautious(file, names).dump(value)
    return file.getvalue()


def dump_small(value: object, names: Names, most: int) -> bytes | None:
    """Does as :func:`dump`; None if it takes more than ``most`` bytes.

    It is not loaded here: an object may do something when it is collected.
    """
    file = _Limited(most)
    try:
        _Cautious(file, names).dump(value)
    except _TooLarge:
        return None
    return file.getvalue()


def load(data: bytes, names: Names) -> object:
    """Return what :func:`dump` has pickled, with the objects of this process.

    Raises any exception if it cannot be loaded.
    """
    return _Unpickler(BytesIO(data), names).load()


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
    names = Names(shared)
    file = BytesIO()
    _Pickler(file, names).dump(state)
    data = file.getvalue()
    # If it cannot be loaded, this process can say so; the other one could only lose the state.
    load(data, names)
    return data


def unpack(data: bytes, shared: Mapping[str, object]) -> object:
    """Return what :func:`pack` has pickled, with the ``shared`` objects of this process.

    Raises any exception if it cannot be loaded.
    """
    return load(data, Names(shared))


class _Pickler(pickle.Pickler):
    def __init__(self, file: BytesIO, names: Names) -> None:
        super().__init__(file, protocol=5)
        self._names = names.of

    def persistent_id(self, obj: object) -> str | None:
        return self._names.get(id(obj))


@final
class _Cautious(_Pickler):
    """For objects of which nobody has looked what they are."""

    def reducer_override(self, obj: object) -> Any:
        # Streams in memory have one, too, which closes the copy.
        if hasattr(type(obj), "__del__") and type(obj) not in (StringIO, BytesIO):
            raise pickle.PicklingError("its copy would do at its end what this object does")
        return NotImplemented


@final
class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BytesIO, names: Names) -> None:
        super().__init__(file)
        self._objects = names.objects

    def persistent_load(self, pid: Any) -> object:
        return self._objects[pid]
