"""Crashes and faults of one test: what its fixture needs of the session."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Literal, NoReturn, final

import pytest

from ..engine.changes.changes import compile_globs
from ..engine.linux.errors import SandboxError
from ..engine.linux.namespaces import privileged
from .current import Current, RunningTest

if TYPE_CHECKING:
    from ..engine.faults.exploration import Crash
    from ..engine.faults.observation import PowerModel


@final
class Exploring:
    """The crashes that one test goes through.

    ``only``: the number of the only crash point that is wanted, of ``--mountns-crash``.
    """

    def __init__(self, test: RunningTest, current: Current, only: int | None) -> None:
        self._test = test
        self._current = current
        self._only = only
        self._open: list[Generator[object, None, None]] = []

    def crashes(
        self,
        function: Callable[[], object],
        *,
        power: bool | PowerModel,
        torn: bool,
        watch: Sequence[str] | None,
    ) -> Iterator[Crash]:
        """See :meth:`.OverlayRoot.crashes`."""
        self._check("crash a function")
        model = _model(power)
        if watch is not None:
            compile_globs(watch)
        dropped = self._test.stack.sandbox.plan.drops_capabilities
        # Not for every session. The user of the test need not be able to read this package.
        with privileged(dropped):
            from ..engine.faults.exploration import Settings, crashes
        settings = Settings(
            globs=None if watch is None else tuple(watch),
            power=model,
            torn=torn,
            only=self._only,
            drops_capabilities=dropped,
        )
        found = crashes(_with_outcomes(function), settings, self._test.checkpoint)
        generator = self._tell(found)
        self._open.append(generator)
        return generator

    def _tell(self, found: Generator[Crash, None, None]) -> Generator[Crash, None, None]:
        """Hand on the crashes, and have the report of a failure say which one it is."""
        now: list[Crash] = []

        def tell() -> tuple[str, str] | None:
            return ("mountns crash", now[0].describe()) if now else None

        self._current.told.append(tell)
        try:
            for crash in found:
                now[:] = [crash]
                yield crash
                now.clear()
        except _Outcome as outcome:
            outcome.raise_again()
        finally:
            self._current.told.remove(tell)
            found.close()

    def _check(self, tried: str) -> None:
        if not self._test.forked:
            raise SandboxError(
                tried,
                cause="this test runs in the pytest process (inline). A process of the function"
                " would be a fork of that, with locks that its threads may hold",
                remedy='@pytest.mark.mountns(process="fork")',
            )

    def close(self) -> None:
        """The test has ended, maybe in the middle of an exploration: leave its checkpoints."""
        for generator in reversed(self._open):
            generator.close()


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
