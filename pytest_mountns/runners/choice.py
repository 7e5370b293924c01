"""Decides how a test is run: inline, in a forked process, or not at all. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from ..engine.linux.errors import SandboxError
from ..engine.linux.threads import StuckThread
from ..engine.plan.spec import SandboxSpec


class Choice(NamedTuple):
    """How a test is run, and what is said of that."""

    process: Literal["fork", "module", "inline"]
    #: Why it is forked although it could have been inline by its spec; "" otherwise.
    why_not_inline: str = ""
    #: Why it has a process of its own and not one of its module; "" otherwise.
    why_not_module: str = ""
    #: Why it cannot be run in either way.
    error: SandboxError | None = None
    #: Whether it is run on the host, under a guard: see :mod:`.session.guards`.
    guarded: bool = False


def choose(
    spec: SandboxSpec,
    *,
    obstacle: str,
    stuck: Sequence[StuckThread],
    lost: Sequence[StuckThread],
    libraries: Sequence[str],
) -> Choice:
    """How a test of this spec is run in a process that is in this state.

    ``obstacle``: why this process cannot enter a sandbox and return, threads aside; "" if it can.
    ``stuck``: the threads that cannot move with it. ``lost``: the threads of native libraries that
    would be missing in a forked process, where their library may wait for them for ever.
    ``libraries``: native libraries in this process that are known to start threads.
    """
    if spec.process == "module":
        # Threads do not matter: the process of the module has none of them.
        why = spec.why_not_in_module or obstacle
        return Choice("fork", why_not_module=why) if why else Choice("module")
    if spec.is_forked:
        return Choice("fork")
    if not obstacle and not stuck:
        return Choice("inline")
    why = obstacle or "; ".join(thread.describe() for thread in stuck)
    if spec.process == "inline" or not lost:
        return Choice("fork", why)
    return Choice("fork", why, error=_neither_way(why, lost, libraries))


def _neither_way(why: str, lost: Sequence[StuckThread], libraries: Sequence[str]) -> SandboxError:
    names = ", ".join(f"{thread.name} (tid {thread.tid})" for thread in lost)
    return SandboxError(
        "choose how to run this test",
        cause=f"it cannot be run inline: {why}; and a forked process would lack threads of native"
        f" libraries, which may then wait for ever: {names}"
        + (f"; libraries that start threads here: {', '.join(libraries)}" if libraries else ""),
        remedy="have these threads started in a fixture of function scope, or limit the library to"
        " one thread (OMP_NUM_THREADS=1, OPENBLAS_NUM_THREADS=1, POLARS_MAX_THREADS=1), or install"
        " the wheel with the part that moves threads; or"
        ' @pytest.mark.mountns(process="fork") to fork in spite of them',
    )


def lost_threads(
    python: Sequence[str], native: Sequence[StuckThread], libraries: Sequence[str]
) -> list[tuple[str, str]]:
    """What forked tests are to know of the threads that they lack: a kind, and words.

    ``python``: names of Python threads that fixtures have started. ``native`` and ``libraries``:
    see :func:`choose`.
    """
    found = []
    if python:
        found.append(
            (
                "python",
                f"tests were forked beside threads of wider fixtures ({_few(python)}), and what"
                ' these do for a test is done on the host; process="inline" takes them along',
            )
        )
    if native:
        names = _few([thread.name for thread in native])
        of = f" of {' or '.join(libraries)}" if libraries else ""
        found.append(
            (
                "native",
                f"tests were forked beside threads of native libraries ({names}{of}), which test"
                ' processes lack; process="inline" takes them along',
            )
        )
    return found


def worker_processes(names: Sequence[str]) -> str:
    """What tests are to know of worker processes that wider fixtures have started, in words."""
    return (
        f"tests ran beside worker processes of wider fixtures ({_few(names)}), and what these do"
        " for a test is done on the host; start them in a fixture of function scope"
    )


def _few(names: Sequence[str]) -> str:
    known = list(dict.fromkeys(names))
    return ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
