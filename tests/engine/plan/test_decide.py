"""Plans that are computed from the mount tables of other machines."""

from __future__ import annotations

import pytest

from pytest_mountns.engine.linux import syscalls as sys
from pytest_mountns.engine.linux.mountinfo import Mount
from pytest_mountns.engine.plan.decide import plan
from pytest_mountns.engine.plan.model import (
    Assemble,
    Bind,
    Features,
    FreshProc,
    Host,
    MakeDev,
    MountTmpfs,
    Overlay,
    Plan,
    Protect,
    Seed,
    Step,
    WritableRoot,
)
from pytest_mountns.engine.plan.spec import SandboxSpec, Tmpfs, Volume

ROOT = Features(user_namespace=False)
USER = Features(user_namespace=True, mknod=False)


def mount(
    point: str, fstype: str = "ext4", options: str = "rw,relatime", more: str = "rw"
) -> Mount:
    return Mount(1, 0, "8:1", "/", point, frozenset(options.split(",")), (), fstype, "x", more)


def steps(made: Plan, *types: type[Step]) -> dict[str, Step]:
    """The steps of these types by target, without those of the system's own trees."""
    found: dict[str, Step] = {}
    for step in made.steps:
        target = step.path if isinstance(step, Seed) else step.target
        if isinstance(step, types or object) and not target.startswith(("/proc", "/sys", "/dev")):
            found[target] = step
    return found


def as_root(*mounts: Mount, spec: SandboxSpec | None = None, **host: object) -> Plan:
    return plan(spec or SandboxSpec(), Host(mounts, **host), ROOT)  # type: ignore[arg-type]


def as_user(*mounts: Mount, spec: SandboxSpec | None = None, **host: object) -> Plan:
    return plan(spec or SandboxSpec(), Host(mounts, **host), USER)  # type: ignore[arg-type]


def test_root_gets_an_overlay_of_the_root() -> None:
    made = as_root(mount("/"))
    assert made.steps[0] == Overlay("/", ("/",), "0")
    assert not made.user_namespace


def test_each_real_filesystem_below_gets_an_overlay_of_its_own() -> None:
    made = as_root(
        mount("/"), mount("/home", "xfs"), mount("/home/me", "btrfs"), mount("/tmp", "tmpfs")
    )
    assert list(steps(made, Overlay)) == ["/", "/home", "/home/me", "/tmp"]
    names = [overlay.name for overlay in made.overlays]
    assert len(set(names)) == len(names)


def test_flags_of_the_hosts_mounts_are_kept() -> None:
    made = as_root(mount("/"), mount("/tmp", "tmpfs", "rw,nosuid,nodev,noexec,noatime"))
    flags = (
        sys.MOUNT_ATTR_NOSUID
        | sys.MOUNT_ATTR_NODEV
        | sys.MOUNT_ATTR_NOEXEC
        | sys.MOUNT_ATTR_NOATIME
    )
    assert steps(made)["/tmp"] == Overlay("/tmp", ("/tmp",), "1", flags)


def test_files_of_a_container_are_copied_into_the_upper() -> None:
    files = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf")
    made = as_root(mount("/", "overlay"), *(mount(path) for path in files), files=frozenset(files))
    assert list(steps(made).values()) == [Overlay("/", ("/",), "0"), *map(Seed, files)]


def test_a_read_only_file_stays_a_bind() -> None:
    made = as_root(mount("/"), mount("/etc/x", options="ro"), files=frozenset({"/etc/x"}))
    assert steps(made)["/etc/x"] == Bind("/etc/x", "/etc/x", read_only=True, optional=True)


@pytest.mark.parametrize(
    "below",
    [
        mount("/m", options="ro,relatime"),
        mount("/m", more="ro"),
        mount("/m", "autofs"),
        mount("/m", "tracefs"),
        mount("/m", "nsfs"),
    ],
)
def test_read_only_and_pseudo_filesystems_are_read_only_binds(below: Mount) -> None:
    assert steps(as_root(mount("/"), below))["/m"] == Bind("/m", "/m", True, optional=True)


def test_what_the_kernel_refuses_as_a_lower_is_a_read_only_bind() -> None:
    made = as_root(mount("/"), mount("/m", "fuse.x"), unlayerable=frozenset({"/m"}))
    assert steps(made)["/m"] == Bind("/m", "/m", True, optional=True)


def test_a_socket_that_is_a_mountpoint_is_a_read_only_bind() -> None:
    made = as_root(mount("/"), mount("/run/s"), specials=frozenset({"/run/s"}))
    assert steps(made)["/run/s"] == Bind("/run/s", "/run/s", True, optional=True)


def test_in_a_recursive_bind_only_what_can_be_written_is_mounted_again() -> None:
    made = as_root(
        mount("/"),
        mount("/m", options="ro"),
        mount("/m/f"),
        mount("/m/ro", options="ro"),
        mount("/m/rw"),
        files=frozenset({"/m/f"}),
    )
    assert {target: type(step) for target, step in steps(made).items()} == {
        "/": Overlay,
        "/m": Bind,
        "/m/rw": Overlay,
    }


def test_a_read_only_root_stays_read_only_and_its_writable_mounts_writable() -> None:
    made = as_root(
        mount("/", more="ro"),
        mount("/etc/hosts"),
        mount("/usr", options="ro"),
        mount("/var"),
        files=frozenset({"/etc/hosts"}),
    )
    assert list(steps(made).values()) == [
        Bind("/", "/", read_only=True),
        Overlay("/var", ("/var",), made.overlays[0].name),
    ]


def test_two_hundred_mounts_are_two_hundred_steps_with_names_of_their_own() -> None:
    made = as_root(mount("/"), *(mount(f"/m/{number:03}") for number in range(200)))
    assert len(steps(made, Overlay)) == 201
    assert len({overlay.name for overlay in made.overlays}) == 201


def test_the_system_trees_come_after_the_root_and_are_not_layered() -> None:
    made = as_root(
        mount("/"),
        *(mount(path, "tmpfs") for path in ("/dev", "/dev/shm", "/proc/x", "/sys/fs/cgroup")),
        mount("/dev/mqueue", "mqueue"),
        mount("/sys", "sysfs"),
        protected=("/proc/sys",),
        devices=("null",),
        has_sys=True,
    )
    assert made.steps[1:] == (
        Bind("/proc", "/proc"),
        Protect("/proc/sys"),
        Bind("/sys", "/sys", read_only=True),
        MakeDev(("null",), bind=False, mqueue="host"),
    )


def test_without_proc_and_sys_there_are_none() -> None:
    made = as_root(mount("/"), has_proc=False, has_sys=False)
    assert [type(step) for step in made.steps] == [Overlay, MakeDev]


@pytest.mark.parametrize("made", [as_root, as_user])
def test_a_pid_namespace_has_a_proc_of_its_own(made: object) -> None:
    assert callable(made)
    planned: Plan = made(mount("/"), spec=SandboxSpec(pid=True))
    assert planned.pid_namespace
    assert FreshProc() in planned.steps
    assert Bind("/proc", "/proc") not in planned.steps


def test_a_user_gets_a_read_only_tree_with_overlays_where_he_can_write() -> None:
    made = as_user(mount("/"), mount("/tmp", "tmpfs", "rw,noexec"), writable=("/home/me", "/tmp"))
    assert made.user_namespace
    assert list(steps(made).values()) == [
        Bind("/", "/", read_only=True),
        Overlay("/home/me", ("/home/me",), "1"),
        Overlay("/tmp", ("/tmp",), "2", sys.MOUNT_ATTR_NOEXEC),
    ]


def test_a_user_who_is_shown_as_root_gets_a_root_of_copies() -> None:
    copies = WritableRoot(
        (("/", ("/copies/root",)), ("/home", ("/copies/home",)), ("/usr", ("/copies/usr", "/usr"))),
        ("/home/other",),
    )
    made = as_user(
        mount("/"),
        mount("/usr", options="rw,nodev"),
        spec=SandboxSpec(user="root"),
        writable=("/home/me",),
        writable_root=copies,
        has_sys=True,
    )
    assert made.fake_root
    found = steps(made)
    assert list(found) == ["/", "/home", "/home/me", "/home/other", "/usr"]
    assert found["/"] == Overlay("/", ("/copies/root",), "w0")
    assert isinstance(found["/home/me"], Overlay)
    assert found["/home/other"] == Bind("/home/other", "/home/other", True, optional=True)
    assert found["/usr"] == Overlay("/usr", ("/copies/usr", "/usr"), "w2", sys.MOUNT_ATTR_NODEV)
    names = [step.name for step in made.overlays]
    assert len(set(names)) == len(names)
    # The root of copies shows neither /sys nor, where changes are read, /dev.
    assert Bind("/sys", "/sys", read_only=True) in made.steps
    assert made.root_filesystem is not None
    assert Bind("/dev", "/dev", read_only=True) in made.root_filesystem.steps


def test_a_user_who_is_shown_as_root_may_write_to_some_directories_only() -> None:
    copies = WritableRoot((("/etc", ("/copies/etc",)),))
    made = as_user(mount("/"), spec=SandboxSpec(user="root"), writable_root=copies)
    assert list(steps(made).values()) == [
        Bind("/", "/", read_only=True),
        Overlay("/etc", ("/copies/etc",), "w0"),
    ]


def test_a_user_gets_nothing_over_what_is_read_only_or_refused() -> None:
    made = as_user(
        mount("/"),
        mount("/ro", options="ro"),
        writable=("/odd", "/ro/mine"),
        unlayerable=frozenset({"/odd"}),
    )
    assert list(steps(made)) == ["/"]


def test_a_users_directory_with_mounts_is_assembled_before_what_lies_in_it() -> None:
    made = as_user(
        mount("/"),
        mount("/home/me/a/deep/m"),
        mount("/home/me/m"),
        mixed=("/home/me",),
        writable=("/home/me/m",),
        dead=("/home/me/gone",),
    )
    assert list(steps(made).values()) == [
        Bind("/", "/", read_only=True),
        Assemble("/home/me", "1", ("a", "gone", "m"), ("gone",)),
        Overlay("/home/me/m", ("/home/me/m",), "2"),
    ]


def test_a_users_devices_are_binds_and_nothing_is_protected_twice() -> None:
    made = as_user(mount("/"), protected=("/proc/sys",), devices=("null",))
    assert made.steps[-1] == MakeDev(("null",), bind=True, mqueue="")
    assert not any(isinstance(step, Protect) for step in made.steps)


def test_volumes_and_tmpfs_come_last_parents_first() -> None:
    spec = SandboxSpec(
        volumes=(Volume("/v", "/t/b/c"), Volume("/w", "/t/b-c", read_only=True)),
        tmpfs=(Tmpfs("/t/b"), Tmpfs("/t", 4096, 0o700)),
    )
    assert as_root(mount("/"), spec=spec).steps[-4:] == (
        MountTmpfs("/t", 4096, 0o700),
        MountTmpfs("/t/b"),
        Bind("/w", "/t/b-c", read_only=True, create=True),
        Bind("/v", "/t/b/c", create=True),
    )


def test_read_only_freezes_every_overlay_after_targets_were_made() -> None:
    spec = SandboxSpec(read_only=True, volumes=(Volume("/v", "/new"),))
    made = as_root(mount("/"), mount("/home"), spec=spec)
    assert made.steps[-3:] == (
        Bind("/v", "/new", create=True),
        Protect("/", tree=False),
        Protect("/home", tree=False),
    )


def test_read_only_leaves_what_covers_an_overlay_writable() -> None:
    spec = SandboxSpec(read_only=True, tmpfs=(Tmpfs("/tmp"),), volumes=(Volume("/v", "/a"),))
    made = as_root(mount("/"), mount("/a/b"), mount("/tmp", "tmpfs"), mount("/tmpx"), spec=spec)
    assert [step.target for step in made.steps if isinstance(step, Protect)] == ["/", "/tmpx"]


@pytest.mark.parametrize(
    ("spec", "memory", "medium"),
    [
        (SandboxSpec(), True, "memory"),
        (SandboxSpec(upper="disk"), True, "disk"),
        (SandboxSpec(), False, "disk"),
    ],
)
def test_the_upper_lies_in_memory_where_it_can(
    spec: SandboxSpec, memory: bool, medium: str
) -> None:
    features = Features(user_namespace=True, memory_upper=memory)
    assert plan(spec, Host((mount("/"),)), features).upper.medium == medium


def test_options_of_overlays_depend_on_the_user() -> None:
    assert dict(ROOT.overlay_options)["redirect_dir"] == "on"
    assert dict(ROOT.overlay_options)["xino"] == "on"
    assert "userxattr" in dict(USER.overlay_options)
    assert not {"redirect_dir", "metacopy"} & set(dict(USER.overlay_options))


def test_a_plan_describes_each_step_in_a_line() -> None:
    spec = SandboxSpec(
        size=4096,
        inodes=10,
        pid=True,
        read_only=True,
        volumes=(Volume("/v", "/w", read_only=True),),
        tmpfs=(Tmpfs("/t"),),
    )
    made = as_user(
        mount("/"), mount("/h/m"), spec=spec, writable=("/tmp",), mixed=("/h",), devices=("null",)
    )
    assert made.describe().splitlines() == [
        "new namespaces: mount, user, pid, ipc",
        "upper in memory size=4096 inodes=10",
        "read-only bind / (from /)",
        "overlay /h (lower assembled around its mounts, upper 1)",
        "overlay /tmp (lower /tmp, upper 2)",
        "proc /proc",
        "tmpfs /dev with null, pts, shm",
        "tmpfs /t",
        "read-only bind /w (from /v)",
        "make /h read-only",
        "make /tmp read-only",
    ]
    described = as_root(mount("/"), mount("/f"), files=frozenset({"/f"})).describe()
    assert "copy /f into the upper" in described
