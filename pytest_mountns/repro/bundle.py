"""Bundles: what is kept of a test, or of a command, to look at it again and to run it again.

A bundle is a directory::

    repro.json      what it is of, and the conditions: see :class:`Repro`
    report.txt      what pytest said
    changes.txt     what was changed, and changes.json the same for programs
    layer.tar.zst   what was written, an OCI layer; below it, if there are some, wider-N.tar.zst

A bundle may come from elsewhere: nothing in it is believed before it was checked, and a name in it
is a name in its directory or refused.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import re
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, final

from ..engine.linux.errors import SandboxError, said
from ..engine.plan.spec import SandboxSpec, Tmpfs, Volume
from ..engine.sandbox.saved import Source

#: Of ``repro.json``. It grows when a reader of the format before could not go on.
FORMAT: Final = 1
DOCUMENT: Final = "repro.json"
REPORT: Final = "report.txt"
CHANGES: Final = "changes.txt"
CHANGES_JSON: Final = "changes.json"

_LARGEST_DOCUMENT: Final = 16 << 20
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_AS_COMMAND: Final = "import sys; del sys.path[0]; import pytest; sys.exit(pytest.main())"
_FILE: Final = re.compile(r"(layer|wider-\d+)\.tar(\.gz|\.zst)?")
_SECRET: Final = re.compile("token|secret|passw|key|credential", re.IGNORECASE)
_URL_WITH_PASSWORD: Final = re.compile(r"://[^/\s@:]*:[^/\s@]+@")
#: What pytest and pytest-xdist say of the process that the test runs in.
_OF_THE_RUN: Final = re.compile("PYTEST_CURRENT_TEST|PYTEST_VERSION|PYTEST_XDIST_.*")


@final
@dataclass(frozen=True, slots=True)
class LayerOf:
    """One layer of a bundle, a file in it: as :class:`.engine.oci.WrittenLayer` has it."""

    file: str
    media_type: str
    digest: str
    diff_id: str
    size: int


@final
@dataclass(frozen=True, slots=True)
class Repro:
    """What ``repro.json`` says.

    ``kind``: "test" or "command". ``name``: the node id, or the command line. ``outcome``: what
    came of it. ``written``: when, by ISO 8601. ``run``: what bundles of one run have in common.
    ``interpreter``: Python's own arguments, and how it was told of pytest. ``argv``: the arguments
    of pytest, or the command. ``left_out``: variables that look like
    secrets. ``python``, ``packages``, ``kernel``, ``machine``, ``system``: where it was.
    ``seeds``: "random" (as of random.getstate()), "hypothesis", "randomly". ``spec``: the fields
    of :class:`SandboxSpec`. ``plan``: its steps. ``layers``: the lowest first. ``notes``: what is
    missing, a sentence each.
    """

    kind: str
    name: str
    outcome: str
    written: str
    run: str
    interpreter: list[str]
    argv: list[str]
    cwd: str
    root: str
    environment: dict[str, str]
    left_out: list[str]
    python: dict[str, str]
    packages: dict[str, str]
    kernel: str
    machine: str
    system: str
    uid: int
    gid: int
    seeds: dict[str, Any]
    spec: dict[str, Any]
    plan: list[str]
    layers: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """The document; ASCII. A byte that is no UTF-8 is a lone surrogate, as ever in Python."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"


# Conditions ---------------------------------------------------------------------------------------


def environment(variables: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """What of an environment may be kept, and the names of what may not: it looks like a secret."""
    kept: dict[str, str] = {}
    left_out: list[str] = []
    for name, value in sorted(variables.items()):
        if _OF_THE_RUN.fullmatch(name):
            continue
        if _SECRET.search(name) or _URL_WITH_PASSWORD.search(value):
            left_out.append(name)
        else:
            kept[name] = value
    return kept, left_out


def interpreter(whole: Sequence[str], seen: Sequence[str]) -> list[str]:
    """Arguments that make another Python begin as one did: of ``sys.orig_argv``, ``sys.argv``.

    They end with "-m pytest", or with what starts pytest without the working directory in
    ``sys.path``, as its command does.
    """
    # Without the program's name, and without what pytest was given.
    head = list(whole[1 : len(whole) - max(0, len(seen) - 1)])
    if head[-2:] == ["-m", "pytest"]:
        return head
    options = head[:-1] if head and os.path.basename(head[-1]) in ("pytest", "py.test") else []
    return [*options, "-c", _AS_COMMAND]


def conditions() -> dict[str, Any]:
    """Fields of a :class:`Repro` that say where this process runs."""
    return {
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "executable": sys.executable,
        },
        "packages": _packages(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "system": _system(),
        "uid": os.getuid(),
        "gid": os.getgid(),
    }


def _packages() -> dict[str, str]:
    from importlib.metadata import distributions

    found: dict[str, str] = {}
    for distribution in distributions():
        # Of a broken installation there is no metadata, or not all of it.
        with suppress(Exception):
            found.setdefault(str(distribution.metadata["Name"]), distribution.version)
    return dict(sorted(found.items(), key=lambda pair: pair[0].lower()))


def _system() -> str:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return platform.system()
    return release.get("PRETTY_NAME", release.get("NAME", ""))


def differences(repro: Repro) -> list[str]:
    """What is otherwise here than where the bundle was made, a line each."""
    here = conditions()
    lines = [
        f"{what}: {there or 'unknown'} then, {now or 'unknown'} now"
        for what, there, now in (
            ("system", repro.system, here["system"]),
            ("kernel", repro.kernel, here["kernel"]),
            ("machine", repro.machine, here["machine"]),
            ("user id", str(repro.uid), str(here["uid"])),
            *(
                (f"Python {key}", repro.python.get(key, ""), here["python"][key])
                for key in ("implementation", "version")
            ),
        )
        if there != now
    ]
    packages: dict[str, str] = here["packages"]
    for name in sorted({*repro.packages, *packages}, key=str.lower):
        there, now = repro.packages.get(name), packages.get(name)
        if there != now:
            lines.append(f"package {name}: {there or 'none'} then, {now or 'none'} now")
    return lines


def now() -> str:
    """The time, as ISO 8601 has it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def layer_data(layer: LayerOf) -> dict[str, Any]:
    """A layer as plain types."""
    return dataclasses.asdict(layer)


def spec_data(spec: SandboxSpec) -> dict[str, Any]:
    """A spec as plain types."""
    return dataclasses.asdict(spec)


def spec_from(data: Mapping[str, Any]) -> SandboxSpec:
    """What :func:`spec_data` gave. Raises :class:`SandboxError` if it is none."""
    parts: dict[str, Any] = {}
    try:
        for key, value in data.items():
            if key == "volumes":
                parts[key] = tuple(Volume(**volume) for volume in value)
            elif key == "tmpfs":
                parts[key] = tuple(Tmpfs(**tmpfs) for tmpfs in value)
            else:
                parts[key] = tuple(value) if isinstance(value, list) else value
        spec = SandboxSpec(**parts)
        hash(spec)
    except (TypeError, ValueError, AttributeError) as error:
        raise SandboxError(
            "read the spec of a bundle",
            cause=f"it is not one of this version: {error}",
            remedy="use the version of pytest-mountns that has made the bundle",
        ) from error
    return spec


# Reading ------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was read and checked, but for the content of its layers."""

    path: str
    repro: Repro
    layers: tuple[LayerOf, ...]

    def text(self, name: str) -> str:
        """A file of it. Raises :class:`SandboxError`."""
        return _read(self.path, name).decode("utf-8", "replace")

    @contextmanager
    def opened(self, layer: LayerOf) -> Iterator[int]:
        """A descriptor of a layer; whoever unpacks it looks at its digest.

        Raises :class:`SandboxError`.
        """
        with _opened(self.path, layer.file) as fd:
            if os.fstat(fd).st_size != layer.size:
                raise _malformed(self.path, f"{layer.file} is not as big as {DOCUMENT} says")
            yield fd

    def sources(self, stack: ExitStack) -> list[Source]:
        """The layers, lowest first, open until ``stack`` ends.

        Raises :class:`SandboxError`, also if there are none.
        """
        return [
            Source(stack.enter_context(self.opened(one)), one.size, one.digest, one.diff_id)
            for one in self.own_layers()
        ]

    def own_layers(self) -> tuple[LayerOf, ...]:
        """The layers, lowest first. Raises :class:`SandboxError` if there are none."""
        if not self.layers:
            notes = "; ".join(self.repro.notes)
            raise SandboxError(
                f"use the layer of {self.path}",
                cause=f"it has none{': ' if notes else ''}{notes}",
                remedy="run the test again with --mountns-keep",
            )
        return self.layers


def load(path: str) -> Bundle:
    """Read a bundle. Raises :class:`SandboxError` for what is none, or is malformed."""
    path = os.path.abspath(path)
    if not os.path.isdir(path):
        raise SandboxError(
            f"read the bundle {path}",
            cause="there is no directory of that name"
            if not os.path.lexists(path)
            else "a bundle is a directory",
            remedy="name a directory in .mountns (--mountns-dir), or what run --keep has written",
        )
    data = _read(path, DOCUMENT)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _malformed(path, f"{DOCUMENT} is no JSON: {str(error)[:200]}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else document
        raise _malformed(path, f"{DOCUMENT} is not of format {FORMAT}, but of {str(found)[:40]!r}")
    repro = _repro(path, document)
    layers = tuple(_layer(path, layer) for layer in repro.layers)
    return Bundle(path, repro, layers)


_TEXTS: Final = "interpreter", "argv", "left_out", "plan", "notes"
_TABLES: Final = "environment", "python", "packages"


def _repro(path: str, document: dict[str, Any]) -> Repro:
    kinds: dict[str, type] = {
        **dict.fromkeys(("kind", "name", "outcome", "written", "run", "cwd", "root"), str),
        **dict.fromkeys(("kernel", "machine", "system"), str),
        **dict.fromkeys(("uid", "gid"), int),
        **dict.fromkeys((*_TEXTS, "layers"), list),
        **dict.fromkeys((*_TABLES, "seeds", "spec"), dict),
    }
    for key, kind in kinds.items():
        if not isinstance(document.get(key), kind):
            raise _malformed(path, f"{key!r} is missing, or no {kind.__name__}")
    texts = [text for key in _TEXTS for text in document[key]]
    texts += [text for key in _TABLES for pair in document[key].items() for text in pair]
    texts += [document["name"], document["cwd"], document["root"]]
    for text in texts:
        if not isinstance(text, str) or "\0" in text:
            raise _malformed(path, f"{str(text)[:100]!r} is no text that can be passed on")
    for name in document["environment"]:
        if not name or "=" in name:
            raise _malformed(path, f"{name[:100]!r} is no name of a variable")
    for key in ("cwd", "root"):
        if not os.path.isabs(document[key]) or ".." in document[key].split("/"):
            raise _malformed(path, f"{key!r} is no absolute path")
    if document["kind"] not in ("test", "command") or (
        document["kind"] == "command" and not document["argv"]
    ):
        raise _malformed(path, "it is neither of a test nor of a command")
    return Repro(**{key: document[key] for key in kinds})


def _layer(path: str, layer: object) -> LayerOf:
    # A name that is more than a name could lead anywhere.
    if (
        not isinstance(layer, dict)
        or set(layer) != {one.name for one in dataclasses.fields(LayerOf)}
        or not _FILE.fullmatch(str(layer["file"]))
        or not all(_DIGEST.fullmatch(str(layer[key])) for key in ("digest", "diff_id"))
        or not isinstance(layer["media_type"], str)
        or type(layer["size"]) is not int
    ):
        raise _malformed(path, f"a layer is described by {str(layer)[:200]}")
    return LayerOf(**layer)


@contextmanager
def _opened(path: str, name: str) -> Iterator[int]:
    """A regular file in the bundle; not what a link leads to, not a FIFO."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(os.path.join(path, name), flags)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise SandboxError(
            f"read the bundle {path}",
            said(error),
            f"it has no {name}" if missing else f"its {name} is a link, or cannot be read",
            "keep it anew, or copy the whole directory",
        ) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _malformed(path, f"{name} is no regular file")
        yield fd
    finally:
        os.close(fd)


def _read(path: str, name: str) -> bytes:
    with _opened(path, name) as fd:
        if os.fstat(fd).st_size > _LARGEST_DOCUMENT:
            raise _malformed(path, f"{name} is larger than {_LARGEST_DOCUMENT >> 20} MiB")
        with open(fd, "rb", closefd=False) as file:
            return file.read()


def _malformed(path: str, cause: str) -> SandboxError:
    return SandboxError(
        f"read the bundle {path}", cause=cause, remedy="keep it anew; do not edit it by hand"
    )


def copied(kept: Sequence[str], now: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Of the variables left out of a bundle: those that are set here, and the names of others."""
    found = {name: now[name] for name in kept if name in now}
    return found, [name for name in kept if name not in now]
