"""The seeds of a test's random choices, saved so that a replay makes the same choices."""

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
    """The seeds of one test."""

    #: ``random.getstate()`` when the test began.
    random: tuple[Any, ...]
    #: The value for ``--hypothesis-seed``; None if it is not a test of Hypothesis.
    hypothesis: int | None = None
    #: The seed of pytest-randomly; None without that plugin.
    randomly: int | None = None


def begin(item: pytest.Item, given: Seeds | None = None) -> Seeds:
    """Returns the seeds of a test that is about to begin, and sets those ``given``, if any."""
    if given is not None:
        random.setstate(given.random)
    seed = None
    if getattr(getattr(item, "obj", None), "is_hypothesis_test", False) is True:
        wanted = given.hypothesis if given is not None else None
        seed = _seed_hypothesis(wanted)
    randomly = getattr(item.config.option, "randomly_seed", None)
    return Seeds(random.getstate(), seed, randomly if isinstance(randomly, int) else None)


def _seed_hypothesis(seed: int | None) -> int | None:
    """Set the seed that Hypothesis would choose at random for its next test, and return it.

    None if this version of Hypothesis stores its generator where it is not found.
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
    """A generator that returns a given number first; those that follow are random."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self._first: int | None = first

    def getrandbits(self, k: int, /) -> int:
        first, self._first = self._first, None
        return super().getrandbits(k) if first is None else first
