"""What tests have changed, in their reports; and tests that have changed what they may not.

Nothing is read from a sandbox that nobody asks for: of a test that passes, nothing at all.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast, final

import pytest

from .. import pytest_internals
from ..config import options as settings
from ..engine.changes.changes import Change, Changes, compile_globs
from ..engine.changes.render import COLOURS, Limits, describe, diffs, styled, text_of
from ..engine.linux.errors import SandboxError
from ..session.selection import SECTION

if TYPE_CHECKING:
    from ..runners.inline import InlineTest
    from ..session.session import Gate
    from .audit import Audit

_Reading: TypeAlias = AbstractContextManager[Changes]

PROPERTY: Final = "mountns_changes"
#: In the temporary directory: where ``tmp_path`` lies of a test that root runs as another user.
USER_TEMPORARY: Final = "pytest-of-mountns-user"
#: Paths in the user property, and in the message of a test that wrote where it may not.
_PROPERTY_PATHS: Final = 200
_MESSAGE_PATHS: Final = 20

changes_key: Final = pytest.StashKey["ChangesReport"]()
_said_key: Final = pytest.StashKey[str]()
_property_key: Final = pytest.StashKey[str]()
_accused_key: Final = pytest.StashKey["set[str]"]()


@final
@dataclass(frozen=True, slots=True)
class Sorted:
    """Changes apart from those that say nothing about the test: pytest's and Python's own."""

    changes: Changes
    temporary: int
    bytecode: int

    def note(self) -> str:
        """A line that says what was left out; "" if nothing was."""
        parts = []
        if self.temporary:
            parts.append(f"{self.temporary} in pytest's temporary directory (tmp_path)")
        if self.bytecode:
            parts.append(f"{self.bytecode} in __pycache__")
        return f"not shown: {', '.join(parts)}" if parts else ""


def sort_out(changes: Changes, temporary: Sequence[str]) -> Sorted:
    """``temporary``: directories whose trees are pytest's."""
    prefixes = tuple(f"{place}/" for place in temporary)
    kept, own, bytecode = [], 0, 0
    for change in changes:
        path = change.path
        if path in temporary or path.startswith(prefixes):
            own += 1
        elif "/__pycache__" in path and re.search(r"/__pycache__(/|$)", path):
            bytecode += 1
        else:
            kept.append(change)
    return Sorted(Changes(kept), own, bytecode)


def temporary_directories(config: pytest.Config) -> list[str]:
    """Where pytest puts ``tmp_path``: the directory of this run or, if that is in one for all runs
    of the user, that one."""
    chosen = pytest_internals.base_temporary_directory(config)
    # Before one is chosen, it is found by its name.
    root = os.environ.get("PYTEST_DEBUG_TEMPROOT") or tempfile.gettempdir()
    places = [os.path.join(os.path.realpath(root), f"pytest-of-{pytest_internals.user_name()}")]
    places.append(os.path.join(os.path.realpath(tempfile.gettempdir()), USER_TEMPORARY))
    if chosen is not None and not chosen.startswith(f"{places[0]}/"):
        places.append(chosen)
    return places


def section(found: Sorted, limits: Limits) -> str:
    """The text of the section; "" if there is nothing to show."""
    if not found.changes:
        return ""
    return "\n".join(text_of(found.changes, limits, found.note()))


def paths_and_kinds(changes: Changes) -> str:
    """The value of the user property: a JSON object, cut after many paths."""
    first = {change.path: change.kind for change in changes[:_PROPERTY_PATHS]}
    more = len(changes) - len(first)
    return json.dumps({**first, **({"": f"and {more} more"} if more else {})})


def outside(changes: Changes, globs: Sequence[str]) -> list[Change]:
    """Those that no glob allows. Of a renamed directory both places have to be allowed."""
    allowed = compile_globs(globs)
    return [
        change
        for change in changes
        if not allowed.fullmatch(change.path)
        or (change.source is not None and not allowed.fullmatch(change.source))
    ]


@final
class ChangesReport:
    """The hooks of one session, and what the pytest process does for the tests that it has forked.

    Where the changes come from is for the caller to say: a function whose context gives them.
    """

    def __init__(self, config: pytest.Config, gate: Gate, audit: Audit | None) -> None:
        self._config = config
        self._gate = gate
        self._audit = audit
        self._when = settings.changes_policy(config)
        self._limits = Limits()

    # In the test process: what it runs may have replaced any function, so others do the reading ---

    def waits_for(self, report: pytest.TestReport) -> bool:
        """Whether a test stands still while its report is completed."""
        return self._when == "all" and report.when == "call"

    def watch(self, item: pytest.Item) -> None:
        """In the sandbox, before the test. No hook: hooks of ours would show in tracebacks."""
        inside = self._gate.inside
        if inside is not None and self._gate.spec(item).writes is not None:
            process = self._gate.process
            if process is not None:
                guard = _WritesGuard(partial(process.sender.ask, "strays"))
            else:
                # Without a fork, what is written later is looked at on the way home.
                read = cast("InlineTest", inside).read_changes
                guard = _WritesGuard(partial(self.strays, item, read), later=False)
            self._config.pluginmanager.register(guard, "mountns-writes")

    # In the pytest process ------------------------------------------------------------------------

    def complete(
        self, item: pytest.Item, report: pytest.TestReport, read: Callable[[], _Reading]
    ) -> None:
        """Add to a report what the test has changed so far, if it is to say so."""
        if report.when == "setup":
            # Another attempt: what is known of the one before does not belong to it.
            _forget(item)
        if report.failed or self.waits_for(report):
            if self._when == "none":
                return
            try:
                with read() as changes:
                    found = sort_out(changes, temporary_directories(self._config))
                    self.attach(item, report, found, section(found, self._limits))
            except SandboxError as error:
                # The test's own failure is what the report is about.
                report.sections.append((SECTION, f"cannot be read: {error}"))
        elif report.when == "teardown" and _property_key in item.stash:
            _set_property(report, item.stash[_property_key])

    def carry(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """Into the report of a teardown: what an earlier report has said."""
        if _property_key in item.stash:
            _set_property(report, item.stash[_property_key])

    def strays(self, item: pytest.Item, read: Callable[[], _Reading]) -> str:
        """Why the test fails: what it has changed where it may not, and was not told of before."""
        globs = self._gate.spec(item).writes
        if globs is None:
            return ""
        try:
            with read() as changes:
                found = sort_out(changes, temporary_directories(self._config))
        except SandboxError as error:
            return str(error)
        accused = item.stash.setdefault(_accused_key, set())
        strays = [change for change in outside(found.changes, globs) if change.path not in accused]
        accused.update(change.path for change in strays)
        return _accusation(strays, globs) if strays else ""

    def attach(
        self, item: pytest.Item, report: pytest.TestReport, found: Sorted, text: str
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

    def is_wanted(self, *, died: bool) -> bool:
        """Whether anybody asks for the changes of a test that has ended."""
        return bool(
            self._audit is not None
            or (died and self._when != "none")
            or self._config.hook.pytest_mountns_changes.get_hookimpls()
        )

    def ended(
        self, item: pytest.Item, read: Callable[[], _Reading], *, died: bool
    ) -> tuple[tuple[Sorted, str] | None, pytest.CallInfo[None] | None]:
        """In the pytest process, when a test has ended: tell those who want to know.

        Returns what :meth:`attach` wants for the report of a process that has died, and the call
        of the hooks if one of them has failed.
        """
        if not self.is_wanted(died=died):
            return None, None
        told: tuple[Sorted, str] | None = None

        def tell() -> None:
            nonlocal told
            with read() as changes:
                told = self._tell(item, changes, died=died)

        call = pytest.CallInfo.from_call(tell, when="teardown")
        return told, call if call.excinfo is not None else None

    def _tell(
        self, item: pytest.Item, changes: Changes, *, died: bool
    ) -> tuple[Sorted, str] | None:
        found = sort_out(changes, temporary_directories(self._config))
        told = None
        if died and self._when != "none":
            told = found, section(found, self._limits)
        if self._audit is not None:
            self._audit.note(item, found)
        item.ihook.pytest_mountns_changes(item=item, changes=changes)
        return told

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
class _WritesGuard:
    """Hooks that fail one test for what it has changed outside of ``writes``.

    A plugin of their own, since wrappers show in the tracebacks that ``--tb=native`` prints.
    """

    def __init__(self, ask: Callable[[], object], *, later: bool = True) -> None:
        self._ask = ask
        self._later = later

    # Innermost of the wrappers: the failure is one of the test, and an xfail mark covers it.
    @pytest.hookimpl(wrapper=True, trylast=True)
    @pytest_internals.unseen
    def pytest_runtest_call(self) -> Generator[None, object, object]:
        result = yield
        self._check()
        return result

    @pytest.hookimpl(wrapper=True, trylast=True)
    @pytest_internals.unseen
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        result = yield
        # There may be another attempt in the same process, or another test.
        item.config.pluginmanager.unregister(self)
        if self._later:
            self._check()
        return result

    def _check(self) -> None:
        # This frame stays visible: where all are hidden, pytest says so below the message.
        message = self._ask()
        if message:
            pytest.fail(str(message), pytrace=False)


def _forget(item: pytest.Item) -> None:
    stash = item.stash
    if _said_key in stash:
        del stash[_said_key]
    if _property_key in stash:
        del stash[_property_key]
    if _accused_key in stash:
        del stash[_accused_key]


def _set_property(report: pytest.TestReport, value: str) -> None:
    others = [pair for pair in report.user_properties if pair[0] != PROPERTY]
    report.user_properties[:] = [*others, (PROPERTY, value)]


def _accusation(strays: Sequence[Change], globs: Sequence[str]) -> str:
    # The first line is all that pytest's short summary shows.
    more = f" and {len(strays) - 1} more" if len(strays) > 1 else ""
    first = f"{strays[0].path}{more} changed, outside of writes=[{', '.join(map(repr, globs))}]"
    lines = [first]
    for change in strays[:_MESSAGE_PATHS]:
        said = describe(change)
        lines.append(f"  {change.kind:9} {change.path}" + (f"  ({said})" if said else ""))
    if len(strays) > _MESSAGE_PATHS:
        lines.append(f"  ... and {len(strays) - _MESSAGE_PATHS} more")
    return "\n".join(lines)


def _with_section(stats: Mapping[str, Sequence[object]]) -> Iterator[Any]:
    for reports in stats.values():
        for report in reports:
            if any(name == SECTION for name, _ in getattr(report, "sections", ())):
                yield report


def _coloured(text: str, writer: Any) -> str:
    return "\n".join(
        writer.markup(line, **{COLOURS[style]: True}) if style else line
        for style, line in styled(text)
    )


def explain_comparison(left: object, right: object, verbose: int) -> list[str] | None:
    """``pytest_assertrepr_compare`` of changes with a mapping of paths to kinds, or with others."""
    if isinstance(left, Changes):
        found, expected = left, right
    elif isinstance(right, Changes):
        found, expected = right, left
    else:
        return None
    if isinstance(expected, Changes):
        wanted: Mapping[Any, Any] = expected.as_dict()
    elif isinstance(expected, Mapping):
        wanted = expected
    else:
        return None
    kinds = found.as_dict()
    lines = [f"{len(kinds)} changes found, {len(wanted)} expected"]
    more = [change for change in found if change.path not in wanted]
    missing = [path for path in wanted if path not in kinds]
    other = [change for change in found if wanted.get(change.path, change.kind) != change.kind]
    if other:
        lines.append("Of another kind:")
        lines += [f"  {c.path!r}: {c.kind!r}, expected {wanted[c.path]!r}" for c in other]
    if missing:
        lines.append("Expected, but not found:")
        lines += [f"  {path!r}: {wanted[path]!r}" for path in missing]
    if more:
        lines.append("Found, but not expected:")
        for change in more:
            said = describe(change)
            lines.append(f"  {change.path!r}: {change.kind!r}" + (f"  ({said})" if said else ""))
    if not (other or missing or more):
        if not isinstance(expected, Changes):
            return None
        lines.append("The same paths and kinds, from other sources")
    if verbose > 0:
        limits = Limits(lines=400, files=100) if verbose > 1 else Limits()
        lines += diffs(Changes([*more, *other]), limits)
    return lines
