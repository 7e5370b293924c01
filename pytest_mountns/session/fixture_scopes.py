"""Scopes as layers: what fixtures wider than a function write lies under their tests' uppers.

With ``scope="module"`` the fixtures of class and module scope are set up in a sandbox of the node
that they belong to, in the pytest process: it goes in for the fixture and returns. The upper of
that sandbox is a lower of those of the tests below the node. It goes when the node ends, after
the fixtures' finalizers, which run in there as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

import pytest

from .. import pytest_internals
from ..engine.linux.errors import SandboxError, Unavailable
from ..engine.plan.spec import SandboxSpec
from ..engine.sandbox import disk_uppers
from ..engine.sandbox.sandbox import Layers, Sandbox

if TYPE_CHECKING:
    from .session import Gate

_SCOPES: Final = ("function", "class", "module", "package", "session")


@final
@dataclass(slots=True)
class _Place:
    """The sandbox of one node; ``under`` are the layers it was made on."""

    sandbox: Sandbox
    under: Layers | None
    older: tuple[Sandbox, ...] = ()


@final
class FixtureScopes:
    """The sandboxes of the nodes that are set up just now."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._places: dict[pytest.Collector, _Place] = {}
        #: Where wider fixtures have gone, if that is only in their sandboxes.
        self.working_directory: str | None = None
        #: In a test process: wider fixtures asked for in there are the test's own.
        self.closed = False

    def check(self, spec: SandboxSpec) -> None:
        """Raises :class:`Unavailable` if wider fixtures are to be captured and cannot be."""
        if spec.scope != "function" and not self._gate.can_enter_and_return:
            raise Unavailable(
                f"capture what fixtures of {spec.scope} scope write",
                cause="for that, an ordinary user's pytest process has to enter a user namespace"
                " itself, and it has other threads alive",
                remedy='run as root, or without pytest-xdist, or use scope="function"',
            )

    def within(self, item: pytest.Item) -> pytest_internals.Within:
        """Where wider fixtures of ``item`` are to be set up."""
        captured = _SCOPES.index(self._gate.spec(item).scope)

        def within(
            scope: pytest_internals.WiderScope, node: pytest.Collector
        ) -> AbstractContextManager[object]:
            if self.closed or _SCOPES.index(scope) > captured:
                return nullcontext()
            return self._inside(self._place(item, node).sandbox)

        return within

    def layers(self, item: pytest.Item) -> Layers | None:
        """What was written by the captured wider fixtures of ``item``."""
        return self._layers_around(item, item) if self._places else None

    def sandboxes(self, item: pytest.Item) -> list[Sandbox]:
        """Those in which the captured wider fixtures of ``item`` have written, lowest first."""
        found: list[Sandbox] = []
        for outer in item.listchain()[:-1] if self._places else ():
            if outer in self._places and self._is_captured(item, outer):
                place = self._places[outer]
                found += [*place.older, place.sandbox]
        return found

    def _is_captured(self, item: pytest.Item, node: pytest.Item | pytest.Collector) -> bool:
        return _SCOPES.index(_scope_of(node)) <= _SCOPES.index(self._gate.spec(item).scope)

    def _layers_around(
        self, item: pytest.Item, node: pytest.Item | pytest.Collector
    ) -> Layers | None:
        """The layers of the captured nodes that ``node`` is in."""
        layers: Layers | None = None
        for outer in node.listchain()[:-1]:
            if outer in self._places and self._is_captured(item, outer):
                layers = self._place(item, outer).sandbox.as_layers()
        return layers

    def _place(self, item: pytest.Item, node: pytest.Item | pytest.Collector) -> _Place:
        """The place of ``node``, made if there is none, and renewed if what is below it changed.

        Fails the item if it cannot be made.
        """
        assert isinstance(node, pytest.Collector)
        place = self._places.get(node)
        under = self._layers_around(item, node)
        if place is not None and place.under == under:
            return place
        gate = self._gate
        problem: SandboxError
        try:
            spec = gate.run_volumes.add(item, gate.spec(item))
            plan = gate.planner.plan(spec.of_wider_scope())
            directory = gate.uppers.new() if plan.upper.medium == "disk" else None
            layers = under if place is None else place.sandbox.moved_onto(under)
            sandbox = gate.manager.make(plan, directory=directory, layers=layers, shared=False)
        except SandboxError as error:
            problem = error
        else:
            older = () if place is None else (*place.older, place.sandbox)
            made = self._places[node] = _Place(sandbox, under, older)
            if place is None:
                pytest_internals.place_finalizers(
                    node, lambda: self._again(node), lambda: self._close(node)
                )
            return made
        pytest.fail(str(problem), pytrace=False)

    def _again(self, node: pytest.Collector) -> AbstractContextManager[object]:
        return nullcontext() if self.closed else self._inside(self._places[node].sandbox)

    @contextmanager
    def _inside(self, sandbox: Sandbox) -> Iterator[None]:
        home = os.getcwd()
        manager = self._gate.manager
        manager.enter(sandbox, self.working_directory or home)
        try:
            yield
        finally:
            self._follow(home, manager.leave())

    def _follow(self, home: str, inside: str) -> None:
        """Go where a wider fixture has gone, or remember it if that is not there at home."""
        self.working_directory = None
        if inside != home:
            try:
                os.chdir(inside)
            except OSError:
                self.working_directory = inside

    def _close(self, node: pytest.Collector) -> None:
        place = self._places.pop(node, None)
        if place is None or self.closed:
            return
        sandboxes = (*place.older, place.sandbox)
        self._gate.manager.release(sandboxes)
        for sandbox in sandboxes:
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
