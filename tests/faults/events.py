"""What the shim writes down, one JSON list a line, and the runner reads."""

from __future__ import annotations

import json
from typing import Final, NamedTuple, TypeAlias


class Target(NamedTuple):
    """The test that meets the fault of this number begins."""

    number: int


class Called(NamedTuple):
    """A call that could be made to fail."""

    site: str


class Failed(NamedTuple):
    """A call was made to fail with this errno."""

    site: str
    errno: int


class Report(NamedTuple):
    """pytest has reported a phase of a test: its call, or another that has not passed."""

    test: str
    when: str
    outcome: str
    text: str


class Over(NamedTuple):
    """A test has ended. The rest is the state of the pytest process afterwards."""

    test: str
    #: What its descriptors lead to, sorted, with numbers taken out.
    descriptors: list[str]
    #: How many mounts there are.
    mounts: int
    #: The names in its working directory, sorted.
    files: list[str]


Event: TypeAlias = Target | Called | Failed | Report | Over

_KINDS: Final = {kind.__name__: kind for kind in (Target, Called, Failed, Report, Over)}


def to_line(event: Event) -> bytes:
    return json.dumps([type(event).__name__, *event]).encode() + b"\n"


def from_line(line: str) -> Event:
    kind, *fields = json.loads(line)
    return _KINDS[kind](*fields)
