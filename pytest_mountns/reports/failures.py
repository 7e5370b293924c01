"""Tells the reports of failing tests what the sandbox or the guard may have to do with it.

The explanations are modules of their own, which are loaded when a test fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import pytest

from ..session.observers import Observer

if TYPE_CHECKING:
    from ..engine.sandbox.guard import Guard
    from ..engine.sandbox.sandbox import Sandbox


@final
class FailureExplanation(Observer):
    """Adds a section to reports of tests that may have failed because of the sandbox."""

    def on_failure(self, report: pytest.TestReport, error: BaseException, sandbox: Sandbox) -> None:
        """Explain ``error`` in the report."""
        from .explain import explain_failure

        explain_failure(report, error, sandbox)


@final
class RefusalExplanation(Observer):
    """Adds a section to reports of tests that the guard may have made fail."""

    def on_failure_under_guard(
        self, report: pytest.TestReport, error: BaseException, guard: Guard
    ) -> None:
        """Say which path was refused, and what is allowed."""
        from .refusals import explain_refusal

        explain_refusal(report, error, guard)
