"""Guards: ``--mountns-unavailable=guard`` on a machine that cannot make sandboxes.

A test of a whole suite then runs on the host, in a forked process that can write to some places
only. A test that asks for a sandbox itself is skipped, as it may do anything in one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib import import_module
from typing import TYPE_CHECKING, Final, final

import pytest

from .. import pytest_internals
from ..config import options
from ..engine.linux.errors import SandboxError, said
from ..engine.plan.spec import SandboxSpec
from ..engine.probe.features import TRANSIENT_ERRNOS
from .sandboxes import Sandboxes
from .selection import Selection

# Hardly any session makes guards, and what makes them takes 5 ms to import.
if TYPE_CHECKING:
    from ..engine.probe.guard import GuardProbe
    from ..engine.sandbox.guard import Guard

#: The name of the directory for temporary files of tests, beside those of ``tmp_path``.
_TEMPORARY: Final = "mountns-guarded"


@final
class Guards:
    """Makes the guards of a session.

    The last one is kept for the tests after it. No more are: each holds a descriptor, and a suite
    may have any number of different marks.
    """

    def __init__(self, config: pytest.Config, selection: Selection, sandboxes: Sandboxes) -> None:
        self._config = config
        self._selection = selection
        self._sandboxes = sandboxes
        self._wanted = (
            selection.policy == "guard"
            and selection.everything is True
            and not options.is_audit(config)
        )
        if self._wanted:
            # Later a test may have replaced functions that an import needs.
            import_module("..engine.probe.guard", __package__)
            import_module("..engine.sandbox.guard", __package__)
        self._probe: GuardProbe | None = None
        #: The last guard, and what it was made for.
        self._kept: tuple[SandboxSpec, Guard] | None = None
        #: The directory for temporary files of the run; "" before the first guarded test.
        self._base = ""
        #: That directory if nobody else removes it.
        self._own_base = ""
        #: What ``TMPDIR`` and ``tempfile.tempdir`` were before.
        self._temporary_before: tuple[str | None, str | None] | None = None

    @property
    def probe(self) -> GuardProbe:
        """Whether this machine can guard tests.

        It is found out when this is first read. If that fails for a reason that may pass, as a lack
        of memory, it is tried again the next time.
        """
        found = self._probe
        if found is None:
            from ..engine.probe.guard import probe_guard

            found = probe_guard()
        if not (found.trial.errno in TRANSIENT_ERRNOS or found.trial.of_process):
            self._probe = found
        return found

    @property
    def are_made(self) -> bool:
        """Whether tests are guarded: wanted, possible, and no sandbox can be made here."""
        if not self._wanted or self._sandboxes.planner.findings.features is not None:
            return False
        return bool(self.probe.abi)

    @property
    def why_none(self) -> str:
        """Why no test can be guarded although that is wanted and no sandbox can be made, or ""."""
        if not self._wanted or self._sandboxes.planner.findings.features is not None:
            return ""
        trial = self.probe.trial
        return "" if self.probe.abi else f"{trial.kernel}; remedy: {trial.remedy}"

    @property
    def skips(self) -> bool:
        """Whether a test that needs a sandbox is skipped where none can be made, or fails.

        If not even a guard is possible, that is decided as without the option.
        """
        policy = self._selection.policy
        if policy == "guard":
            return self.are_made or options.default_policy() == "skip"
        return policy == "skip"

    def why_not(self, item: pytest.Item) -> str:
        """Why ``item`` needs a sandbox, so that a guard is not enough; "" if it is enough.

        Raises :class:`pytest.UsageError` if its marks are not valid.
        """
        if options.asks_for_more_than_writes(item):
            return "the test asks for a sandbox, by its mark or a fixture"
        from ..engine.plan.guard import why_sandbox

        return why_sandbox(self._selection.spec(item), network=self.probe.network)

    def guards(self, item: pytest.Item) -> bool:
        """Whether ``item`` is run under a guard, and not in a sandbox.

        If its marks are not valid it is not; the preparation of its sandbox says so.
        """
        try:
            return self.are_made and not self.why_not(item)
        except pytest.UsageError:
            return False

    def guard(self, item: pytest.Item) -> Guard:
        """The guard of ``item``. Raises :class:`SandboxError` if it cannot be made."""
        from ..engine.plan.guard import plan_guard
        from ..engine.sandbox.guard import make_guard

        spec = self._sandboxes.with_run_volumes(item, self._selection.spec(item))
        if self._kept is not None:
            made_for, known = self._kept
            if made_for == spec and not any(map(os.path.exists, known.missing)):
                return known
        made = make_guard(plan_guard(spec, [self.begin()]), self.probe.abi)
        self._let_go()
        self._kept = (spec, made)
        return made

    def _let_go(self) -> None:
        if self._kept is not None:
            self._kept[1].close()
            self._kept = None

    def begin(self) -> str:
        """Before the fixtures of the first guarded test: choose where temporary files lie.

        Tests may not write to ``/tmp``, where :mod:`tempfile` puts files otherwise. Returns the
        directory of ``tmp_path``, which holds that for other temporary files as well. Raises
        :class:`SandboxError` if there is no such place.
        """
        if self._base:
            return self._base
        try:
            base = pytest_internals.make_basetemp(self._config)
            if base is None:
                base = self._own_base = tempfile.mkdtemp(prefix=f"{_TEMPORARY}-")
            place = os.path.join(base, _TEMPORARY)
            os.makedirs(place, mode=0o700, exist_ok=True)
        except OSError as error:
            raise SandboxError("make a directory for temporary files", said(error)) from error
        self._temporary_before = (os.environ.get("TMPDIR"), tempfile.tempdir)
        os.environ["TMPDIR"] = tempfile.tempdir = place
        self._base = base
        return base

    def close(self) -> None:
        """At the end of the session."""
        self._let_go()
        if self._own_base:
            shutil.rmtree(self._own_base, ignore_errors=True)
        if self._temporary_before is not None:
            variable, tempfile.tempdir = self._temporary_before
            self._temporary_before = None
            if variable is None:
                os.environ.pop("TMPDIR", None)
            else:
                os.environ["TMPDIR"] = variable
