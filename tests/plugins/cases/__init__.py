"""The cases: a small suite for each plugin."""

from __future__ import annotations

from . import asynchronous, control, data, doubles, items, known, reporters

_MODULES = (asynchronous, control, data, doubles, items, known, reporters)

CASES = sorted((case for one in _MODULES for case in one.CASES), key=lambda one: one.name.lower())
