"""Plugins of others that need something to be right in a sandbox, or cannot be right in one.

A table of data; what is general has no entry here, see :mod:`pytest_mountns.plugin_state`. An entry
counts if the plugin is loaded and one of its options, if the entry names any, is set.

Three things are known of plugins:

* Places they write to while tests run, by an option or a variable of the environment that names
  one. These are volumes, as a reporter's directory is not what a test is to be kept from.
* Options by which tests write into the project, as ``--snapshot-update``. A sandbox would drop the
  files, and the run would say that they were written. Where it is known which directory they are
  in, that is a volume; else the run stops, unless a part of the project is a volume.
* What is lost or wrong in a forked test process. It is said at the start. Where a test would pass
  that should fail, it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

#: The value of an option by its name in ``config.option``; None if there is no such option.
Option = Callable[[str], object]


class Place(NamedTuple):
    """What a plugin writes to while tests run."""

    #: The name of its module.
    plugin: str
    #: The option with the path of a directory, relative to where pytest was started.
    option: str = ""
    #: A variable of the environment with that path.
    variable: str = ""
    #: The path, relative to the root directory, if it is always the same.
    path: str = ""
    #: Whether it is a file. One that is missing cannot be shown.
    file: bool = False
    #: Options of which one has to be set for the plugin to write there.
    needs: tuple[str, ...] = ()


class Update(NamedTuple):
    """An option by which tests write into the project."""

    plugin: str
    option: str
    #: The option as users write it.
    flag: str
    #: The values that mean it; with none, any that is true.
    values: tuple[str, ...] = ()
    #: Whether only forked tests lose it: the plugin writes at the end of the session.
    forked: bool = False
    #: The directory that the files are in, seen from that of the test's file; "{stem}" stands for
    #: the name of that file. It is a volume then. Without it the run stops.
    beside: str = ""
    #: The mark of tests that write; with none, all may.
    marker: str = ""


class Forked(NamedTuple):
    """What is wrong where tests of this plugin are forked, or in any sandbox."""

    plugin: str
    #: What is wrong, as the end of a sentence that begins with the plugin's name.
    what: str
    option: str = ""
    #: Tests that use one of these fixtures are concerned; with none, all are.
    fixtures: frozenset[str] = frozenset()
    #: The module of the items that are concerned, if it is not that of functions.
    items: str = ""
    #: Whether such a test would pass wrongly, or wait for ever: it is not run.
    refused: bool = False
    #: Whether it is so in any sandbox.
    everywhere: bool = False


PLACES: Final = (
    Place("allure_pytest", "allure_report_dir"),
    Place("pytest_memray", variable="MEMRAY_RESULT_PATH"),
    Place("pytest_memray", "memray_bin_path"),
    Place("pytest_monitor", "mtr_db_out", file=True),
    Place("pytest_mpl", "mpl_generate_path"),
    Place("pytest_arraydiff", "arraydiff_generate_path"),
    Place("pytest_ruff", path=".ruff_cache", needs=("ruff", "ruff_format")),
    Place("pytest_profiling", path="prof", needs=("profile", "profile_svg")),
)

UPDATES: Final = (
    Update("pytest_snapshot", "snapshot_update", "--snapshot-update", beside="snapshots"),
    Update("pytest_regressions", "force_regen", "--force-regen", beside="{stem}"),
    Update("pytest_regressions", "regen_all", "--regen-all", beside="{stem}"),
    Update("pytest_golden", "update_goldens", "--update-goldens"),
    Update("pytest_mpl", "mpl_generate_hash_library", "--mpl-generate-hash-library"),
    Update(
        "pytest_insta",
        "insta",
        "--insta",
        ("update", "update-new", "record", "clear", "auto"),
        beside="snapshots",
    ),
    Update("nbmake", "overwrite", "--overwrite"),
    Update(
        "pytest_recording",
        "record_mode",
        "--record-mode",
        ("once", "new_episodes", "all", "rewrite"),
        beside="cassettes",
        marker="vcr",
    ),
    Update(
        "pytest_vcr",
        "vcr_record",
        "--vcr-record",
        ("once", "new_episodes", "all"),
        beside="cassettes",
        marker="vcr",
    ),
    Update(
        "inline_snapshot",
        "inline_snapshot",
        "--inline-snapshot",
        ("create", "fix", "trim", "update"),
        forked=True,
    ),
    Update("pytest_examples", "update_examples", "--update-examples", forked=True),
    Update(
        "pytest_doctestplus",
        "doctest_plus_generate_diff",
        "--doctest-plus-generate-diff",
        ("overwrite",),
        forked=True,
    ),
)

FORKED: Final = (
    Forked(
        "pytest_httpserver",
        "has its server in the pytest process, which does not see what a forked test expects of"
        " it, so that check_assertions() passes whatever was requested",
        fixtures=frozenset({"httpserver", "httpserver_ipv4", "httpserver_ipv6", "make_httpserver"}),
        refused=True,
    ),
    Forked(
        "nbval",
        "has its connection to the kernel of a notebook in the pytest process, and a forked test"
        " would wait for ever",
        items="nbval",
        refused=True,
    ),
    Forked(
        "pytest_forked",
        "runs each test in a fork of its own, from which a forked test cannot go on",
        "forked",
        refused=True,
    ),
    Forked(
        "allure_pytest",
        "has the titles of forked tests as they were before the test has changed them",
        "allure_report_dir",
    ),
    Forked(
        "pytest_opentelemetry",
        "exports the spans of a forked test in the test process and once more in the pytest"
        " process",
    ),
    Forked("pytest_profiling", "measures the pytest process, which waits for tests", "profile"),
    Forked("pytest_profiling", "measures the pytest process, which waits for tests", "profile_svg"),
    Forked(
        "pytest_mypy",
        "keeps its results in a temporary file, which is dropped with the sandbox of its item: the"
        " outcomes are right, but mypy is run for each item, and its summary at the end is missing",
        "mypy",
        items="pytest_mypy",
        everywhere=True,
    ),
    Forked("pytest_insta", "does not list the snapshots of forked tests at the end", "insta"),
    Forked(
        "pytest_ansible",
        "sets up Ansible in each forked test anew, so that it warns in each one of what it would"
        " warn of once, and not that it is set up already",
        fixtures=frozenset({"ansible_adhoc", "ansible_facts", "localhost"}),
    ),
    Forked("pytest_codspeed", "keeps its results in the test process", "codspeed"),
    Forked(
        "sybil",
        "runs each example of a document in a process of its own, which does not have the names"
        " that the examples before have defined",
        items="sybil",
    ),
)


def _is_meant(value: object, values: Sequence[str]) -> bool:
    if not values:
        return bool(value)
    given = value if isinstance(value, list | tuple | set) else str(value or "").split(",")
    return any(str(one) in values for one in given)


def places(
    loaded: Callable[[str], bool], option: Option, environment: Mapping[str, str]
) -> Iterable[tuple[Place, str]]:
    """The places of the loaded plugins, and the path of each as it was given."""
    for place in PLACES:
        if not loaded(place.plugin) or (place.needs and not any(map(option, place.needs))):
            continue
        path = place.path or environment.get(place.variable, "")
        if place.option:
            value = option(place.option)
            path = str(value) if value else ""
        if path:
            yield place, path


def updates(loaded: Callable[[str], bool], option: Option) -> list[Update]:
    """The options that are set by which tests write into the project."""
    return [
        one for one in UPDATES if loaded(one.plugin) and _is_meant(option(one.option), one.values)
    ]


def forked(loaded: Callable[[str], bool], option: Option) -> list[Forked]:
    """What is known of the loaded plugins where tests are forked."""
    return [one for one in FORKED if loaded(one.plugin) and (not one.option or option(one.option))]


def concerned(known: Sequence[Forked], fixtures: Iterable[str], module: str) -> list[Forked]:
    """Those that concern a test that uses these fixtures, and whose item is of this module."""
    names = set(fixtures)
    return [
        one
        for one in known
        if (not one.fixtures or one.fixtures & names)
        and (not one.items or module.partition(".")[0] == one.items)
    ]


def said_of_update(update: Update) -> str:
    """Why tests are not run."""
    if update.forked:
        return (
            f"{update.plugin} writes files into the project when the last test has ended, and what"
            " a forked test has noted for that is lost with its process"
        )
    return f"{update.plugin} has tests write into the project, and a sandbox drops what they write"


def remedy_of_update(update: Update) -> str:
    """What to do."""
    way = (
        '@pytest.mark.mountns(process="inline") or --mountns-process=inline'
        if update.forked
        else "name the directory of these files as a volume (--mountns-volume DIR, or"
        " mountns_volumes in the ini file)"
    )
    return f"{way}; or run this once without this plugin: -p no:mountns"


def said_of_forked(one: Forked) -> str:
    """What is said at the start."""
    if one.everywhere:
        return f"{one.plugin} {one.what}"
    return f'{one.plugin} {one.what}; process="inline" is right'
