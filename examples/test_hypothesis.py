"""A fresh tree for each example of Hypothesis: `overlay_root.checkpoint()`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from pytest_mountns import OverlayRoot

NAMES = st.text("abc", min_size=1, max_size=3)

#: The fixture is set up once for all examples, which is what the check warns of.
quick = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@quick
@given(names=st.sets(NAMES))
def test_each_example_begins_empty(
    overlay_root: OverlayRoot, tmp_path: Path, names: set[str]
) -> None:
    with overlay_root.checkpoint():
        assert list(tmp_path.iterdir()) == []
        for name in names:
            (tmp_path / name).write_text(name)
        assert {path.name for path in tmp_path.iterdir()} == names


def test_each_machine_begins_empty(overlay_root: OverlayRoot, tmp_path: Path) -> None:
    class Directory(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.names: set[str] = set()
            self.checkpoint: AbstractContextManager[None] = overlay_root.checkpoint()
            self.checkpoint.__enter__()

        @rule(name=NAMES)
        def write(self, name: str) -> None:
            (tmp_path / name).touch()
            self.names.add(name)

        @rule(name=NAMES)
        def remove(self, name: str) -> None:
            (tmp_path / name).unlink(missing_ok=True)
            self.names.discard(name)

        @rule()
        def look(self) -> None:
            assert {path.name for path in tmp_path.iterdir()} == self.names

        def teardown(self) -> None:
            self.checkpoint.__exit__(None, None, None)

    run_state_machine_as_test(Directory, settings=quick)
