"""Bundles: what is saved of a test or of a command, to look at it and to run it again.

A bundle is a directory::

    repro.json      which test it is of, and the conditions: see :class:`Repro`
    report.txt      what pytest reported
    changes.txt     what the test has changed; changes.json says the same for programs
    layer.tar.zst   what the test has written, an OCI layer
    wider-N.tar.zst what captured fixtures of wider scope have written, if there are any

A bundle may come from somebody else. So everything in it is checked before it is used, and a file
name in it has to be that of a file in its directory.
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
from ..engine.sandbox.saved import SavedLayer

#: The format of ``repro.json``. It grows when older versions could not read what is written.
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
#: Variables that pytest and pytest-xdist set for the process that runs a test.
_OF_THE_RUN: Final = re.compile("PYTEST_CURRENT_TEST|PYTEST_VERSION|PYTEST_XDIST_.*")


@final
@dataclass(frozen=True, slots=True)
class LayerOf:
    """One layer of a bundle, as :class:`.layer_writer.WrittenLayer` has it."""

    #: The name of the file in the bundle.
    file: str
    #: The media type and the digests are those of the OCI image specification.
    media_type: str
    digest: str
    diff_id: str
    #: The size of the file in bytes.
    size: int


@final
@dataclass(frozen=True, slots=True)
class Repro:
    """The content of ``repro.json``."""

    #: "test" or "command".
    kind: str
    #: The node id of the test, or the command line.
    name: str
    #: "passed" or "failed"; of a command, its exit status in words.
    outcome: str
    #: When the bundle was written, in ISO 8601.
    written: str
    #: The same text in all bundles of one run.
    run: str
    #: The arguments of Python itself that start pytest, up to pytest's own.
    interpreter: list[str]
    #: The arguments of pytest, or the command.
    argv: list[str]
    #: The working directory that pytest was started in.
    cwd: str
    #: pytest's root directory.
    root: str
    environment: dict[str, str]
    #: Names of variables that are not saved, since they look like secrets.
    left_out: list[str]
    #: Version, implementation and path of Python.
    python: dict[str, str]
    #: The version of each installed distribution.
    packages: dict[str, str]
    #: ``uname -r``, ``uname -m``, and the name of the Linux distribution.
    kernel: str
    machine: str
    system: str
    uid: int
    gid: int
    #: "random" is ``random.getstate()``; "hypothesis" and "randomly" are seeds of those plugins.
    seeds: dict[str, Any]
    #: The fields of :class:`SandboxSpec`.
    spec: dict[str, Any]
    #: The steps of the plan, in words.
    plan: list[str]
    #: The fields of each :class:`LayerOf`, the lowest layer first.
    layers: list[dict[str, Any]] = field(default_factory=list)
    #: What is missing in the bundle, a sentence each.
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """The document, in ASCII. A byte that is not UTF-8 becomes a lone surrogate (PEP 383)."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"


# Conditions ---------------------------------------------------------------------------------------


def environment(variables: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Returns the variables that may be saved, and the names of those that look like secrets."""
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
    """Arguments that start pytest in another Python as it was started in this one.

    ``whole`` is ``sys.orig_argv`` and ``seen`` is ``sys.argv``. The result ends with "-m pytest"
    or, if pytest was started by its command, with a program that starts it without the working
    directory in ``sys.path``, as the command does.
    """
    # Without the program's name, and without the arguments of pytest.
    head = list(whole[1 : len(whole) - max(0, len(seen) - 1)])
    if head[-2:] == ["-m", "pytest"]:
        return head
    options = head[:-1] if head and os.path.basename(head[-1]) in ("pytest", "py.test") else []
    return [*options, "-c", _AS_COMMAND]


def of_worker(whole: Sequence[str]) -> list[str]:
    """The arguments of :func:`interpreter` for a worker of a run that was started with ``whole``.

    A worker has the ``sys.path`` of that run, so the options that it depends on are needed. The
    others, as ``-X``, ``-W`` and ``-O``, are not given to workers.
    """
    *options, flag, program = whole
    kept = [one for one in options if one[:1] == "-" and set(one[1:]) <= set("IEPsS")]
    return [*kept, flag, program]


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
        # A broken installation has no metadata, or only a part of it.
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
    """Lines that say how this machine differs from the one that the bundle was made on."""
    here = conditions()
    lines = [
        f"{what}: {there or 'unknown'} in the bundle, {now or 'unknown'} here"
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
            lines.append(f"package {name}: {there or 'none'} in the bundle, {now or 'none'} here")
    return lines


def now() -> str:
    """The time in ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def layer_data(layer: LayerOf) -> dict[str, Any]:
    """A layer as plain types."""
    return dataclasses.asdict(layer)


def spec_data(spec: SandboxSpec) -> dict[str, Any]:
    """A spec as plain types."""
    return dataclasses.asdict(spec)


def spec_from(data: Mapping[str, Any]) -> SandboxSpec:
    """The spec that :func:`spec_data` has made plain types of.

    Raises :class:`SandboxError` if they make no valid spec.
    """
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
            cause=f"this version of pytest-mountns does not understand it: {error}",
            remedy="use the version of pytest-mountns that has made the bundle",
        ) from error
    return spec


# Reading ------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was read and checked, except for the content of its layers."""

    path: str
    repro: Repro
    layers: tuple[LayerOf, ...]

    def text(self, name: str) -> str:
        """The text of a file in it. Raises :class:`SandboxError` if it cannot be read."""
        return _read(self.path, name).decode("utf-8", "replace")

    @contextmanager
    def opened(self, layer: LayerOf) -> Iterator[int]:
        """A descriptor of a layer. Its digest is checked when it is unpacked.

        Raises :class:`SandboxError` if it cannot be opened or has another size than expected.
        """
        with _opened(self.path, layer.file) as fd:
            if os.fstat(fd).st_size != layer.size:
                raise _malformed(self.path, f"{layer.file} is not as big as {DOCUMENT} says")
            yield fd

    def sources(self, stack: ExitStack) -> list[SavedLayer]:
        """The layers, lowest first, open until ``stack`` ends.

        Raises :class:`SandboxError` if one cannot be opened, and if there are none.
        """
        return [
            SavedLayer(stack.enter_context(self.opened(one)), one.size, one.digest, one.diff_id)
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
    """Read a bundle. Raises :class:`SandboxError` if ``path`` is no valid bundle."""
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
    """A descriptor of a regular file in the bundle; links are not followed, FIFOs are refused."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(os.path.join(path, name), flags)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise SandboxError(
            f"read the bundle {path}",
            said(error),
            f"it has no {name}" if missing else f"its {name} is a link, or cannot be read",
            "save the test anew, or copy the whole directory",
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
        f"read the bundle {path}", cause=cause, remedy="save the test anew; do not edit the bundle"
    )


def copied(left_out: Sequence[str], now: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Of the variables that a bundle lacks: those that are set here, and the names of the others.

    ``left_out`` are their names, ``now`` is the environment of this process.
    """
    found = {name: now[name] for name in left_out if name in now}
    return found, [name for name in left_out if name not in now]
