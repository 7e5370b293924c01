"""The options and ini values of the plugin, and the spec that they and a test's marks add up to.

Everything that the user can get wrong is checked here, or by what this module calls:
:mod:`.marker_keys` knows the keys of the marker, :mod:`.profiles` reads pyproject.toml.

To add an option, add it to :func:`add_options`, its ini option to :data:`INI`, and a function that
returns its value.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import pytest

from ..engine.plan.spec import SandboxSpec, SpecError, Volume
from . import marker_keys, profiles

if TYPE_CHECKING:
    from ..engine.layers.limits import Limits

#: The fixtures that isolate the tests that use them.
FIXTURES: Final = frozenset({"overlay_root", "bind_volume", "isolated_proc", "isolated_net"})

#: The markers, as ``pytest --markers`` lists them.
MARKERS: Final = (
    'mountns(profile=None, /, *, process="fork", scope="function", root="host", layers=[],'
    ' volumes=[], tmpfs=[], size=None, inodes=None, upper="memory", read_only=False, pid=False,'
    ' network="host", hostname=None, user="keep", writable="all", devices=[], writes=None,'
    ' leaks="warn", faults=[], tmp_path="shared"): run the test in a throwaway root filesystem;'
    " whatever it writes, deletes or installs there is discarded when the test ends.",
    "no_mountns(reason=None): run the test without a sandbox, even under --mountns.",
)

profiles_key: Final = pytest.StashKey[profiles.Profiles]()
_PROCESSES: Final = ("auto", "fork", "module", "inline")
_TMP_PATHS: Final = ("shared", "own")
#: How many tests a message lists.
_MOST_LISTED: Final = 20
#: The names of all ini options that :func:`add_options` adds.
INI: Final = (
    *("mountns", "mountns_process", "mountns_profile", "mountns_layer_limits", "mountns_volumes"),
    *("mountns_unavailable", "mountns_changes", "mountns_keep", "mountns_dir", "mountns_tmp_path"),
)


def add_options(parser: pytest.Parser) -> None:
    """Add the command line options, and the ini options that most of them have as well."""
    group = parser.getgroup("mountns", "throwaway root filesystems for tests (pytest-mountns)")
    group.addoption(
        "--mountns",
        action="store_true",
        default=None,
        dest="mountns",
        help="Run every test in a sandbox, a throwaway root filesystem of its own."
        " Without this option only tests that ask for a sandbox get one.",
    )
    group.addoption(
        "--no-mountns",
        action="store_false",
        default=None,
        dest="mountns",
        help="Make no sandboxes. Tests that ask for one are skipped.",
    )
    group.addoption(
        "--mountns-process",
        metavar="auto|fork|module|inline",
        default=None,
        help="fork: run each test in a process of its own."
        " module: run the tests of a module in one process, each in a sandbox of its own."
        " inline: run it in the pytest process, which enters the sandbox and leaves it again;"
        " then nothing but the filesystem is isolated."
        " auto: inline where that is possible, else fork."
        " Default: auto for tests of --mountns, fork for tests that ask for a sandbox themselves.",
    )
    group.addoption(
        "--mountns-profile",
        metavar="NAME",
        default=None,
        help="Apply the settings in [tool.mountns.profiles.NAME] of pyproject.toml to every"
        " sandbox.",
    )
    group.addoption(
        "--mountns-volume",
        metavar="SRC:DST[:ro]",
        action="append",
        default=None,
        help="Show the directory or file SRC of the host as DST in every sandbox. What tests write"
        " there is kept; with :ro they cannot write there. Can be given several times.",
    )
    group.addoption(
        "--mountns-unavailable",
        metavar="skip|error|guard",
        default=None,
        help="What to do with tests that need a sandbox if this machine cannot make one."
        " guard: run the tests of --mountns on the machine itself, in processes that Landlock keeps"
        " from writing anywhere but to tmp_path, volumes and pytest's cache; skip the others"
        " (default: skip; error if the environment variable CI is set).",
    )
    group.addoption(
        "--mountns-changes",
        metavar="failed|all|none",
        default=None,
        help="List the files that a test has changed in the reports of failed tests, of all tests,"
        " or of none (default: failed).",
    )
    group.addoption(
        "--mountns-keep",
        metavar="failed|all|none",
        default=None,
        help="Save a repro of failed isolated tests, of all of them, or of none. A repro has the"
        " files that the test wrote, and what is needed to run it again (default: none).",
    )
    group.addoption(
        "--mountns-dir",
        metavar="DIR",
        default=None,
        help="The directory to save repros in (default: .mountns in the rootdir).",
    )
    group.addoption(
        "--mountns-crash",
        metavar="K",
        default=None,
        help="Have overlay_root.crashes() go to crash point K alone, and fault_points() to fault K,"
        " as a failure has named it.",
    )
    group.addoption(
        "--mountns-audit",
        action="store_true",
        default=False,
        help="Run every test in a sandbox, and list at the end which tests wrote outside of their"
        " tmp_path, and where.",
    )
    group.addoption(
        "--mountns-audit-json",
        metavar="FILE",
        default=None,
        help="Do the same as --mountns-audit, and also write the list to FILE as JSON.",
    )
    group.addoption(
        "--mountns-audit-html",
        metavar="FILE",
        default=None,
        help="Do the same as --mountns-audit, and also write the list to FILE as an HTML page.",
    )
    group.addoption(
        "--mountns-doctor",
        action="store_true",
        default=False,
        help="Run no tests. Try what a sandbox needs on this machine, and say what fails, why, and"
        " how to fix it.",
    )
    parser.addini("mountns", "Run every test in a sandbox.", type="bool", default=False)
    parser.addini("mountns_process", "Default for --mountns-process.", default="")
    parser.addini("mountns_profile", "Default for --mountns-profile.", default="")
    parser.addini(
        "mountns_layer_limits",
        "How large a layer may be when it is unpacked: members=N,bytes=SIZE,ratio=N.",
        default="",
    )
    parser.addini(
        "mountns_volumes",
        "Volumes of every sandbox, one SRC:DST[:ro] in each line.",
        type="linelist",
        default=[],
    )
    parser.addini("mountns_unavailable", "Default for --mountns-unavailable.", default="")
    parser.addini("mountns_changes", "Default for --mountns-changes.", default="")
    parser.addini("mountns_keep", "Default for --mountns-keep.", default="")
    parser.addini(
        "mountns_dir",
        "Default for --mountns-dir. A relative path starts at the rootdir.",
        default="",
    )
    parser.addini(
        "mountns_tmp_path",
        "shared|own: whether tmp_path is a part of the sandbox's root, or a mount of its own, which"
        " is faster (default: shared).",
        default="",
    )


def sandbox_everything(config: pytest.Config) -> bool | None:
    """Which tests are to run in a sandbox.

    True stands for every test, False for none (``--no-mountns``), and None for those that ask for
    a sandbox. Raises :class:`pytest.UsageError` if options contradict each other.
    """
    option: bool | None = config.getoption("mountns")
    if is_audit(config):
        if option is False:
            raise pytest.UsageError(
                "--no-mountns: there is nothing to audit without sandboxes; leave out either"
                " --no-mountns or the audit"
            )
        return True
    if option is not None:
        return option
    everything = config.getini("mountns") or profiles_of(config).settings.get("mountns")
    return True if everything else None


def early_keys(config: pytest.Config) -> dict[str, object] | None:
    """The marker keys that every sandbox has, if every test is to run in one, else None.

    ``config`` is that of ``pytest_load_initial_conftests``, whose options are not all parsed yet.
    Those that are known are in ``known_args_namespace``. What is not valid is said later.
    """
    early = copy.copy(config)
    early.option = config.known_args_namespace
    try:
        return session_keys(early) if sandbox_everything(early) else None
    except pytest.UsageError:
        return None


def default_policy() -> Literal["skip", "error"]:
    """What is done with isolated tests on such a machine if nobody has said it."""
    return "error" if os.environ.get("CI") else "skip"


def unavailable_policy(config: pytest.Config) -> Literal["skip", "error", "guard"]:
    """What to do with isolated tests if this machine cannot make sandboxes.

    Raises :class:`pytest.UsageError` if the value is not valid.
    """
    value = _choice(config, "unavailable", ("skip", "error", "guard"), default_policy())
    return cast('Literal["skip", "error", "guard"]', value)


def changes_policy(config: pytest.Config) -> Literal["failed", "all", "none"]:
    """Which tests have their changes listed in their reports.

    Raises :class:`pytest.UsageError` if the value is not valid.
    """
    value = _choice(config, "changes", ("failed", "all", "none"), "failed")
    return cast('Literal["failed", "all", "none"]', value)


def keep_policy(config: pytest.Config) -> Literal["failed", "all", "none"]:
    """Which isolated tests are saved as repros.

    Raises :class:`pytest.UsageError` if the value is not valid.
    """
    value = _choice(config, "keep", ("failed", "all", "none"), "none")
    return cast('Literal["failed", "all", "none"]', value)


def repro_directory(config: pytest.Config) -> Path:
    """The directory that repros are saved in, as an absolute path."""
    option = config.getoption("mountns_dir")
    if option:
        return Path(config.invocation_params.dir, option)
    return Path(config.rootpath, _text_setting(config, "dir") or ".mountns")


def crash_point(config: pytest.Config) -> int | None:
    """The only crash point that ``overlay_root.crashes()`` is to go to, None for all.

    Raises :class:`pytest.UsageError` if the value is no such number.
    """
    value = config.getoption("mountns_crash")
    if value is None:
        return None
    if not value.isdecimal():
        raise pytest.UsageError(
            f"--mountns-crash: {value!r} is not valid; give the number of a crash point, as 3"
        )
    return int(value)


def layer_limits(config: pytest.Config) -> Limits:
    """How large a layer may be when it is unpacked.

    Raises :class:`pytest.UsageError` if the ini value is not valid.
    """
    # Not imported by sessions without sandboxes: it costs half a millisecond.
    from ..engine.layers.limits import Limits

    try:
        return Limits.parse(config.getini("mountns_layer_limits"))
    except SpecError as error:
        raise pytest.UsageError(f"mountns_layer_limits: {error}") from None


def is_audit(config: pytest.Config) -> bool:
    """Whether an audit is wanted. The options that name a file for it ask for one as well."""
    names = ("mountns_audit", "mountns_audit_json", "mountns_audit_html")
    return any(config.getoption(name) for name in names)


def session_keys(config: pytest.Config, profile: str | None = None) -> dict[str, object]:
    """The marker keys that every sandbox has.

    They come from the command line, a profile, ini options and ``[tool.mountns]``; of these the
    first that has a key counts. ``profile`` is the name of the profile that a mark asks for; it
    takes the place of the one that is configured. Raises :class:`pytest.UsageError` if one of them
    is not valid.
    """
    base = str(config.rootpath)
    known = profiles_of(config)
    name = profile or _text_setting(config, "profile")
    try:
        chosen = known.profile(name) if name else {}
    except profiles.ProfileError as error:
        raise pytest.UsageError(str(error)) from None
    ini: dict[str, object] = {}
    if process := config.getini("mountns_process"):
        ini["process"] = _valid("process", process, _PROCESSES)
    if tmp_path := config.getini("mountns_tmp_path"):
        if tmp_path not in _TMP_PATHS:
            raise pytest.UsageError(
                f"mountns_tmp_path: {tmp_path!r} is not valid; choose from: {', '.join(_TMP_PATHS)}"
            )
        ini["tmp_path"] = tmp_path
    if texts := config.getini("mountns_volumes"):
        ini["volumes"] = _parse_volumes("mountns_volumes", texts, base)
    command: dict[str, object] = {}
    if process := config.getoption("mountns_process"):
        command["process"] = _valid("process", process, _PROCESSES)
    if texts := config.getoption("mountns_volume"):
        command["volumes"] = _parse_volumes("--mountns-volume", texts, base)
    merged: dict[str, object] = {"volumes": ()}
    for level in (known.defaults, ini, chosen, command):
        merged = marker_keys.merge(merged, level)
    return merged


def profiles_of(config: pytest.Config) -> profiles.Profiles:
    """What pyproject.toml says about sandboxes. The file is read once in a session.

    Raises :class:`pytest.UsageError` if something in it is not valid.
    """
    known = config.stash.get(profiles_key, None)
    if known is None:
        inipath = config.inipath
        in_use = inipath is not None and inipath.name == "pyproject.toml"
        file = inipath if in_use and inipath else config.rootpath / "pyproject.toml"
        try:
            known = config.stash[profiles_key] = profiles.read(file, config.rootpath)
        except profiles.ProfileError as error:
            raise pytest.UsageError(str(error)) from None
    return known


def _parse_volumes(option: str, texts: list[str], base: str) -> tuple[Volume, ...]:
    try:
        volumes = tuple(Volume.parse(text, base) for text in texts)
        # Two volumes of one origin that have the same target are refused by this.
        SandboxSpec(volumes=volumes)
    except SpecError as error:
        raise pytest.UsageError(f"{option}: {error}") from None
    return volumes


def _text_setting(config: pytest.Config, name: str) -> str:
    """The value from the command line, else the ini file, else ``[tool.mountns]``, else ""."""
    value = config.getoption(f"mountns_{name}") or config.getini(f"mountns_{name}")
    return str(value or profiles_of(config).settings.get(name, ""))


def _choice(config: pytest.Config, name: str, valid: tuple[str, ...], default: str) -> str:
    return _valid(name, _text_setting(config, name) or default, valid)


def _valid(name: str, value: str, valid: tuple[str, ...]) -> str:
    if value not in valid:
        raise pytest.UsageError(
            f"--mountns-{name} (ini: mountns_{name}): {value!r} is not valid;"
            f" choose from: {', '.join(valid)}"
        )
    return value


def asks_for_sandbox(item: pytest.Item) -> bool:
    """Whether ``item`` asks for a sandbox itself, by a mark or a fixture."""
    return next(item.iter_markers("mountns"), None) is not None or uses_fixture(item)


def asks_for_more_than_writes(item: pytest.Item) -> bool:
    """Whether ``item`` asks for a sandbox itself, and not only says what it may write.

    A mark with ``writes`` alone restricts a test: it promises no throwaway root.
    """
    marks = list(item.iter_markers("mountns"))
    restricts = all(not mark.args and mark.kwargs.keys() == {"writes"} for mark in marks)
    return uses_fixture(item) or not restricts


def uses_fixture(item: pytest.Item) -> bool:
    """Whether ``item`` uses a fixture that isolates it."""
    return not FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))


def item_spec(item: pytest.Item, session: Mapping[str, object]) -> SandboxSpec:
    """The spec of ``item``: what its marks, its fixtures and the keys of the session add up to.

    Of several marks the nearest one that has a key counts, and for the profile the nearest one
    that names a profile. Volumes of the session are added to those of marks. Raises
    :class:`pytest.UsageError` if its marks are not valid; the message names the test.
    """
    marked: dict[str, object] = {}
    profile: object = None
    problems: list[str] = []
    for mark in item.iter_markers("mountns"):
        if mark.args and profile is None:
            profile = mark.args[0]
        if len(mark.args) > 1:
            problems.append(f"takes at most one profile, not {len(mark.args)}: {mark.args!r}")
        for key, value in mark.kwargs.items():
            marked.setdefault(key, value)
    if profile is not None:
        if not isinstance(profile, str) or not profile:
            problems.append(f"the profile must be given by its name, not as {profile!r}")
        else:
            try:
                session = session_keys(item.config, profile)
            except pytest.UsageError as error:
                problems.append(str(error))
    try:
        own = marker_keys.read_all(marked, item.config.rootpath)
    except marker_keys.KeysError as error:
        problems.extend(error.problems)
    if problems:
        raise _mark_error(item, problems)
    wanted = marker_keys.merge(session, own)
    # A test that asks for a sandbox itself is to be isolated in all respects. A whole suite that is
    # run with --mountns is to go on as without.
    wanted.setdefault("process", "fork" if asks_for_sandbox(item) else "auto")
    if "isolated_proc" in getattr(item, "fixturenames", ()):
        wanted["pid"] = True
    if "isolated_net" in getattr(item, "fixturenames", ()):
        wanted["network"] = "none"
    try:
        spec = SandboxSpec(**cast("dict[str, Any]", wanted))
    except SpecError as error:
        raise _mark_error(item, [str(error)]) from None
    other: object = item.ihook.pytest_mountns_spec(item=item, spec=spec)
    if other is not None and not isinstance(other, SandboxSpec):
        raise pytest.UsageError(
            f"{item.nodeid}: pytest_mountns_spec returned {other!r}, which is not a SandboxSpec"
        )
    return other or spec


def _mark_error(item: pytest.Item, problems: list[str]) -> pytest.UsageError:
    problems = [problem.removeprefix("mountns: ") for problem in problems]
    start = f"{item.nodeid}: @pytest.mark.mountns:"
    if len(problems) == 1:
        return pytest.UsageError(f"{start} {problems[0]}")
    return pytest.UsageError(_indented([start, *problems]))


def raise_together(
    errors: Sequence[tuple[pytest.Item, pytest.UsageError]],
    what: str = "have marks that are not valid",
) -> None:
    """Raise one :class:`pytest.UsageError` that says what :func:`item_spec` has raised for items.

    ``what``: what is wrong with these tests, in words.

    Returns if there are no ``errors``. Many tests can have the same problem, as all tests of a
    module with a wrong mark. So the first test of each problem is listed before the others: these
    then do not crowd out another problem.
    """
    if not errors:
        return
    if len(errors) == 1:
        raise errors[0][1]
    #: For each problem the test that is the first to have it.
    first: dict[str, str] = {}
    lines: list[str] = []
    repeated: list[str] = []
    for item, error in errors:
        problem = str(error).removeprefix(item.nodeid)
        if problem in first:
            repeated.append(f"{item.nodeid}: the same problem as {first[problem]}")
        else:
            first[problem] = item.nodeid
            lines.append(str(error))
    lines += repeated
    more = len(lines) - _MOST_LISTED
    if more > 0:
        lines[_MOST_LISTED:] = [f"and {more} more"]
    title = f"{len(errors)} tests {what}:"
    raise pytest.UsageError(_indented([title, *lines]))


def _indented(lines: Sequence[str]) -> str:
    """The first of ``lines``, and the others indented below it."""
    return "\n".join(lines).replace("\n", "\n  ")
