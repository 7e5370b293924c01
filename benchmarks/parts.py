"""Which cases there are, part by part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from .cases import Case, Floor, Run

PLAIN: Final = ("-p", "no:mountns")
ISOLATED: Final = ("--mountns", "--mountns-unavailable=error")
INLINE: Final = (*ISOLATED, "--mountns-process=inline")
FORK: Final = (*ISOLATED, "--mountns-process=fork")
UNFORKED: Final = ("-p", "no:pytest_forked")
MODULE: Final = (*ISOLATED, "--mountns-process=module")
WAYS: Final = {"inline": INLINE, "fork": FORK}
# What bwrap has that comes nearest: nothing is written anywhere but below /tmp.
_BWRAP = ("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp")


@dataclass(frozen=True)
class Sizes:
    """How far the growth goes. More than 499 layers the kernel does not take, besides ``/``."""

    mounts: tuple[int, ...] = (0, 1, 10, 50, 100, 200)
    heap: tuple[int, ...] = (0, 10, 100, 1000)
    modules: int = 200
    layers: tuple[int, ...] = (1, 10, 100, 499)


FULL: Final = Sizes()
QUICK: Final = Sizes(mounts=(0, 200), heap=(0, 100), modules=20, layers=(1, 100))
#: What a program for science and one for the web have imported.
LIBRARIES: Final = (
    *("numpy", "numpy.linalg", "numpy.random", "numpy.testing"),
    *("django", "django.db.models", "django.forms", "django.http", "django.template"),
    *("django.urls", "django.views.generic", "django.test"),
)


def empty(sizes: Sizes) -> list[Case]:
    """Tests that do nothing."""
    inline = Run("inline", options=INLINE, base="plain", isolated=True)
    scope: dict[str, object] = {"scope": "module"}
    return [
        Run("plain", options=PLAIN),
        Run("loaded", base="plain"),
        inline,
        Run("fork", options=FORK, base="plain", isolated=True),
        Run("module", options=MODULE, base="plain", isolated=True),
        Run("pid", options=FORK, keys={"pid": True}, base="plain", isolated=True),
        Run("module-inline", options=INLINE, keys=scope, base="plain", isolated=True),
        Run("module-fork", options=FORK, keys=scope, base="plain", isolated=True),
        Run("again", suite="again", options=INLINE, isolated=True),
        # Root with the user's Python, so that the two differ by the user alone.
        Run("same-python-plain", "user", options=PLAIN),
        Run("same-python-inline", "user", options=INLINE, base="same-python-plain", isolated=True),
        Run("user-plain", "user", options=PLAIN, as_user=True),
        Run("user-inline", "user", options=INLINE, base="user-plain", isolated=True, as_user=True),
        Run("user-module", "user", options=MODULE, base="user-plain", isolated=True, as_user=True),
        Run("user-fork", "user", options=FORK, base="user-plain", isolated=True, as_user=True),
        Run("forked-plain", "forked", options=UNFORKED),
        Run("forked", "forked", options=("--forked",), base="forked-plain"),
        Run("pyfakefs-plain", "pyfakefs", options=("-p", "no:pytest_fakefs")),
        Run("pyfakefs", "pyfakefs", "fake-empty", base="pyfakefs-plain"),
        Run(
            "bwrap",
            options=PLAIN,
            base="plain",
            before=("bwrap", *_BWRAP),
            each=True,
            part=0.02,
            needs="bwrap",
        ),
        Floor("floor-c", "c", inline),
        Floor("floor-python", "python", inline),
    ]


def io(sizes: Sizes) -> list[Case]:
    """Reading and writing."""
    disk: dict[str, object] = {"upper": "disk"}
    own: dict[str, object] = {"tmp_path": "own"}
    cases: list[Case] = [Run("io/plain", suite="io", options=PLAIN)]
    for way, options in WAYS.items():
        cases += [
            Run(f"io/{way}", suite="io", options=options, isolated=True),
            Run(f"io/{way}-own", suite="io", options=options, keys=own, isolated=True),
            Run(f"io/{way}-disk", suite="io", options=options, keys=disk, isolated=True),
        ]
    return [*cases, Run("io/pyfakefs", "pyfakefs", "fake_io")]


def growth(sizes: Sizes) -> list[Case]:
    """The same empty tests where there is more to mount, to copy, to stack."""
    cases: list[Case] = []
    for count in sizes.mounts:
        # Where the claims look, as many tests as elsewhere.
        part = 1.0 if count in (0, 200) else 0.2
        plain = Run(f"mounts/{count}/plain", options=PLAIN, mounts=count, part=part)
        cases += [plain, *_isolated(f"mounts/{count}", plain)]
    for size in sizes.heap:
        plain = Run(f"heap/{size}/plain", options=PLAIN, heap=size, part=0.2)
        cases += [plain, *_isolated(f"heap/{size}", plain)]
    modules = Run("modules/plain", options=PLAIN, modules=sizes.modules, part=0.4)
    cases += [modules, *_isolated("modules", modules), *_forked("modules", "forked", modules)]
    libraries = Run("libraries/plain", "libraries", options=PLAIN, imports=LIBRARIES, part=0.4)
    cases += [libraries, *_isolated("libraries", libraries)]
    cases += _forked("libraries", "libraries-forked", libraries)
    plain = Run("layers/0/plain", options=PLAIN, part=0.2)
    cases.append(plain)
    for count in sizes.layers:
        cases += _isolated(f"layers/{count}", plain, layers=count)
    return cases


def _isolated(name: str, plain: Run, layers: int = 0) -> list[Case]:
    return [
        replace(
            plain,
            name=f"{name}/{way}",
            options=options,
            base=plain.name,
            isolated=True,
            layers=layers,
        )
        for way, options in WAYS.items()
    ]


def _forked(name: str, venv: str, plain: Run) -> list[Case]:
    """pytest-forked on the same tests, and without it in the same environment."""
    base = replace(plain, name=f"{name}/forked-plain", venv=venv, options=UNFORKED)
    return [base, replace(base, name=f"{name}/forked", options=("--forked",), base=base.name)]


def suite(sizes: Sizes) -> list[Case]:
    """Real suites, whole."""
    plain = Run("suite/plain", suite="click", options=PLAIN)
    poetry = Run("poetry-core/plain", "poetry", "poetry-core", options=PLAIN)
    return [
        plain,
        _isolated_suite(plain, "auto", ISOLATED),
        *(_isolated_suite(plain, way, options) for way, options in WAYS.items()),
        *_forked("suite", "forked", plain),
        poetry,
        _isolated_suite(poetry, "auto", ISOLATED),
    ]


def _isolated_suite(plain: Run, way: str, options: tuple[str, ...]) -> Run:
    name = plain.name.replace("plain", way)
    return replace(plain, name=name, options=options, base=plain.name, isolated=True)


PARTS: Final[dict[str, Callable[[Sizes], list[Case]]]] = {
    "empty": empty,
    "io": io,
    "growth": growth,
    "suite": suite,
}


def chosen(parts: Sequence[str], sizes: Sizes, only: Sequence[str] = ()) -> list[Case]:
    """The cases of these parts; ``only``: those, and what they are measured against."""
    cases = [case for part in parts for case in PARTS[part](sizes)]
    if not only:
        return cases
    wanted = {*only, *(case.base for case in cases if case.name in only)}
    return [case for case in cases if case.name in wanted]
