"""Which calls fail, without any system call."""

from __future__ import annotations

import pytest

from pytest_mountns.engine.faults.calls import BY_NAME
from pytest_mountns.engine.faults.rules import Rules
from pytest_mountns.engine.plan.fault_rules import FAMILIES, SINGLE, FaultRule


@pytest.mark.parametrize(
    "text",
    [
        "fsync:/srv/**:EIO",
        "write:/a b/[cd]*:ENOSPC:nth=3",
        "write:**:ENOSPC:after_bytes=0",
        "read:**/f:short:every=2:probability=0.25:seed=4",
        "rename:/srv::delay=0.5",
        "fallocate:/srv:EOPNOTSUPP",
    ],
)
def test_a_rule_is_written_as_it_is_read(text: str) -> None:
    rule = FaultRule.parse(text)
    assert FaultRule.parse(str(rule)) == rule


def test_a_colon_in_a_path() -> None:
    assert FaultRule.parse(r"fsync:/a\:b/**:EIO").glob == "/a:b/**"


def test_every_call_that_a_rule_may_name_is_one_that_can_be_stopped() -> None:
    named = {call for calls in FAMILIES.values() for call in calls} | set(SINGLE)
    assert named <= set(BY_NAME)


def _outcome(rule: str, sizes: list[int]) -> list[int]:
    rules = Rules([FaultRule.parse(rule)])
    failures = [rules.decide("write", ["/f"], size) for size in sizes]
    return [int(failure is not None) for failure in failures]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", [1, 1, 1, 1, 1]),
        (":nth=2", [0, 1, 0, 0, 0]),
        (":every=2", [0, 1, 0, 1, 0]),
        # A write that does not fit fails, and a smaller one may fit then.
        (":after_bytes=5", [0, 0, 1, 0, 1]),
        (":probability=0", [0, 0, 0, 0, 0]),
        (":probability=1", [1, 1, 1, 1, 1]),
    ],
)
def test_which_of_five_writes_fail(options: str, expected: list[int]) -> None:
    assert _outcome(f"write:/f:EIO{options}", [2, 2, 3, 1, 1]) == expected


def test_the_dice_begin_at_the_seed() -> None:
    sizes = [1] * 30
    some = _outcome("write:/f:EIO:probability=0.5:seed=1", sizes)
    assert some == _outcome("write:/f:EIO:probability=0.5:seed=1", sizes)
    assert some != _outcome("write:/f:EIO:probability=0.5:seed=2", sizes)
    assert 0 < sum(some) < 30


def test_the_first_rule_counts_and_the_others_go_on_counting() -> None:
    rules = Rules(
        [FaultRule.parse("write:/f:EIO:nth=1"), FaultRule.parse("write:/**:ENOSPC:nth=2")]
    )
    found = [rules.decide("write", ["/f"], 1) for _ in range(3)]
    assert [failure and failure.rule.error for failure in found] == ["EIO", "ENOSPC", None]


def test_other_calls_and_other_paths_go_on() -> None:
    rules = Rules([FaultRule.parse("rename:/d/**:EXDEV")])
    assert rules.decide("unlink", ["/d/f"], 0) is None
    assert rules.decide("renameat2", ["/a", "/b"], 0) is None
    assert rules.decide("renameat2", ["/a", "/d/b"], 0) is not None
    assert rules.decide("rename", ["/d/a", "/b"], 0) is not None
