"""What a test process and the pytest process say to each other: one class for each message.

They travel pickled, see :mod:`.channel`. Each docstring says who sends the message, and when.
A message that the receiver does not know is an error there: both ends are forks of one process,
so it can only be a mistake of ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, NoReturn, TypeAlias

if TYPE_CHECKING:
    from ..engine.plan.model import Plan, UppersDescription

# Named tuples: making one and pickling it costs less than a dataclass does, and each test sends
# about ten of them.

# From the test process, on its way into the sandbox ---------------------------------------------


class Refused(NamedTuple):
    """Test process: it could not enter its sandbox, and ends. Nothing else follows."""

    #: Whether the machine cannot do it (``Unavailable``), or it has failed (``SandboxError``).
    unavailable: bool
    tried: str
    kernel: str
    cause: str
    remedy: str


class Entered(NamedTuple):
    """Test process: it is in a fresh root that it has made itself, at the start or after a reset.

    A descriptor of where the uppers lie comes with it.
    """

    uppers: UppersDescription


class Planned(NamedTuple):
    """Test process: it goes on with the root of another plan, after ``add_layer()``."""

    plan: Plan


class Mounted(NamedTuple):
    """Test process: a volume, or a directory as a mount of its own, was mounted.

    What was made to mount a volume on is no change of the test; the directory is read as an upper.
    """

    uppers: UppersDescription


# From the test process, while the test runs -----------------------------------------------------


class LogStart(NamedTuple):
    """Test process: ``pytest_runtest_logstart`` was called there."""

    nodeid: str
    location: tuple[str, int | None, str]


class LogFinish(NamedTuple):
    """Test process: ``pytest_runtest_logfinish`` was called there."""

    nodeid: str
    location: tuple[str, int | None, str]


class Report(NamedTuple):
    """Test process: ``pytest_runtest_logreport`` was called there."""

    #: See :func:`.channel.unpack_report`.
    packed: bytes
    #: The phase that it is about, in case the rest cannot be loaded.
    when: Literal["setup", "call", "teardown"]
    #: How many of the item's subtests have failed so far.
    failed_subtests: int
    #: What plugins have noted that goes with it: see :meth:`.PluginStates.pack_early`.
    notes: list[tuple[str, bytes | None]]
    #: Whether what the terminal reporter writes of it is captured as output of the test.
    captured: bool


class WarningRecorded(NamedTuple):
    """Test process: ``pytest_warning_recorded`` was called there."""

    #: See :func:`.channel.unpack_warning`.
    packed: bytes
    when: str
    nodeid: str


class Screen(NamedTuple):
    """Test process, before a report: it has written to the terminal."""

    #: The line up to the cursor and whose it is; None if it was the live log alone that wrote.
    cursor: tuple[str, object] | None
    live_log: dict[str, object]


class ShownByDebugger(NamedTuple):
    """Test process: ``--pdb`` has shown the failure that was reported last."""


class ReportChanged(NamedTuple):
    """Test process: ``pytest_exception_interact`` has changed the report that was sent last."""

    #: The pickled attributes that are others now.
    fields: bytes


# Questions of the test process, which waits for the answer --------------------------------------


class Settle(NamedTuple):
    """Test process: what it does next comes after what is made of its reports. Waits."""

    #: How many reports it has sent.
    reports: int


class AskObjection(NamedTuple):
    """Test process: do observers object to what the test has written so far? Waits."""


class PipesOpen(NamedTuple):
    """Test process, at its end: it has these pipes open, and the others have to stay so. Waits."""

    #: Their paths, see :class:`.RunnerPipes`.
    paths: list[str]


class PipesHeld(NamedTuple):
    """Pytest process, in answer to :class:`PipesOpen`: the test process may end."""


class Settled(NamedTuple):
    """Pytest process, in answer to :class:`Settle`."""

    reports: int
    #: What plugins have noted when they heard the reports.
    notes: list[tuple[str, bytes | None]]
    cursor: tuple[str, object]
    #: ``session.shouldfail`` and ``shouldstop``, which reports may have set.
    stopping: tuple[bool | str, bool | str]


class Objection(NamedTuple):
    """Pytest process, in answer to :class:`AskObjection`."""

    #: "" if nobody objects.
    text: str


# Of a module process, which runs several tests --------------------------------------------------


class RunTest(NamedTuple):
    """Pytest process, when a module process waits: run this test."""

    #: Of the test among ``session.items``, from 0 on.
    number: int
    #: Of the one that comes after it; None if there is none, or it is not among them.
    next_number: int | None
    #: Whether the module process ends with this test, so that its module is torn down, too.
    ends: bool
    #: As in :class:`Settled`: the line up to the cursor and whose it is.
    cursor: tuple[str, object]
    #: What plugins have noted in the pytest process since the test before.
    notes: list[tuple[str, bytes | None]]


class EndProcess(NamedTuple):
    """Pytest process, when a module process waits: there is no other test for it."""


class TestDone(NamedTuple):
    """Module process: its test has ended. It waits for the next one, or for its end."""

    #: See :class:`Leave`.
    torn_down: bool


class Noted(NamedTuple):
    """Module process: what observers are to hear that is :meth:`.Observer.beside` the tests."""

    kind: str
    why: str


class Skipped(NamedTuple):
    """Module process: its test is skipped since this machine cannot isolate it."""


class TeardownFailed(NamedTuple):
    """Module process: fixtures have failed that were torn down when the session had ended."""

    text: str


# From the test process, at its end --------------------------------------------------------------


class CStdout(NamedTuple):
    """Test process, at its end: what waits in the buffer of C's ``stdout``."""

    content: bytes
    #: Whether the buffer is written at the end of each line.
    by_lines: bool


class EndedProcesses(NamedTuple):
    """Test process, at its end: the test had left these running, and they were ended."""

    names: list[str]


class PluginNotes(NamedTuple):
    """Test process, at its end: what one plugin has noted in memory."""

    plugin: str
    #: See :meth:`.PluginStates.pack`; None if it cannot be pickled.
    packed: bytes | None


class WrittenPages(NamedTuple):
    """Test process, at its end: which pages of memory it has written to."""

    numbers: bytes


class Leave(NamedTuple):
    """Test process: its last message. A process that is gone without it has crashed."""

    #: "" if the protocol of the item has returned; "KeyboardInterrupt", "Exit" or "error" if it
    #: has raised.
    ended_by: str = ""
    #: The text of an Exit or of an error.
    text: str = ""
    #: The exit status of an Exit.
    status: int | None = None
    #: Whether the item was torn down: see :func:`.pytest_internals.drop`.
    torn_down: bool = True
    #: Where a KeyboardInterrupt came up, see :func:`.channel.unpack_interrupt`; empty if unknown.
    interrupt: bytes = b""


#: Everything that a test process may send.
FromTest: TypeAlias = (
    Refused
    | Entered
    | Planned
    | Mounted
    | LogStart
    | LogFinish
    | Report
    | WarningRecorded
    | Screen
    | ShownByDebugger
    | ReportChanged
    | Settle
    | AskObjection
    | PipesOpen
    | CStdout
    | EndedProcesses
    | PluginNotes
    | WrittenPages
    | TestDone
    | Noted
    | Skipped
    | TeardownFailed
    | Leave
)
#: Everything that the pytest process may answer.
Answer: TypeAlias = Settled | Objection | PipesHeld | RunTest | EndProcess

#: Any message: what the channel carries.
Message: TypeAlias = FromTest | Answer
#: In the channel, the number of a class stands for it: pickle would look up its name each time.
_CLASSES: Final[Sequence[Any]] = (*FromTest.__args__, *Answer.__args__)
#: The number of each class, from 0 to 255.
NUMBERS: Final[Mapping[type, int]] = {kind: number for number, kind in enumerate(_CLASSES)}


class UnknownMessage(Exception):
    """The other process has sent something that is no message of this module."""

    def __init__(self, message: object) -> None:
        super().__init__(f"mountns: unknown message from a test process: {message!r:.200}")


def made_of(number: int, fields: Sequence[Any]) -> Any:
    """The message of the class with this number.

    Raises :class:`UnknownMessage` if there is no such class, or it has other fields.
    """
    try:
        return _CLASSES[number](*fields)
    except (IndexError, TypeError) as error:
        raise UnknownMessage((number, fields)) from error


def not_handled(message: NoReturn) -> NoReturn:
    """Raises :class:`UnknownMessage`. The type checker proves that it is never called."""
    raise UnknownMessage(message)
