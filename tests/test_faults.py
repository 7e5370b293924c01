"""A sample of `python -m tests.faults`: system calls fail, and nothing worse happens."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from .faults.__main__ import ways
from .faults.run import Runner, all_cases, sample
from .faults.shim import errnos

pytestmark = [
    pytest.mark.sandboxes,
    pytest.mark.skipif(
        "MOUNTNS_FAULTS" not in os.environ,
        reason="tries other cases each time: MOUNTNS_FAULTS=1, or all by python -m tests.faults",
    ),
    pytest.mark.no_mountns(reason="looks for what tests leave on the machine"),
]

#: All cases would take too long, so that each day tries others.
COUNT = 40
WAYS = {way.name: way for way in ways()}


@pytest.mark.parametrize("name", WAYS)
def test_a_call_that_fails_is_named_or_does_without(name: str, tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    runner = Runner(WAYS[name], tmp_path / "run")
    sites = runner.record()
    # From each part: the channel, entering, the mounts, leaving.
    for part in (
        "engine.mount.root.",
        ("engine.mount.new_api.", "engine.mount.classic_api."),
        "engine.mount.executor.",
        "engine.linux.namespaces.",
        "engine.sandbox.manager." if "inline" in name else "forking.channel.",
    ):
        assert any(site.startswith(part) for site in sites), part
    outcomes = list(runner.try_all(sample(all_cases(sites), COUNT, seed)))
    assert len(outcomes) == COUNT
    bad = [outcome for outcome in outcomes if not outcome.good]
    assert not bad, f"seed {seed}: {bad}"
    assert any(outcome.kind == "named" for outcome in outcomes)


def test_a_call_is_tried_with_what_it_may_say() -> None:
    assert "ENOSYS" in errnos("engine.mount.new_api._make fsopen 1")
    assert "ENOSYS" not in errnos("engine.mount.executor._overlay mkdir 1")
    assert errnos("runners.forked._delegate fork 1") == ("EAGAIN", "ENOMEM")
