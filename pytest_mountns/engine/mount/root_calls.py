"""The system calls that make a root from a template, as a list that is performed at once.

A suite makes the same root for each of its tests: what differs are numbers of descriptors and the
attributes of the directories that are shown. So the list is made once for a template. It is the
same as what :class:`.executor.PlanExecutor` does there, for the steps that most plans consist of:
overlays of one directory, ``/dev``, volumes at their own path, and files that are mounts outside of
volumes. For other steps, or where the library is missing or a call fails, the root is made step by
step. That says what has failed, and why.

This exists for speed alone; ``MOUNTNS_ABLATE=root_calls`` leaves it out. Measured on Linux 6.18, in
turn with and without it: an empty test with ``process="inline"`` takes 2.47 ms of CPU time in place
of 2.69 ms, of which 0.81 ms are pytest's (medians of nine runs of 500 tests, on a busy machine).
"""

from __future__ import annotations

import stat
from contextlib import ExitStack
from typing import BinaryIO, Final, NamedTuple, final

from ..linux import syscalls as sys
from ..linux.ablation import is_left_out
from ..linux.attributes import read_xattrs, without_overlay
from ..linux.call_helper import CallHelper
from ..linux.call_list import Call, CallList, Result, is_available
from ..linux.mountinfo import is_below
from ..linux.namespaces import FD_FLOOR
from ..linux.untouched import fcntl, open, os, struct
from ..plan.model import DEV, Bind, Layered, MakeDev, Overlay, Plan, Seed, Step
from .api import NOSUID_NODEV, Options, escape_lower, fits_one_option
from .dev import DEVICE_NUMBERS, LINKS, TERMINALS, terminal_options
from .executor import LARGEST_SEED, copy_seed
from .shown_files import FilesToShow, ShownFiles, parents_in_overlays, sources_of

_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
#: Access and modification time as utimensat(2) takes them.
_TIMES: Final = struct.Struct("=4q")


class _Upper(NamedTuple):
    """The calls that give an upper the attributes of a directory of the host's."""

    model: str
    #: The extended attributes that it gets, as a security label: they hardly ever change.
    xattrs: dict[str, bytes]
    #: Indices in the list.
    chown: int
    chmod: int
    utime: int


class RootAtOnce(NamedTuple):
    """A root that was made by one list of calls, as descriptors."""

    namespace: int
    scratch: int
    #: The root directory. It is closed before a test runs, since it leads there from any root.
    root: int


@final
class _Forgetting:
    """Has overlays of a root forget what they have looked up. See :func:`.new_api.forget_entries`.

    With 200 overlays it takes 16 us for each, in place of 23 with a Python function for each call
    (Linux 6.18, medians of 30 times).
    """

    def __init__(self, paths: list[str]) -> None:
        """The paths are relative to the root."""
        self._list = CallList()
        self._root = self._list.give(-1)
        self._is_needed = bool(paths)
        for path in paths:
            _add_forgetting(self._list, self._root, path)

    def perform(self, root: int) -> bool:
        """Returns whether it has worked. ``root`` is a descriptor of the root directory."""
        if not self._is_needed:
            return True
        self._list.give_another(self._root, root)
        return self._list.perform() is not None


def _add_forgetting(calls: CallList, top: Result, path: str) -> None:
    context = calls.open(Call.FSPICK, top, os.fsencode(path), sys.FSPICK_CLOEXEC)
    calls.add(Call.FSCONFIG, context, sys.FSCONFIG_CMD_RECONFIGURE, None, None, 0)
    calls.close(context)


@final
class RootCalls:
    """Makes roots of one plan from one template."""

    def __init__(
        self,
        plan: Plan,
        steps: tuple[Step, ...],
        namespace: int,
        trees: tuple[tuple[str, str], ...],
        shared: tuple[str, ...],
        *,
        is_completed: bool = False,
    ) -> None:
        """``namespace``, ``trees`` and ``steps``, which remain to be done, are a template's.

        ``shared`` are the paths of its overlays, relative to its root. ``is_completed``: each root
        is given to :meth:`complete`.
        """
        self._plan = plan
        self._made_of = plan, steps, namespace, trees, shared
        self._is_completed = is_completed
        self._of_helper: RootCalls | None = None
        self._seeds = [step.path for step in steps if isinstance(step, Seed)]
        self._forgetting = _Forgetting([path_in_root(path, trees) for path in shared])
        self._build()

    def _build(self) -> None:
        """Make the list, with the extended attributes that the host's directories have now."""
        plan, steps, namespace, trees, shared = self._made_of
        self._list = CallList()
        self._uppers: list[_Upper] = []
        self._mounts: list[tuple[Result, str]] = []
        #: The overlays of such a root, without those of the template.
        self.overlays: list[Layered] = []
        outdated = () if self._is_completed else shared
        #: The fields of :class:`RootAtOnce`.
        self._opened = self._add_calls(steps, self._list.give(namespace), trees, outdated)
        #: Where the list returns them.
        self._places = [self._list.left_open.index(one) for one in self._opened]
        parents = parents_in_overlays(plan)
        own = [step.target for step in steps if isinstance(step, Overlay)]
        self._files = FilesToShow(
            [(upper.model, upper.xattrs) for upper in self._uppers],
            [path for step in steps for path in sources_of(step)],
            [path for target in own for path in parents.get(target, ())],
        )
        #: The attributes that the list gives the uppers.
        self._models = b""

    def of_helper(self) -> RootCalls:
        """The same calls once more, to be performed by a helper while this object is used."""
        if self._of_helper is None:
            self._of_helper = RootCalls(*self._made_of, is_completed=True)
        return self._of_helper

    def perform(self) -> RootAtOnce | None:
        """Make a root. The descriptors are the caller's.

        This thread is on the stage, and afterwards somewhere else. None is returned if the root is
        to be made in another way; nothing is left then. Raises :class:`OSError` if a directory that
        is to be shown is gone.
        """
        files = self.look_at_files()
        if files is None:
            return None
        with ExitStack() as stack:
            # While the host's files are here.
            sources = self._open_seeds(stack)
            made = self.perform_without_copies(files) if sources is not None else None
            if made is None or sources is None:
                return None
            try:
                self._copy_seeds(sources, made)
            except OSError:
                for fd in made:
                    os.close(fd)
                return None
        return made

    def perform_without_copies(self, files: ShownFiles) -> RootAtOnce | None:
        """Make a root that :meth:`complete` is to complete, after ``files``.

        As :meth:`perform` otherwise.
        """
        self._take_over(files)
        made = self._list.perform()
        return RootAtOnce(*(made[index] for index in self._places)) if made is not None else None

    def begin_in(self, helper: CallHelper, stage: int, files: ShownFiles) -> bool:
        """Have a helper do what :meth:`perform_without_copies` does. Returns whether it does.

        The helper returns the fields of :class:`RootAtOnce`. This object is not to be used before.
        """
        if helper.is_busy:
            return False
        self._take_over(files)
        return helper.begin(self._list, stage, self._opened)

    def complete(self, made: RootAtOnce) -> bool:
        """Complete a root that was made some time ago. Returns whether that has worked.

        This thread is where the host's files are. Raises :class:`OSError`. In both cases the
        descriptors stay open.
        """
        # What the overlays that it shares with other roots know of the host may be outdated.
        if not self._forgetting.perform(made.root):
            return False
        if not self._seeds:
            return True
        with ExitStack() as stack:
            sources = self._open_seeds(stack)
            if sources is None:
                return False
            self._copy_seeds(sources, made)
        return True

    def _open_seeds(self, stack: ExitStack) -> list[BinaryIO] | None:
        """The files of the host that are copied; None if one is too long for that."""
        if any(os.stat(path).st_size > LARGEST_SEED for path in self._seeds):
            return None
        return [stack.enter_context(open(path, "rb")) for path in self._seeds]

    def _copy_seeds(self, sources: list[BinaryIO], made: RootAtOnce) -> None:
        for source, path in zip(sources, self._seeds, strict=True):
            copy_seed(source, made.root, path)

    def look_at_files(self) -> ShownFiles | None:
        """What a root that is made now takes over from the host's files.

        None if an upper is to have attributes that :meth:`perform` cannot give it. Raises
        :class:`OSError` if a file is gone.
        """
        found = self._files.look()
        if found is None and any(_xattrs(one.model) != one.xattrs for one in self._uppers):
            # As after restorecon(8). A helper may be at work on the old list, and has it.
            self._build()
            found = self._files.look()
        return found

    def _take_over(self, files: ShownFiles) -> None:
        """Have the uppers get the attributes of their models."""
        if files.models == self._models:
            return
        self._models = b""
        change = self._list.change
        for upper, state in zip(self._uppers, files.model_states(), strict=True):
            change(upper.chmod, 2, state.mode)
            if upper.chown >= 0:
                change(upper.chown, 2, state.uid)
                change(upper.chown, 3, state.gid)
            times = *divmod(state.atime, 1_000_000_000), *divmod(state.mtime, 1_000_000_000)
            change(upper.utime, 2, _TIMES.pack(*times))
        self._models = files.models

    def _add_calls(
        self,
        steps: tuple[Step, ...],
        namespace: Result,
        trees: tuple[tuple[str, str], ...],
        shared: tuple[str, ...],
    ) -> tuple[Result, ...]:
        calls, plan = self._list, self._plan
        limits = (("size", plan.upper.size), ("nr_inodes", plan.upper.inodes))
        options = [("mode", "0755"), *((key, str(value)) for key, value in limits if value)]
        scratch = self._high(self._make("tmpfs", options, NOSUID_NODEV))
        calls.add(Call.FCHDIR, scratch)
        for step in steps:
            if isinstance(step, Overlay):
                self._add_overlay(step)
            elif isinstance(step, MakeDev) and step.part != "shm":
                self._add_dev(step)
            elif isinstance(step, Bind):
                self._add_bind(step)
        proc = calls.open(Call.OPENAT, sys.AT_FDCWD, b"/proc", _DIRECTORY)
        calls.add(Call.SETNS, namespace, sys.CLONE_NEWNS)
        calls.add(Call.UNSHARE, sys.CLONE_NEWNS)
        for step in steps:
            if isinstance(step, MakeDev) and step.part == "shm":
                # Listed in the mount table behind the directory that it is in.
                self._mount_shm(step)
        flags = os.O_RDONLY | os.O_CLOEXEC
        new = self._high(calls.open(Call.OPENAT, proc, b"thread-self/ns/mnt", flags))
        top = calls.open(Call.OPENAT, sys.AT_FDCWD, b".", _DIRECTORY)
        for overlay in shared:
            _add_forgetting(calls, top, overlay)
        root = self._take_root(top, trees)
        calls.add(Call.MOVE_MOUNT, root, b"", sys.AT_FDCWD, b"/", sys.MOVE_MOUNT_F_EMPTY_PATH)
        for name, target in trees:
            if target != "/":
                calls.add(Call.MOVE_MOUNT, top, name.encode(), root, os.fsencode(target[1:]), 0)
        for mount, target in self._mounts:
            path = os.fsencode(target[1:])
            calls.add(Call.MOVE_MOUNT, mount, b"", root, path, sys.MOVE_MOUNT_F_EMPTY_PATH)
            calls.close(mount)
        for descriptor in (top, proc):
            calls.close(descriptor)
        return new, scratch, root

    def _take_root(self, top: Result, trees: tuple[tuple[str, str], ...]) -> Result:
        """The mount that is to be the root: one of this list's, or of the template's."""
        if self._mounts and self._mounts[0][1] == "/":
            return self._high(self._mounts.pop(0)[0])
        name = next(name for name, target in trees if target == "/")
        tree = self._list.open(Call.OPEN_TREE, top, name.encode(), sys.OPEN_TREE_CLOEXEC)
        return self._high(tree)

    def _high(self, descriptor: Result) -> Result:
        """See :func:`.namespaces.high`."""
        moved = self._list.open(Call.FCNTL, descriptor, fcntl.F_DUPFD_CLOEXEC, FD_FLOOR)
        self._list.close(descriptor)
        return moved

    def _make(self, fstype: str, options: Options, attributes: int) -> Result:
        """Make a detached mount."""
        calls = self._list
        context = calls.open(Call.FSOPEN, fstype.encode(), sys.FSOPEN_CLOEXEC)
        for key, value in (("source", fstype), *options):
            if value is None:
                kind, raw = sys.FSCONFIG_SET_FLAG, None
            else:
                kind, raw = sys.FSCONFIG_SET_STRING, os.fsencode(value)
            calls.add(Call.FSCONFIG, context, kind, key.encode(), raw, 0)
        calls.add(Call.FSCONFIG, context, sys.FSCONFIG_CMD_CREATE, None, None, 0)
        mount = calls.open(Call.FSMOUNT, context, sys.FSMOUNT_CLOEXEC, attributes)
        calls.close(context)
        return mount

    def _mount(self, fstype: str, target: str, options: Options, attributes: int) -> Result:
        mount = self._make(fstype, options, attributes)
        self._mounts.append((mount, target))
        return mount

    def _add_overlay(self, step: Overlay) -> None:
        calls, here = self._list, sys.AT_FDCWD
        upper, work = f"{step.name}.upper", f"{step.name}.work"
        raw = upper.encode()
        calls.add(Call.MKDIRAT, here, raw, 0o777)
        # As copy_attributes() does. A user namespace does not map each owner.
        chown = -1
        if not self._plan.user_namespace:
            chown = calls.add(Call.FCHOWNAT, here, raw, 0, 0, 0, optional=True)
        chmod = calls.add(Call.FCHMODAT, here, raw, 0)
        model = step.model or step.lowers[0]
        xattrs = _xattrs(model)
        for name, value in xattrs.items():
            content = os.fsencode(name), value, len(value)
            calls.add(Call.SETXATTR, raw, *content, 0, optional=True)
        utime = calls.add(Call.UTIMENSAT, here, raw, bytes(_TIMES.size), 0)
        self._uppers.append(_Upper(model, xattrs, chown, chmod, utime))
        calls.add(Call.MKDIRAT, here, work.encode(), 0o777)
        options: Options = [
            ("lowerdir", escape_lower(step.lowers[0])),
            ("upperdir", upper),
            ("workdir", work),
            *self._plan.features.overlay_options,
        ]
        self._mount("overlay", step.target, options, step.attributes)
        self.overlays.append(Layered(step.target, upper))

    def _add_bind(self, step: Bind) -> None:
        flags = sys.OPEN_TREE_CLONE | sys.OPEN_TREE_CLOEXEC | sys.AT_RECURSIVE
        source = os.fsencode(step.source)
        tree = self._list.open(Call.OPEN_TREE, sys.AT_FDCWD, source, flags | sys.AT_NO_AUTOMOUNT)
        self._seal(tree)
        self._mounts.append((tree, step.target))

    def _seal(self, tree: Result) -> None:
        """See :func:`.new_api.seal`."""
        attributes = bytes(sys.mount_attributes(0, propagation=sys.MS_PRIVATE))
        flags = sys.AT_EMPTY_PATH | sys.AT_RECURSIVE
        self._list.add(Call.MOUNT_SETATTR, tree, b"", flags, attributes, len(attributes))

    def _add_dev(self, step: MakeDev) -> None:
        calls, dev = self._list, step.target
        directory = self._mount("tmpfs", dev, [("mode", "0755")], sys.MOUNT_ATTR_NOSUID)
        for name in step.devices:
            raw = name.encode()
            if step.bind:
                flags = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC
                calls.close(calls.open(Call.OPENAT, directory, raw, flags, 0o666))
                flags = sys.OPEN_TREE_CLONE | sys.OPEN_TREE_CLOEXEC | sys.AT_RECURSIVE
                flags |= sys.AT_NO_AUTOMOUNT
                node = calls.open(Call.OPEN_TREE, sys.AT_FDCWD, f"/dev/{name}".encode(), flags)
                self._seal(node)
                self._mounts.append((node, f"{dev}/{name}"))
            else:
                device = os.makedev(*DEVICE_NUMBERS[name])
                calls.add(Call.MKNODAT, directory, raw, stat.S_IFCHR | 0o666, device)
        for name, link in LINKS.items():
            calls.add(Call.SYMLINKAT, link.encode(), directory, name.encode())
        for name in ("pts", "shm", *["mqueue"] * bool(step.mqueue)):
            calls.add(Call.MKDIRAT, directory, name.encode(), 0o755)
        options = terminal_options(user_namespace=self._plan.user_namespace)
        self._mount("devpts", f"{dev}/pts", options, TERMINALS)
        self._mount_shm(step)
        if step.mqueue:
            attributes = NOSUID_NODEV | sys.MOUNT_ATTR_NOEXEC
            self._mount("mqueue", f"{dev}/mqueue", [], attributes)

    def _mount_shm(self, step: MakeDev) -> None:
        self._mount("tmpfs", f"{step.target}/shm", [("mode", "1777")], NOSUID_NODEV)


def _xattrs(path: str) -> dict[str, bytes]:
    return without_overlay(read_xattrs(path))


def path_in_root(path: str, trees: tuple[tuple[str, str], ...]) -> str:
    """Where a path below the root of a template is in a root that is made from it.

    Both are relative, and ``trees`` are those of the template.
    """
    name, _, rest = path.partition("/")
    target = next(target for known, target in trees if known == name)
    return f"{target}/{rest}".strip("/")


def root_calls(
    plan: Plan,
    steps: tuple[Step, ...],
    namespace: int,
    trees: tuple[tuple[str, str], ...],
    shared: tuple[str, ...],
) -> RootCalls | None:
    """The calls for a template, or None if it has steps that no list is made for.

    The arguments are those of :class:`RootCalls`.
    """
    possible = plan.upper.medium == "memory" and all(map(_is_simple, steps))
    possible = possible and not _seeds_a_volume(steps)
    if not possible or is_left_out("root_calls") or not is_available():
        return None
    return RootCalls(plan, steps, namespace, trees, shared)


def _seeds_a_volume(steps: tuple[Step, ...]) -> bool:
    """Whether a file is copied to where a volume is mounted afterwards: the list copies it last."""
    binds = [step.target for step in steps if isinstance(step, Bind)]
    return any(
        step.path == target or is_below(step.path, target)
        for step in steps
        if isinstance(step, Seed)
        for target in binds
    )


def _is_simple(step: Step) -> bool:
    match step:
        case Overlay(lowers=(lower,), pieces=()):
            return os.path.isabs(lower) and fits_one_option(lower)
        case Seed():
            return True
        case MakeDev(mqueue="" | "own", more=(), host_shm=False):
            return True
        case Bind(source=source, target=target, read_only=False, optional=False):
            # What the host has at the same path need not be made: pytest's cache, for example.
            # Below /dev the order would be another one.
            return source == target and not is_below(target, DEV)
    return False
