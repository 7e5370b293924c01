"""What a test's random choices follow from, noted so that a replay makes the same ones."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from typing import Any, Final, final

import pytest

_BITS: Final = 128


@final
@dataclass(frozen=True, slots=True)
class Seeds:
    """``random``: the state of Python's generator when the test began. ``hypothesis``: what
    ``--hypothesis-seed`` would be, None for other tests. ``randomly``: pytest-randomly's seed."""

    random: tuple[Any, ...]
    hypothesis: int | None = None
    randomly: int | None = None


def begin(item: pytest.Item, given: Seeds | None = None) -> Seeds:
    """The seeds of a test that is about to begin; those ``given``, if it is to repeat another."""
    if given is not None:
        random.setstate(given.random)
    seed = None
    if getattr(getattr(item, "obj", None), "is_hypothesis_test", False) is True:
        wanted = given.hypothesis if given is not None else None
        seed = _seed_hypothesis(wanted)
    randomly = getattr(item.config.option, "randomly_seed", None)
    return Seeds(random.getstate(), seed, randomly if isinstance(randomly, int) else None)


def _seed_hypothesis(seed: int | None) -> int | None:
    """Choose the seed that Hypothesis would choose at random, for its next test.

    None if it keeps its generator elsewhere than in the versions known.
    """
    local: Any = getattr(sys.modules.get("hypothesis.core"), "threadlocal", None)
    if not hasattr(local, "_hypothesis_global_random"):
        return None
    if seed is None:
        seed = random.SystemRandom().getrandbits(_BITS)
    local._hypothesis_global_random = _Given(seed)
    return seed


@final
class _Given(random.Random):
    """A generator whose first number is known; those that follow are random."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self._first: int | None = first

    def getrandbits(self, k: int, /) -> int:
        first, self._first = self._first, None
        return super().getrandbits(k) if first is None else first
