"""Crashes and faults of one test: what its fixture needs of the session."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeAlias, TypeVar, final

import pytest

from ..engine.changes.changes import compile_globs
from ..engine.linux.errors import SandboxError, Unavailable
from ..engine.linux.namespaces import privileged
from .current import Current, RunningTest

if TYPE_CHECKING:
    from ..engine.faults.exploration import Crash, Fault, Settings
    from ..engine.faults.observation import PowerModel

    CrashesFunction: TypeAlias = Callable[..., Generator[Crash, None, None]]
    FaultPointsFunction: TypeAlias = Callable[..., Generator[Fault, None, None]]

_T = TypeVar("_T", bound="Crash | Fault")


@final
class Exploring:
    """The crashes that one test goes through.

    ``only``: the number of the only crash point that is wanted, of ``--mountns-crash``.
    """

    def __init__(self, test: RunningTest, current: Current, only: int | None) -> None:
        self._test = test
        self._current = current
        self._only = only
        self._open: list[Generator[Any, None, None]] = []

    def crashes(
        self,
        function: Callable[[], object],
        *,
        power: bool | PowerModel,
        torn: bool,
        watch: Sequence[str] | None,
    ) -> Iterator[Crash]:
        """See :meth:`.OverlayRoot.crashes`."""
        crashes, _, settings = self._settings("crash a function", watch)
        settings = replace(settings, power=_model(power), torn=torn)
        found = crashes(_with_outcomes(function), settings, self._test.checkpoint)
        return self._tell(found, "mountns crash")

    def fault_points(
        self, function: Callable[[], object], *, watch: Sequence[str] | None
    ) -> Iterator[Fault]:
        """See :meth:`.OverlayRoot.fault_points`."""
        _, fault_points, settings = self._settings("have calls of a function fail", watch)
        found = fault_points(_with_outcomes(function), settings, self._test.checkpoint)
        return self._tell(found, "mountns fault")

    def _settings(
        self, tried: str, watch: Sequence[str] | None
    ) -> tuple[CrashesFunction, FaultPointsFunction, Settings]:
        self._check(tried)
        self._check_checkpoints(tried)
        if watch is not None:
            compile_globs(watch)
        dropped = self._test.stack.sandbox.plan.drops_capabilities
        # Not for every session. The user of the test need not be able to read this package.
        with privileged(dropped):
            from ..engine.faults.exploration import Settings, crashes, fault_points
        settings = Settings(
            globs=None if watch is None else tuple(watch),
            only=self._only,
            drops_capabilities=dropped,
        )
        return crashes, fault_points, settings

    def _tell(self, found: Generator[_T, None, None], title: str) -> Iterator[_T]:
        generator = self._each(found, title)
        self._open.append(generator)
        return generator

    def _each(self, found: Generator[_T, None, None], title: str) -> Generator[_T, None, None]:
        """Hand on what happens, and have the report of a failure say what it is."""
        now: list[_T] = []

        def tell() -> tuple[str, str] | None:
            return (title, now[0].describe()) if now else None

        self._current.told.append(tell)
        try:
            for one in found:
                now[:] = [one]
                yield one
                now.clear()
        except _Outcome as outcome:
            outcome.raise_again()
        finally:
            self._current.told.remove(tell)
            found.close()

    @contextmanager
    def faults(self, *texts: str) -> Generator[None, None, None]:
        """See :meth:`.OverlayRoot.faults`."""
        self._check("have system calls fail")
        dropped = self._test.stack.sandbox.plan.drops_capabilities
        with privileged(dropped):
            from ..engine.plan.fault_rules import FaultRule
        rules = [FaultRule.parse(text) for text in texts]
        compile_globs([rule.glob for rule in rules])
        if self._current.injector is None:
            start_faults(self._current, (), dropped=dropped, everything=True)
        assert self._current.injector is not None
        with self._current.injector.active(rules):
            yield

    def _check(self, tried: str) -> None:
        if not self._test.forked:
            raise SandboxError(
                tried,
                cause="this test runs in a process that goes on after it: the pytest process"
                " (inline) or that of its module. A process of the function would be a fork of"
                " that, with locks that its threads may hold",
                remedy='@pytest.mark.mountns(process="fork")',
            )

    def _check_checkpoints(self, tried: str) -> None:
        if not self._test.stack.sandbox.plan.features.layered_uppers:
            raise Unavailable(
                tried,
                cause="each run of the function is in a checkpoint, and before Linux 6.15 there are"
                " none: no overlay takes a lower on a mount that is in no namespace",
                remedy="Linux 6.15 or later. faults() and the key faults= work here without it",
            )

    def close(self) -> None:
        """The test has ended, maybe in the middle of an exploration: leave its checkpoints."""
        for generator in reversed(self._open):
            generator.close()


def start_faults(
    current: Current, texts: Sequence[str], *, dropped: bool, everything: bool
) -> None:
    """Have system calls of this test process fail, and say so in the report of a failure.

    Raises :class:`SandboxError`.
    """
    with privileged(dropped):
        from ..engine.faults.injector import start
        from ..engine.plan.fault_rules import FaultRule

    rules = [FaultRule.parse(text) for text in texts]
    injector = start(rules, everything=everything, drops_capabilities=dropped)
    current.injector = injector

    def tell() -> tuple[str, str] | None:
        try:
            injected = injector.injected()
        except SandboxError as error:
            # The test may have killed it. The report is to be made all the same.
            return "mountns faults", str(error)
        return ("mountns faults", "\n".join(injected)) if injected else None

    current.told.append(tell)


class _Outcome(Exception):
    """``pytest.skip()`` and the like in another process: their exceptions cannot be pickled."""

    def raise_again(self) -> NoReturn:
        kind, text = self.args
        _OUTCOMES[kind](text)
        raise AssertionError


_OUTCOMES: Final[dict[str, Callable[[str], NoReturn]]] = {
    "skip": pytest.skip,
    "fail": pytest.fail,
    "xfail": pytest.xfail,
}


def _with_outcomes(function: Callable[[], object]) -> Callable[[], object]:
    """Have what pytest's functions raise in ``function`` arrive in this process."""

    def call() -> None:
        try:
            function()
        except pytest.skip.Exception as outcome:
            raise _Outcome("skip", str(outcome)) from None
        except pytest.xfail.Exception as outcome:
            raise _Outcome("xfail", str(outcome)) from None
        except pytest.fail.Exception as outcome:
            raise _Outcome("fail", str(outcome)) from None

    return call


def _model(power: bool | PowerModel) -> Literal["ordered", "strict"] | None:
    if power is True:
        return "ordered"
    if power is False:
        return None
    if power not in ("ordered", "strict"):
        raise ValueError(f'power={power!r}: choose from True, False, "ordered", "strict"')
    return power
