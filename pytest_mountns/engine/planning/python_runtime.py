"""What of the host a foreign root has to show, so that the running Python goes on in it.

The interpreter of a test has begun on the host and goes on in a root that may have another Python,
another C library, or nothing at all. Its modules and the libraries of its extension modules have
to be found where they were: ``sys.path`` has absolute paths, and so have the run paths of ELF
files. So the host's trees are shown read-only at their own places.

* A prefix that is Python's alone (a virtual environment, a build in a home directory) is shown as
  a whole; of one that is shared (``/usr``) only Python's own directories.
* A shared library is shown only where the root has none of that path: programs of the root need
  theirs. What an extension module would find there instead is in :attr:`Visible.preload`: loaded
  before the root is entered, it is found by its name afterwards, dlopen(3), wherever it lies.
* ``/etc/ld.so.cache`` is the root's own: one of the host would send the root's programs to
  libraries that are not theirs. Only a root without libraries of its own gets the host's.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, final

from ..linux.elf import Linked, locate, read_cache, read_linked
from ..linux.mountinfo import is_below

#: Prefixes that hold more than Python.
_SHARED: Final = ("/", "/usr", "/usr/local")
_USUAL: Final = ("/lib64", "/usr/lib64", "/lib", "/usr/lib")
#: Links at the top of a root whose directories are merged into /usr.
_MERGED: Final = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
#: Small files that the standard library reads: pwd, grp, socket, time.
_FILES: Final = (
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
    "/usr/lib/locale",
)
_MOST_LINKS: Final = 40


@final
@dataclass(frozen=True, slots=True)
class Runtime:
    """The running interpreter. Paths are absolute, as Python and the loader use them.

    ``prefixes``: sys.prefix and its kin. ``trees``: directories and files of modules. ``links``:
    symbolic links met on the way to any of them, and where they lead. ``loaded``: libraries in
    memory; ``needed``: those that extension modules will ask for; ``loader``: the dynamic loader.
    """

    executables: tuple[str, ...]
    prefixes: tuple[str, ...]
    trees: tuple[str, ...]
    loaded: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    loader: str = ""
    links: tuple[tuple[str, str], ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Shown:
    """``path`` of the host, read-only, at the same place in the root."""

    path: str


@final
@dataclass(frozen=True, slots=True)
class Visible:
    """What a root has to show, in mounting order.

    ``links``: path and target of symbolic links to make first, where there is nothing;
    ``directories``: path and mode of those to make. ``preload``: libraries to load before the root
    is entered.
    """

    shown: tuple[Shown, ...]
    links: tuple[tuple[str, str], ...] = ()
    directories: tuple[tuple[str, int], ...] = ()
    preload: tuple[str, ...] = ()


def visible_in_foreign(
    runtime: Runtime, projects: Iterable[str], present: Callable[[str], bool]
) -> Visible:
    """What a root from elsewhere has to show. ``projects``: rootdir and the like.

    ``present``: whether the root has something at a path. Pure, if that is.
    """
    paths = without_inner(resolved(_own(runtime, projects), runtime.links))
    libraries = resolved([*runtime.needed, *runtime.loaded, runtime.loader], runtime.links)
    missing = [p for p in libraries if p and not is_in(p, paths) and not present(p)]
    loaded = set(resolved(runtime.loaded, runtime.links))
    preload = [
        path
        for path in resolved(runtime.needed, runtime.links)
        if present(path) and path not in loaded and not is_in(path, paths)
    ]
    return Visible(
        tuple(Shown(path) for path in sorted({*paths, *missing})),
        tuple(
            (path, target)
            for path, target in runtime.links
            if not present(path) and not is_in(path, paths)
        ),
        preload=tuple(sorted(set(preload))),
    )


def visible_in_minimal(
    runtime: Runtime,
    projects: Iterable[str],
    exists: Callable[[str], bool],
    *,
    merged: Iterable[tuple[str, str]] = (),
    home: str = "",
) -> Visible:
    """What a root that is empty otherwise has to show: Python, the project, a few files of /etc.

    ``exists``: whether the host has something at a path. ``merged``: links like ``/lib`` at the top
    of the host's root, and their targets. ``home``: made as an empty directory. No shell and no
    other program: what a test needs besides has to be a volume.
    """
    files = [path for path in _FILES if exists(path)]
    wanted = [*_own(runtime, projects), *files]
    paths = without_inner(resolved(wanted, runtime.links))
    libraries = resolved([*runtime.needed, *runtime.loaded, runtime.loader], runtime.links)
    paths += [path for path in libraries if path and not is_in(path, paths)]
    links = sorted({*runtime.links, *merged})
    outside = [(path, target) for path, target in links if not is_in(path, paths)]
    directories = [("/tmp", 0o1777), ("/var/tmp", 0o1777), ("/run", 0o755)]
    if home and not is_in(home, paths):
        directories.append((home, 0o755))
    return Visible(
        tuple(Shown(path) for path in sorted(set(paths))), tuple(outside), tuple(directories)
    )


def _own(runtime: Runtime, projects: Iterable[str]) -> list[str]:
    prefixes = [path for path in runtime.prefixes if path not in _SHARED]
    return [*prefixes, *runtime.trees, *runtime.executables, *projects]


def resolved(paths: Iterable[str], links: Iterable[tuple[str, str]]) -> list[str]:
    """Without links on the way: a mount at a path with one would be where that leads."""
    known = dict(links)
    return [_follow(path, known)[0] for path in paths if path]


def _follow(path: str, known: dict[str, str]) -> tuple[str, bool]:
    """Where links lead; False if they lead round in circles."""
    for _ in range(_MOST_LINKS):
        for end in _stations(path):
            if end in known:
                target = os.path.join(os.path.dirname(end), known[end])
                path = os.path.normpath(target + path[len(end) :])
                break
        else:
            return path, True
    return path, False


def _stations(path: str) -> Iterator[str]:
    """``/a``, ``/a/b``, ... of ``/a/b/c``."""
    at = path.find("/", 1)
    while at > 0:
        yield path[:at]
        at = path.find("/", at + 1)
    yield path


def is_in(path: str, trees: Iterable[str]) -> bool:
    """Whether it is one of them, or below one."""
    return any(path == tree or is_below(path, tree) for tree in trees)


def without_inner(paths: Iterable[str]) -> list[str]:
    """Those that are in none of the others. The root itself is no tree to show."""
    chosen: list[str] = []
    for path in sorted(set(paths) - {"/"}):
        if not is_in(path, chosen):
            chosen.append(path)
    return chosen


def survey_runtime() -> Runtime:
    """The interpreter that this process is. Reads ``/proc/self/maps`` and all extension modules.

    What cannot be read is left out.
    """
    places = sysconfig.get_paths()
    trees = [places[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    trees += [*site.getsitepackages(), *(path for path in sys.path if os.path.isabs(path))]
    if site.ENABLE_USER_SITE:
        trees.append(site.getusersitepackages())
    prefixes = [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]
    known = [*trees, *(prefix for prefix in prefixes if prefix not in _SHARED)]
    # An editable installation may be found by an import hook, of which sys.path knows nothing.
    trees += sorted({place for place in _module_roots() if not is_in(place, known)})
    trees = [path for path in trees if os.path.exists(path)]
    executables = [sys.executable] if os.path.isabs(sys.executable or "") else []
    loaded = tuple(sorted(set(_mapped_files())))
    loader, needed = _asked_for([*executables, *_extensions(without_inner(trees))])
    everything = [*executables, *prefixes, *trees, *loaded, *needed, loader]
    return Runtime(
        tuple(executables),
        tuple(dict.fromkeys(prefixes)),
        tuple(dict.fromkeys(trees)),
        loaded,
        needed,
        loader,
        tuple(sorted(links_on_the_way(everything))),
    )


def links_on_the_way(paths: Iterable[str]) -> set[tuple[str, str]]:
    """Symbolic links that are components of paths of the host, and where they lead."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    for start in paths:
        path = start
        for _ in range(_MOST_LINKS):
            link = next((end for end in _stations(path) if _is_link(end, seen, found)), None)
            if link is None:
                break
            target = os.path.join(os.path.dirname(link), found[link])
            path = os.path.normpath(target + path[len(link) :])
    return set(found.items())


def _is_link(path: str, seen: set[str], found: dict[str, str]) -> bool:
    if path not in seen:
        seen.add(path)
        if os.path.islink(path):
            found[path] = os.readlink(path)
    return path in found


def merged_directories() -> tuple[tuple[str, str], ...]:
    """``/bin``, ``/lib`` and the like, where they are links into ``/usr``."""
    return tuple((path, os.readlink(path)) for path in _MERGED if os.path.islink(path))


def _module_roots() -> Iterator[str]:
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if "." in name or not isinstance(file, str) or not os.path.isabs(file):
            continue
        place = os.path.dirname(file)
        # A package is found in the directory that holds it.
        yield os.path.dirname(place) if hasattr(module, "__path__") else place


def _mapped_files() -> Iterator[str]:
    try:
        with open("/proc/self/maps", "rb") as file:
            for line in file:
                path = os.fsdecode(line.rstrip(b"\n").split(maxsplit=5)[-1])
                if path.startswith("/") and ".so" in os.path.basename(path):
                    yield path
    except OSError:
        return


def _extensions(trees: Iterable[str]) -> Iterator[str]:
    for tree in trees:
        for place, inner, names in os.walk(tree):
            # No package has such a name, and repositories and caches are large.
            inner[:] = [name for name in inner if name[0] != "." and name != "__pycache__"]
            for name in names:
                if name.endswith(".so") or ".so." in name:
                    yield os.path.join(place, name)


def _asked_for(files: list[str]) -> tuple[str, tuple[str, ...]]:
    """The loader, and all libraries that these files need, and those that these need."""
    try:
        with open("/etc/ld.so.cache", "rb") as file:
            cached = read_cache(file.read())
    except OSError:
        cached = {}
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    usual = [*_USUAL, *(f"{place}/{multiarch}" for place in ("/lib", "/usr/lib") if multiarch)]
    loader = ""
    found: set[str] = set()
    pending = list(files)
    seen: set[str] = set()
    while pending:
        path = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        linked = _linked(path)
        loader = loader or linked.loader
        for name in linked.needed:
            origin = os.path.dirname(os.path.realpath(path))
            where = locate(name, origin, linked.search, cached, usual)
            if where is not None:
                found.add(where)
                pending.append(where)
    return loader, tuple(sorted(found))


def _linked(path: str) -> Linked:
    try:
        return read_linked(path) or Linked()
    except OSError:
        return Linked()
