"""Fixture scopes as layers: what wider fixtures write lies under the uppers of their tests.

With ``scope="module"`` the fixtures of class and module scope are set up in a sandbox of the node
that they belong to. The pytest process enters that sandbox for the fixture and returns. Its upper
is a lower of the sandboxes of all tests below the node. When the node ends, the fixtures'
finalizers run in the sandbox as well, and then it is let go.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

import pytest

from .. import pytest_internals
from ..engine.linux.errors import SandboxError, Unavailable
from ..engine.linux.untouched import os
from ..engine.plan.model import Features
from ..engine.plan.spec import SandboxSpec
from ..engine.sandbox import disk_uppers
from ..engine.sandbox.sandbox import Layers, Sandbox

if TYPE_CHECKING:
    from .sandboxes import Sandboxes
    from .selection import Selection

_SCOPES: Final = ("function", "class", "module", "package", "session")


@final
@dataclass(slots=True, eq=False, repr=False)
class _NodeSandbox:
    """The sandbox in which the captured fixtures of one node are set up."""

    sandbox: Sandbox
    #: The layers that it was made on.
    under: Layers | None
    #: Sandboxes of the same node that were made on other layers; the fixtures of then are alive.
    older: tuple[Sandbox, ...] = ()

    @property
    def all(self) -> tuple[Sandbox, ...]:
        """Every sandbox of the node, lowest first."""
        return (*self.older, self.sandbox)


@final
class FixtureScopes:
    """The sandboxes of the nodes that are set up at the moment."""

    def __init__(self, selection: Selection, sandboxes: Sandboxes) -> None:
        self._selection = selection
        self._sandboxes = sandboxes
        self._nodes: dict[pytest.Collector, _NodeSandbox] = {}
        #: The working directory of wider fixtures, if it exists in their sandboxes only.
        self.working_directory: str | None = None
        #: Set in a test process: wider fixtures that are first asked for there are the test's own.
        self.closed = False

    def check(self, spec: SandboxSpec, features: Features) -> None:
        """Raises :class:`Unavailable` if wider fixtures are to be captured and cannot be."""
        if spec.scope == "function":
            return
        tried = f"capture what fixtures of {spec.scope} scope write"
        if not features.layered_uppers:
            raise Unavailable(
                tried,
                cause="what they write lies below the tests' uppers, and before Linux 6.15 no"
                " overlay takes a lower on a mount that is in no namespace",
                remedy='Linux 6.15 or later; before, use scope="function"',
            )
        if self._sandboxes.can_enter_and_return:
            return
        reason = self._sandboxes.why_not_inline
        raise Unavailable(
            tried,
            kernel=reason.kernel if reason is not None else "",
            cause="for that, an ordinary user's pytest process has to enter a user namespace itself"
            + (f", and could not: {reason.cause}" if reason is not None and reason.cause else ""),
            remedy='use scope="function"'
            + (f", or: {reason.remedy}" if reason is not None and reason.remedy else ""),
        )

    def within(self, item: pytest.Item) -> pytest_internals.Within:
        """Returns the function that says where a wider fixture of ``item`` is set up."""
        captured = _SCOPES.index(self._selection.spec(item).scope)

        def within(
            scope: pytest_internals.WiderScope, node: pytest.Collector
        ) -> AbstractContextManager[object]:
            if self.closed or _SCOPES.index(scope) > captured:
                return nullcontext()
            return self._inside(self._of_node(item, node).sandbox)

        return within

    def layers(self, item: pytest.Item) -> Layers | None:
        """What the captured wider fixtures of ``item`` have written; None if none are captured."""
        return self._layers_around(item, item) if self._nodes else None

    def sandboxes(self, item: pytest.Item) -> list[Sandbox]:
        """The sandboxes in which the captured wider fixtures of ``item`` wrote, lowest first."""
        found: list[Sandbox] = []
        for outer in item.listchain()[:-1] if self._nodes else ():
            if outer in self._nodes and self._is_captured(item, outer):
                found += self._nodes[outer].all
        return found

    def _is_captured(self, item: pytest.Item, node: pytest.Item | pytest.Collector) -> bool:
        return _SCOPES.index(_scope_of(node)) <= _SCOPES.index(self._selection.spec(item).scope)

    def _layers_around(
        self, item: pytest.Item, node: pytest.Item | pytest.Collector
    ) -> Layers | None:
        """The layers of the captured nodes that ``node`` is in."""
        layers: Layers | None = None
        for outer in node.listchain()[:-1]:
            if outer in self._nodes and self._is_captured(item, outer):
                layers = self._of_node(item, outer).sandbox.as_layers()
        return layers

    def _of_node(self, item: pytest.Item, node: pytest.Item | pytest.Collector) -> _NodeSandbox:
        """The sandbox of ``node``: made if there is none, made anew if its lower layers changed.

        Fails the item if it cannot be made.
        """
        assert isinstance(node, pytest.Collector)
        known = self._nodes.get(node)
        under = self._layers_around(item, node)
        if known is not None and known.under == under:
            return known
        sandboxes = self._sandboxes
        problem: SandboxError
        try:
            spec = sandboxes.with_run_volumes(item, self._selection.spec(item))
            plan = sandboxes.planner.plan(spec.of_wider_scope())
            directory = sandboxes.uppers.new() if plan.upper.medium == "disk" else None
            layers = under if known is None else known.sandbox.as_layers_on(under)
            sandbox = sandboxes.manager.make(plan, directory=directory, layers=layers, shared=False)
        except SandboxError as error:
            problem = error
        else:
            older = () if known is None else known.all
            made = self._nodes[node] = _NodeSandbox(sandbox, under, older)
            if known is None:
                pytest_internals.place_finalizers(
                    node, lambda: self._again(node), lambda: self._close(node)
                )
            return made
        # Not in the handler: the report would show the error twice.
        pytest.fail(str(problem), pytrace=False)

    def _again(self, node: pytest.Collector) -> AbstractContextManager[object]:
        return nullcontext() if self.closed else self._inside(self._nodes[node].sandbox)

    @contextmanager
    def _inside(self, sandbox: Sandbox) -> Iterator[None]:
        on_host = os.getcwd()
        manager = self._sandboxes.manager
        depth = manager.depth
        try:
            # The handler of a signal may raise when the sandbox has just been entered.
            manager.enter(sandbox, self.working_directory or on_host)
            yield
        finally:
            if manager.depth > depth:
                self._follow(on_host, manager.leave())

    def _follow(self, on_host: str, inside: str) -> None:
        """Change to where a wider fixture went, or remember that if the host has no such place."""
        self.working_directory = None
        if inside != on_host:
            try:
                os.chdir(inside)
            except OSError:
                self.working_directory = inside

    def _close(self, node: pytest.Collector) -> None:
        known = self._nodes.pop(node, None)
        if known is None or self.closed:
            return
        self._sandboxes.manager.release(known.all)
        for sandbox in known.all:
            if sandbox.directory is not None:
                disk_uppers.remove(sandbox.directory)


def _scope_of(node: pytest.Item | pytest.Collector) -> str:
    kinds = (
        (pytest.Class, "class"),
        (pytest.Module, "module"),
        (pytest.Package, "package"),
        (pytest.Session, "session"),
    )
    return next((scope for kind, scope in kinds if isinstance(node, kind)), "module")
