"""What a run of pytest reports, event by event, as a plugin inside of it has seen it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, cast

#: A plugin that writes down everything that is reported. To be formatted with the file's name.
RECORDER: Final = """
import json

FILE = {file!r}
events = []


def pytest_runtest_logstart(nodeid):
    events.append(["start", dict(nodeid=nodeid)])


def pytest_runtest_logfinish(nodeid):
    events.append(["finish", dict(nodeid=nodeid)])


def pytest_runtest_logreport(report):
    context = getattr(report, "context", None)
    fields = dict(
        nodeid=report.nodeid,
        when=report.when,
        outcome=report.outcome,
        wasxfail=getattr(report, "wasxfail", None),
        longrepr_type=type(report.longrepr).__name__,
        text=report.longreprtext,
        sections=report.sections,
        keywords=sorted(report.keywords),
        context=str(context),
        properties=str(report.user_properties),
    )
    events.append(["report", fields])


def pytest_warning_recorded(warning_message, when, nodeid):
    fields = dict(
        nodeid=nodeid,
        when=when,
        category=warning_message.category.__name__,
        message=str(warning_message.message),
    )
    events.append(["warning", fields])


def pytest_sessionfinish(exitstatus):
    with open(FILE, "w") as file:
        json.dump({{"status": int(exitstatus), "events": events}}, file)
"""


class Start(NamedTuple):
    """The protocol of a test begins."""

    nodeid: str


class Finish(NamedTuple):
    """The protocol of a test has ended."""

    nodeid: str


class Report(NamedTuple):
    """A phase of a test, or a subtest, has been reported."""

    nodeid: str
    when: str
    outcome: str
    wasxfail: str | None
    #: The name of the class of the report's ``longrepr``.
    longrepr_type: str
    #: What the report shows of a failure.
    text: str
    #: Title and content of each.
    sections: list[tuple[str, str]]
    keywords: list[str]
    #: Of a subtest, as text.
    context: str
    #: The ``user_properties``, as text.
    properties: str

    @property
    def name(self) -> str:
        """The name of the test in its module or class."""
        return self.nodeid.rpartition("::")[2]


class RecordedWarning(NamedTuple):
    """A warning was recorded, by ``nodeid`` or while tests were collected."""

    nodeid: str
    when: str
    category: str
    message: str


Event: TypeAlias = Start | Finish | Report | RecordedWarning


@dataclass(frozen=True)
class Recorded:
    """A run of pytest that has ended."""

    status: int
    events: list[Event]
    out: str
    err: str

    @classmethod
    def of(cls, content: str, *, out: str, err: str) -> Recorded:
        """The run that has written ``content`` by :data:`RECORDER`."""
        found = json.loads(content)
        return cls(found["status"], [_event(*each) for each in found["events"]], out, err)

    @property
    def reports(self) -> list[Report]:
        return [event for event in self.events if isinstance(event, Report)]

    @property
    def failed(self) -> list[Report]:
        return [report for report in self.reports if report.outcome == "failed"]

    @property
    def not_passed(self) -> list[Report]:
        """The reports of what has failed or was skipped."""
        return [report for report in self.reports if report.outcome != "passed"]

    @property
    def warnings(self) -> list[RecordedWarning]:
        return [event for event in self.events if isinstance(event, RecordedWarning)]

    @property
    def outcomes(self) -> dict[tuple[str, str], str]:
        """The outcome by the test's name and the phase; of several, as of subtests, the last."""
        return {(report.name, report.when): report.outcome for report in self.reports}

    @property
    def outline(self) -> list[tuple[str, ...]]:
        """The events without texts: kind, test, phase, and outcome or category."""
        return [(type(event).__name__, *map(str, event[:3])) for event in self.events]

    def without(self, *fields: str) -> list[Event]:
        """The events, with nothing in these fields of reports."""
        nothing = cast("dict[str, Any]", dict.fromkeys(fields))
        return [
            event._replace(**nothing) if isinstance(event, Report) else event
            for event in self.events
        ]


class Record(Protocol):
    """The fixture ``record``: runs pytest with these arguments."""

    def __call__(self, *arguments: str) -> Recorded: ...


#: The fields of a report that are texts, or tell more than how a test has ended.
TEXTS: Final = ("text", "sections", "keywords", "context", "properties")


def _event(kind: str, fields: dict[str, Any]) -> Event:
    if kind == "start":
        return Start(**fields)
    if kind == "finish":
        return Finish(**fields)
    if kind == "warning":
        return RecordedWarning(**fields)
    assert kind == "report"
    sections = [(title, content) for title, content in fields.pop("sections")]
    return Report(**fields, sections=sections)
