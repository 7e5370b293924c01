"""What a root other than the host's must show of the host, so that the running Python works in it.

The interpreter of a test has been started on the host and goes on in a root that may have another
Python, another C library, or nothing at all. Its modules, and the libraries that its extension
modules need, must be found at their paths on the host: ``sys.path`` has absolute paths, and so have
the run paths of ELF files. So they are shown read-only at the same paths.

* A prefix that only Python uses (a virtual environment, a build in a home directory) is shown as a
  whole. Of a prefix that is shared (``/usr``) only Python's own directories are shown.
* A shared library is shown only if the root has nothing at its path, because the root's programs
  need the root's libraries. If it has one, the host's is in :attr:`RootNeeds.preload`: a library
  that is loaded before the root is entered is found by its name afterwards, wherever its file is:
  see dlopen(3).
* ``/etc/ld.so.cache`` is the root's own, because the host's would lead the root's programs to
  libraries that are not there. Only a root without libraries of its own gets the host's.
"""

from __future__ import annotations

import site
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, final

from ..linux.elf import Linked, locate, read_cache, read_linked
from ..linux.mountinfo import is_below
from ..linux.untouched import open, os

#: Prefixes in which more than Python is installed.
_SHARED: Final = ("/", "/usr", "/usr/local")
#: Directories in which the dynamic loader looks for libraries by default, ld.so(8).
_LIBRARY_DIRECTORIES: Final = ("/lib64", "/usr/lib64", "/lib", "/usr/lib")
#: Names that are symbolic links at the top of a root if its directories are merged into /usr.
_MERGED: Final = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
#: Files that modules of the standard library read: pwd, grp, socket, time, locale.
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
#: How many symbolic links are followed in one path, as in the kernel: path_resolution(7).
_MOST_LINKS: Final = 40


@final
@dataclass(frozen=True, slots=True)
class Runtime:
    """The files of the running interpreter, by the absolute paths that it and the loader use."""

    executables: tuple[str, ...]
    #: ``sys.prefix``, ``sys.base_prefix`` and the like.
    prefixes: tuple[str, ...]
    #: Directories and archives that modules are imported from.
    trees: tuple[str, ...]
    #: Shared libraries that are in memory.
    loaded: tuple[str, ...] = ()
    #: Shared libraries that extension modules need.
    needed: tuple[str, ...] = ()
    #: The dynamic loader; "" if the interpreter is linked statically.
    loader: str = ""
    #: The path and the target of each symbolic link that is met in the paths above.
    links: tuple[tuple[str, str], ...] = ()


@final
@dataclass(frozen=True, slots=True)
class RootNeeds:
    """What a root must have for the running Python."""

    #: Paths of the host that are shown read-only at the same paths, in the order of mounting.
    shown: tuple[str, ...]
    #: The path and the target of each symbolic link that must be made, if nothing is there.
    links: tuple[tuple[str, str], ...] = ()
    #: The path and the mode of each directory that must be made.
    directories: tuple[tuple[str, int], ...] = ()
    #: Libraries that must be loaded before the root is entered, as they cannot be found there.
    preload: tuple[str, ...] = ()


def needs_of_foreign_root(
    runtime: Runtime, projects: Iterable[str], present: Callable[[str], bool]
) -> RootNeeds:
    """What a root that has files of its own must have for ``runtime``.

    ``projects`` are further directories that it must show, as the rootdir. ``present`` tells
    whether the root has something at a path. Nothing else is looked at.
    """
    paths = outermost(resolve_links(_python_paths(runtime, projects), runtime.links))
    libraries = resolve_links([*runtime.needed, *runtime.loaded, runtime.loader], runtime.links)
    missing = [p for p in libraries if p and not is_in_any(p, paths) and not present(p)]
    loaded = set(resolve_links(runtime.loaded, runtime.links))
    preload = [
        path
        for path in resolve_links(runtime.needed, runtime.links)
        if present(path) and path not in loaded and not is_in_any(path, paths)
    ]
    return RootNeeds(
        tuple(sorted({*paths, *missing})),
        tuple(
            (path, target)
            for path, target in runtime.links
            if not present(path) and not is_in_any(path, paths)
        ),
        preload=tuple(sorted(set(preload))),
    )


def needs_of_minimal_root(
    runtime: Runtime,
    projects: Iterable[str],
    exists: Callable[[str], bool],
    *,
    merged: Iterable[tuple[str, str]] = (),
    home: str = "",
) -> RootNeeds:
    """What a root without files of its own must have for ``runtime``.

    That is Python, the project, and a few files of ``/etc``. There is no shell and no other
    program; a test that needs one must have it as a volume. ``exists`` tells whether the host has
    something at a path. ``merged`` are links like ``/lib`` at the top of the host's root, and their
    targets. ``home`` is made as an empty directory.
    """
    files = [path for path in _FILES if exists(path)]
    wanted = [*_python_paths(runtime, projects), *files]
    paths = outermost(resolve_links(wanted, runtime.links))
    libraries = resolve_links([*runtime.needed, *runtime.loaded, runtime.loader], runtime.links)
    paths += [path for path in libraries if path and not is_in_any(path, paths)]
    links = sorted({*runtime.links, *merged})
    outside = [(path, target) for path, target in links if not is_in_any(path, paths)]
    directories = [("/tmp", 0o1777), ("/var/tmp", 0o1777), ("/run", 0o755)]
    if home and not is_in_any(home, paths):
        directories.append((home, 0o755))
    return RootNeeds(tuple(sorted(set(paths))), tuple(outside), tuple(directories))


def _python_paths(runtime: Runtime, projects: Iterable[str]) -> list[str]:
    """All files of Python and of the projects, without shared libraries."""
    prefixes = [path for path in runtime.prefixes if path not in _SHARED]
    return [*prefixes, *runtime.trees, *runtime.executables, *projects]


def resolve_links(paths: Iterable[str], links: Iterable[tuple[str, str]]) -> list[str]:
    """The paths without symbolic links: a mount at a path with one is made where it leads."""
    known = dict(links)
    return [_follow(path, known)[0] for path in paths if path]


def _follow(path: str, known: dict[str, str]) -> tuple[str, bool]:
    """Where ``path`` leads; False if its links lead in a circle."""
    for _ in range(_MOST_LINKS):
        for end in _ancestors(path):
            if end in known:
                target = os.path.join(os.path.dirname(end), known[end])
                path = os.path.normpath(target + path[len(end) :])
                break
        else:
            return path, True
    return path, False


def _ancestors(path: str) -> Iterator[str]:
    """``/a``, ``/a/b`` and ``/a/b/c`` of ``/a/b/c``."""
    at = path.find("/", 1)
    while at > 0:
        yield path[:at]
        at = path.find("/", at + 1)
    yield path


def is_in_any(path: str, trees: Iterable[str]) -> bool:
    """Whether ``path`` is one of ``trees``, or below one."""
    return any(path == tree or is_below(path, tree) for tree in trees)


def outermost(paths: Iterable[str]) -> list[str]:
    """Those of ``paths`` that are in none of the others. The root itself is left out."""
    chosen: list[str] = []
    for path in sorted(set(paths) - {"/"}):
        if not is_in_any(path, chosen):
            chosen.append(path)
    return chosen


def survey_runtime() -> Runtime:
    """Find the files of the interpreter that this process runs.

    Reads ``/proc/self/maps`` and the ELF headers of all extension modules. What cannot be read is
    left out.
    """
    places = sysconfig.get_paths()
    trees = [places[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    trees += [*site.getsitepackages(), *(path for path in sys.path if os.path.isabs(path))]
    if site.ENABLE_USER_SITE:
        trees.append(site.getusersitepackages())
    prefixes = [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]
    known = [*trees, *(prefix for prefix in prefixes if prefix not in _SHARED)]
    # The modules of an editable installation may be found by an import hook, not by sys.path.
    trees += sorted({place for place in _module_roots() if not is_in_any(place, known)})
    trees = [path for path in trees if os.path.exists(path)]
    executables = [sys.executable] if os.path.isabs(sys.executable or "") else []
    loaded = tuple(sorted(set(_mapped_files())))
    loader, needed = _needed_libraries([*executables, *_extensions(outermost(trees))])
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
    """The path and the target of each symbolic link that is met in ``paths`` of the host."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    for start in paths:
        path = start
        for _ in range(_MOST_LINKS):
            link = next((end for end in _ancestors(path) if _is_link(end, seen, found)), None)
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
    """The links of the host that lead from ``/bin``, ``/lib`` and the like into ``/usr``."""
    return tuple((path, os.readlink(path)) for path in _MERGED if os.path.islink(path))


def _module_roots() -> Iterator[str]:
    """The directories in which the modules that are loaded were found."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if "." in name or not isinstance(file, str) or not os.path.isabs(file):
            continue
        place = os.path.dirname(file)
        # A package was found in the directory above its own.
        yield os.path.dirname(place) if hasattr(module, "__path__") else place


def _mapped_files() -> Iterator[str]:
    """The shared libraries that are mapped into memory."""
    try:
        with open("/proc/self/maps", "rb") as file:
            for line in file:
                path = os.fsdecode(line.rstrip(b"\n").split(maxsplit=5)[-1])
                if path.startswith("/") and ".so" in os.path.basename(path):
                    yield path
    except OSError:
        return


def _extensions(trees: Iterable[str]) -> Iterator[str]:
    """The shared objects in ``trees``: extension modules, and libraries that packages have."""
    for tree in trees:
        for place, inner, names in os.walk(tree):
            # Packages have no such names. Repositories and caches have, and they are large.
            inner[:] = [name for name in inner if name[0] != "." and name != "__pycache__"]
            for name in names:
                if name.endswith(".so") or ".so." in name:
                    yield os.path.join(place, name)


def _needed_libraries(files: list[str]) -> tuple[str, tuple[str, ...]]:
    """The dynamic loader, and the libraries that ``files`` need, directly or by way of others."""
    try:
        with open("/etc/ld.so.cache", "rb") as file:
            cached = read_cache(file.read())
    except OSError:
        cached = {}
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    usual = [*_LIBRARY_DIRECTORIES]
    usual += [f"{place}/{multiarch}" for place in ("/lib", "/usr/lib") if multiarch]
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
