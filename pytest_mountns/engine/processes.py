"""fork(2), as everything here uses it."""

from __future__ import annotations

import os
import sys
import warnings


def fork() -> int:
    """os.fork(), without the warning of Python 3.12 and later about threads.

    The children forked here use none of their parent's threads; a warning turned into an error
    would end the session.
    """
    if sys.version_info < (3, 12):
        return os.fork()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()
