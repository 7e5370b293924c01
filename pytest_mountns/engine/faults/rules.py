"""Decides which calls fail. It makes no system call; it counts, and throws dice."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final

from ..changes.changes import compile_globs
from ..plan.fault_rules import SHORT, FaultRule


class Failure(NamedTuple):
    """What is to become of a call."""

    rule: FaultRule
    #: The errno; 0 if it does not fail.
    number: int
    #: Whether half of the bytes are transferred.
    short: bool
    #: Seconds before that.
    delay: float
    #: It in words, for the report.
    text: str


@final
@dataclass
class _Counted:
    """A rule, and how often it has matched."""

    rule: FaultRule
    calls: int = 0
    bytes: int = 0
    dice: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self.globs = compile_globs([self.rule.glob])
        self.dice.seed(self.rule.seed)

    def matches(self, call: str, paths: Sequence[str]) -> bool:
        return call in self.rule.calls and any(self.globs.fullmatch(path) for path in paths)

    def applies(self, size: int) -> bool:
        """Count a call that matches, of so many bytes. Returns whether it fails."""
        rule = self.rule
        self.calls += 1
        full = rule.after_bytes is not None and self.bytes + size <= rule.after_bytes
        if full:
            self.bytes += size
        # The dice are thrown for every call, so that the rest does not depend on other options.
        lucky = self.dice.random() >= rule.probability
        return not (
            full
            or lucky
            or (rule.nth and self.calls != rule.nth)
            or (rule.every and self.calls % rule.every)
        )


@final
class Rules:
    """The rules of a process tree. The first that applies to a call counts."""

    def __init__(self, rules: Sequence[FaultRule]) -> None:
        self._rules = [_Counted(rule) for rule in rules]

    @property
    def calls(self) -> frozenset[str]:
        """The system calls that some rule is about."""
        return frozenset(call for one in self._rules for call in one.rule.calls)

    def decide(
        self,
        call: str,
        paths: Sequence[str],
        size: int,
        *,
        can_be_short: Callable[[], bool] = lambda: True,
    ) -> Failure | None:
        """What becomes of a call; None if it goes on.

        ``size``: how many bytes it transfers. ``can_be_short``: whether it can be cut to half of
        them, asked only of a call that a rule would do that to.
        """
        failure = None
        for one in self._rules:
            if not one.matches(call, paths) or not one.applies(size) or failure is not None:
                continue
            rule = one.rule
            if rule.error == SHORT and (size < 2 or not can_be_short()):
                continue
            how = f"was short, {size // 2} of {size} bytes" if rule.error == SHORT else rule.error
            delay = f" after {rule.delay:g} s" if rule.delay else ""
            text = f"{call} {' -> '.join(paths)}: {how or 'went on'}{delay}  ({rule})"
            failure = Failure(rule, rule.number, rule.error == SHORT, rule.delay, text)
        return failure
