"""The section "filesystem changes" of reports: what a test has changed.

The changes of a test are only read if a report shows them. By default, those of a test that passes
are not read at all.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, final

import pytest

from ..config import options
from ..engine.linux.errors import SandboxError
from ..session.observers import Observer, WrittenByTest
from ..session.temporary import temporary_directories
from . import SECTION

if TYPE_CHECKING:
    from ..engine.changes.changes import Changes
    from .filter import FilteredChanges

PROPERTY: Final = "mountns_changes"
#: How many paths the user property has.
_PROPERTY_PATHS: Final = 200

#: The text that an earlier report of the same test has shown.
_said_key: Final = pytest.StashKey[str]()
#: The value of the user property, as an earlier report has it.
_property_key: Final = pytest.StashKey[str]()
#: What a test whose process has died had changed, and the text of the section.
_died_key: Final = pytest.StashKey["tuple[FilteredChanges, str]"]()


def section(found: FilteredChanges) -> str:
    """The text of the section; "" if there is nothing to show."""
    if not found.changes:
        return ""
    from ..engine.changes.render import Limits, text_of

    return "\n".join(text_of(found.changes, Limits(), found.note()))


def paths_and_kinds(changes: Changes) -> str:
    """The value of the user property: a JSON object, cut after many paths."""
    first = {change.path: change.kind for change in changes[:_PROPERTY_PATHS]}
    more = len(changes) - len(first)
    return json.dumps({**first, **({"": f"and {more} more"} if more else {})})


@final
class ChangesReport(Observer):
    """Adds the section to reports, and colours it in the terminal."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._when = options.changes_policy(config)

    def wants_pause(self, report: pytest.TestReport) -> bool:
        """A test that passes is read while it waits after its call."""
        return self._when == "all" and report.when == "call"

    def on_report(
        self, item: pytest.Item, report: pytest.TestReport, written: WrittenByTest | None
    ) -> None:
        """Add to a report what the test has changed so far, if it is to say so."""
        if written is None or written.left:
            died = item.stash.get(_died_key, None)
            if died is not None:
                del item.stash[_died_key]
                self._attach(item, report, *died)
            elif _property_key in item.stash:
                _set_property(report, item.stash[_property_key])
            return
        if report.when == "setup":
            # Another attempt: what is known of the one before does not belong to it.
            _forget(item)
        if report.failed or self.wants_pause(report):
            if self._when == "none":
                return
            try:
                with written.changes() as changes:
                    self._attach(item, report, *self._shown(changes))
            except SandboxError as error:
                # The report is about the test's own failure.
                report.sections.append((SECTION, f"cannot be read: {error}"))
        elif report.when == "teardown" and _property_key in item.stash:
            _set_property(report, item.stash[_property_key])

    def wants_end(self, *, died: bool) -> bool:
        """True if the test process has died: its changes cannot be read later."""
        return died and self._when != "none"

    def ended(self, item: pytest.Item, written: WrittenByTest, *, died: bool) -> None:
        """Keep the changes for the report of the crash."""
        with written.changes() as changes:
            item.stash[_died_key] = self._shown(changes)

    def _shown(self, changes: Changes) -> tuple[FilteredChanges, str]:
        """What is shown of them, and the text of the section; diffs can only be read now."""
        from .filter import filter_changes

        found = filter_changes(changes, temporary_directories(self._config))
        return found, section(found)

    def _attach(
        self, item: pytest.Item, report: pytest.TestReport, found: FilteredChanges, text: str
    ) -> None:
        """Put them into a report, unless an earlier one of the same test says the same."""
        if text and item.stash.get(_said_key, None) != text:
            item.stash[_said_key] = text
            item.stash[_property_key] = paths_and_kinds(found.changes)
            report.sections.append((SECTION, text))
            self._attach_extra(report, found.changes)
        if _property_key in item.stash:
            # pytest's JUnit file takes that of the teardown's report.
            _set_property(report, item.stash[_property_key])

    def _attach_extra(self, report: pytest.TestReport, changes: Changes) -> None:
        """For pytest-html, as its ``extras.json`` makes them."""
        if not self._config.pluginmanager.hasplugin("html"):
            return
        extra = {
            "name": SECTION,
            "format_type": "json",
            "content": changes[:_PROPERTY_PATHS].to_json(indent=1),
            "mime_type": "application/json",
            "extension": "json",
        }
        report.extras = [*getattr(report, "extras", []), extra]  # type: ignore[attr-defined]

    # First: the terminal's own, which is a wrapper too, writes before it yields.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> Generator[None, object, object]:
        """Sections travel as plain text, which other reporters want; colours are the terminal's."""
        writer = self._config.get_terminal_writer()
        if not writer.hasmarkup:
            return (yield)
        plain = [(report, report.sections) for report in _with_section(terminalreporter.stats)]
        for report, sections in plain:
            report.sections = [
                (name, _coloured(text, writer) if name == SECTION else text)
                for name, text in sections
            ]
        try:
            return (yield)
        finally:
            for report, sections in plain:
                report.sections = sections


@final
class ChangesHook(Observer):
    """Calls ``pytest_mountns_changes``, if a plugin implements it."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def wants_end(self, *, died: bool) -> bool:
        """Changes are only read when a plugin implements the hook."""
        return bool(self._config.hook.pytest_mountns_changes.get_hookimpls())

    def ended(self, item: pytest.Item, written: WrittenByTest, *, died: bool) -> None:
        """Call the hook; what it raises fails the teardown of the test."""
        with written.changes() as changes:
            item.ihook.pytest_mountns_changes(item=item, changes=changes)


def _forget(item: pytest.Item) -> None:
    stash = item.stash
    if _said_key in stash:
        del stash[_said_key]
    if _property_key in stash:
        del stash[_property_key]


def _set_property(report: pytest.TestReport, value: str) -> None:
    others = [pair for pair in report.user_properties if pair[0] != PROPERTY]
    report.user_properties[:] = [*others, (PROPERTY, value)]


def _with_section(stats: Mapping[str, Sequence[object]]) -> Iterator[Any]:
    for reports in stats.values():
        for report in reports:
            if any(name == SECTION for name, _ in getattr(report, "sections", ())):
                yield report


def _coloured(text: str, writer: Any) -> str:
    from ..engine.changes.render import COLOURS, styled

    return "\n".join(
        writer.markup(line, **{COLOURS[style]: True}) if style else line
        for style, line in styled(text)
    )
