"""What plugins and conftest files note on nodes in a forked test reaches the pytest process."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

from pytest_mountns.plugin_state.notes import Notes
from pytest_mountns.plugin_state.pickling import dump_small
from pytest_mountns.pytest_internals import foreign_attributes
from tests.helpers.recording import Record, Recorded

pytestmark = pytest.mark.sandboxes

#: The recipe "incremental testing - test steps" of pytest's documentation.
INCREMENTAL = """
import pytest

def pytest_configure(config):
    config.addinivalue_line("markers", "incremental: the tests of a class depend on each other")

def pytest_runtest_makereport(item, call):
    if "incremental" in item.keywords and call.excinfo is not None:
        item.parent._previousfailed = item

def pytest_runtest_setup(item):
    if "incremental" in item.keywords:
        previous = getattr(item.parent, "_previousfailed", None)
        if previous is not None:
            assert previous in item.session.items
            pytest.xfail(f"previous test failed ({previous.name})")
"""


def same_as_plain(record: Record, *arguments: str) -> None:
    plain, isolated = (record(option, *arguments) for option in ("-pno:mountns", "--mountns"))
    assert isolated.outline == plain.outline
    assert isolated.status == plain.status
    assert [one.name for one in isolated.not_passed] == [one.name for one in plain.not_passed]
    assert not isolated.warnings


def same_notes(pytester: pytest.Pytester, record: Record, *arguments: str) -> list[Recorded]:
    """Run plainly and isolated. Fails unless the suite writes the same to the file ``notes``."""
    notes, runs = [], []
    for option in ("-pno:mountns", "--mountns"):
        runs.append(record(option, *arguments))
        notes.append((pytester.path / "notes").read_text())
    assert notes[1] == notes[0]
    return runs


@pytest.mark.parametrize("workers", [[], ["-n2", "--dist=loadfile"]], ids=["alone", "xdist"])
def test_incremental_steps(pytester: pytest.Pytester, record: Record, workers: list[str]) -> None:
    pytester.makeconftest(INCREMENTAL)
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.incremental
        class TestSteps:
            def test_login(self): pass
            def test_modification(self): assert 0
            def test_deletion(self): pass

        def test_other(): pass
        """
    )
    same_as_plain(record, *workers)


def test_pytest_dependency(pytester: pytest.Pytester, record: Record) -> None:
    pytest.importorskip("pytest_dependency")
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.dependency
        def test_good(): pass
        @pytest.mark.dependency
        def test_bad(): assert 0
        @pytest.mark.dependency(depends=["test_good"])
        def test_on_good(): pass
        @pytest.mark.dependency(depends=["test_bad"])
        def test_on_bad(): pass
        @pytest.mark.dependency(depends=["test_on_bad"], scope="session")
        def test_on_skipped(): pass
        """
    )
    same_as_plain(record, "-Wignore")


def test_notes_of_every_kind(pytester: pytest.Pytester, record: Record) -> None:
    """Added, changed in place, replaced; on the session, the module and the class."""
    pytester.makeconftest(
        """
        import pytest

        class Notes:
            def __init__(self): self.names = []

        def pytest_collection_modifyitems(session, items):
            session.notes = Notes()
            for item in items:
                item.parent.counts = {"runs": 0}
            # Somebody else refers to the same object.
            session.config.notes = session.notes

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            if report.when == "call":
                item.session.notes.names.append(item.name)
                item.parent.counts["runs"] += 1
                item.parent.last = report.outcome
            return report

        def pytest_sessionfinish(session):
            with open(f"notes-{session.config.getoption('mountns', 'plain')}", "w") as file:
                for item in session.items:
                    print(item.parent.counts, item.parent.last, file=file)
                print(session.notes.names, session.config.notes is session.notes, file=file)
        """
    )
    pytester.makepyfile(
        textwrap.dedent(
            """
            def test_one(): pass
            class TestTwo:
                def test_two(self): pass
                def test_three(self): assert 0
            """
        )
    )
    record("-pno:mountns")
    record("--mountns")
    notes = [path.read_text() for path in sorted(pytester.path.glob("notes-*"))]
    assert len(notes) == 2
    assert notes[0] == notes[1]


def test_what_cannot_be_carried_is_said(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makeconftest(
        """
        def pytest_runtest_teardown(item):
            item.parent.handle = lambda: item
        """
    )
    pytester.makepyfile(test_it="def test_it(): pass")
    recorded = record("--mountns", "-Werror")
    assert recorded.status == 0
    (warning,) = recorded.warnings
    assert "test_it.py.handle cannot be pickled" in warning.message


def test_pytests_own_attributes_are_not_carried(pytester: pytest.Pytester) -> None:
    """Of items of every kind, before and after they have run."""
    pytester.makepyfile(
        test_kinds='''
        import unittest, pytest

        @pytest.fixture
        def made(): return 1
        @pytest.mark.parametrize("number", range(2))
        def test_function(number, made, tmp_path, record_property): record_property("a", 1)
        class TestClass:
            def test_method(self): pass
        class TestCase(unittest.TestCase):
            def test_case(self): pass
        def documented():
            """
            >>> 1 + 1
            2
            """
        '''
    )

    class Look:
        found: dict[str, dict[str, object]]

        def __init__(self) -> None:
            self.found = {}

        def _look(self, item: pytest.Item) -> None:
            for node in item.listchain():
                if foreign := foreign_attributes(node):
                    self.found.setdefault(type(node).__name__, {}).update(foreign)

        @pytest.hookimpl(trylast=True)
        def pytest_runtest_setup(self, item: pytest.Item) -> None:
            self._look(item)

        def pytest_runtest_logfinish(self, nodeid: str) -> None:
            pass

        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
            result = yield
            self._look(item)
            return result

    look = Look()
    options = ("--doctest-modules", "-pno:rerunfailures", "-pno:timeout", "-pno:xdist")
    result = pytester.inline_run(*options, plugins=[look])
    assert result.ret == 0
    assert look.found == {}


def test_other_objects_are_left_alone(pytester: pytest.Pytester, record: Record) -> None:
    """Members of enumerations, loggers and items stand for themselves in a pickle."""
    pytester.makeconftest(
        """
        import enum, logging
        import pytest

        class Status(enum.Enum):
            PENDING = 1
            PASSED = 2

        def pytest_sessionstart(session):
            session.status = Status.PENDING
            session.log = logging.getLogger("alpha")
            session.outcomes = {}

        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            if report.when == "call":
                item.session.status = Status.PASSED
                item.session.log = logging.getLogger("beta")
                item.session.last = item
                item.session.outcomes[item] = report
            return report

        def pytest_sessionfinish(session):
            assert Status(1) is Status.PENDING and Status(1).name == "PENDING"
            assert session.status is Status.PASSED
            assert logging.getLogger("alpha").name == "alpha"
            assert session.log is logging.getLogger("beta")
            assert session.last is session.items[-1]
            assert [item.name for item in session.items] == ["test_a", "test_b", "test_c"]
            assert list(session.outcomes) == session.items
            assert all(report.passed for report in session.outcomes.values())
        """
    )
    pytester.makepyfile("def test_a(): pass\ndef test_b(): pass\ndef test_c(): pass")
    recorded = record("--mountns", "-Werror")
    assert recorded.status == 0, recorded.out
    assert "AssertionError" not in recorded.out + recorded.err


def test_objects_do_nothing_when_they_are_compared(
    pytester: pytest.Pytester, record: Record
) -> None:
    pytester.makeconftest(
        """
        import os
        class Server:
            def __init__(self, path):
                self.path = path
                open(path, "w").close()
            def __del__(self):
                if os.path.exists(self.path):
                    os.unlink(self.path)
        def pytest_sessionstart(session):
            session.server = Server(os.path.abspath("alive"))
        """
    )
    pytester.makepyfile("import os\ndef test_it(): assert os.path.exists('alive')")
    assert record("--mountns").status == 0


#: A plugin that notes what runs in every place that there is, by hooks that run in test processes.
NOTING = """
import pytest
from weakref import WeakKeyDictionary

KEY = pytest.StashKey()
NAMES = []
BY_REPORT = WeakKeyDictionary()
COUNT = 0

class Counter:
    def __init__(self):
        self.seen = {}
        # Cannot be pickled, so that the object as a whole cannot.
        self.function = lambda: None

class Plugin:
    def __init__(self):
        self.counter = Counter()
        self.heard = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        global COUNT
        report = yield
        COUNT += 1
        self.counter.seen[item.name, report.when] = report.outcome
        BY_REPORT[report] = item.name
        item.session.stash.setdefault(KEY, []).append(item.name)
        item.config.stash.setdefault(KEY, set()).add(item.name)
        item.config.noted = getattr(item.config, "noted", 0) + 1
        if report.when == "call":
            NAMES.append(item.name)
        return report

    def pytest_runtest_logreport(self, report):
        # In the process that hears reports: what was noted of this one is there already.
        self.heard.append((BY_REPORT[report], report.when, len(self.counter.seen)))

    def pytest_exception_interact(self, node, report):
        self.heard.append(("interact", node.name, len(self.heard)))
        report.sections.append(("More", "about it"))

    def pytest_sessionfinish(self, session):
        stashed = session.stash[KEY], sorted(session.config.stash[KEY]), session.config.noted
        with open("notes", "w") as file:
            print(COUNT, NAMES, self.counter.seen, self.heard, *stashed, sep="\\n", file=file)

def pytest_configure(config):
    config.pluginmanager.register(Plugin(), "noting")
"""


def test_notes_of_plugins(pytester: pytest.Pytester, record: Record) -> None:
    """In objects, modules and stashes, by hooks of both processes, in their order."""
    pytester.makepyfile(
        noting_plugin=NOTING,
        test_it="""
        import pytest
        def test_one(): pass
        def test_two(): assert 0
        @pytest.mark.skip
        def test_three(): pass
        class TestFour:
            def test_four(self): pass
        """,
    )
    runs = same_notes(pytester, record, "-p", "noting_plugin")
    assert "about it" in runs[0].out
    assert "about it" in runs[1].out
    assert not runs[1].warnings


def test_of_a_worker_nothing_is_lost(pytester: pytest.Pytester, record: Record) -> None:
    """The plugin that makes a process a worker has what it is told to run in an attribute."""
    pytest.importorskip("xdist")
    pytester.makeconftest("def pytest_runtest_makereport(item, call): pass")
    pytester.makepyfile(
        "import pytest\n@pytest.mark.parametrize('n', range(8))\ndef test_it(n): pass"
    )
    recorded = record("--mountns", "-n2")
    assert recorded.status == 0
    assert not recorded.warnings


def test_modules_of_tests_are_not_carried(pytester: pytest.Pytester, record: Record) -> None:
    """Nor are conftest files that have no such hooks: a test's own changes end with its process."""
    pytester.makepyfile(conftest="RUN = []", product="RUN = []")
    pytester.makepyfile(
        """
        import conftest, product
        RUN = []
        def check():
            for runs in (RUN, conftest.RUN, product.RUN):
                assert not runs
                runs.append(1)
        def test_one(): check()
        def test_two(): check()
        """
    )
    assert record("--mountns").status == 0


def test_what_a_conftest_file_imports_is_not_its_own(
    pytester: pytest.Pytester, record: Record
) -> None:
    """It has such hooks, but a test's changes of the product end with the test's process."""
    pytester.makepyfile(
        product="""
        import threading
        REGISTRY = []
        class Pool:
            def __init__(self):
                self.used = 0
                self.lock = threading.Lock()
        """,
        conftest="""
        from product import REGISTRY, Pool
        pool = Pool()
        NAMES = []
        def pytest_runtest_makereport(item, call):
            if call.when == "call": NAMES.append(item.name)
        def pytest_sessionfinish():
            assert NAMES == ["test_one", "test_two"], NAMES
        """,
        test_it="""
        import conftest, product
        def check():
            assert conftest.REGISTRY is product.REGISTRY
            assert not product.REGISTRY
            assert not conftest.pool.used
            product.REGISTRY.append(1)
            conftest.pool.used += 1
        def test_one(): check()
        def test_two(): check()
        """,
    )
    recorded = record("--mountns")
    assert recorded.status == 0, recorded.out
    assert "AssertionError" not in recorded.out + recorded.err


def test_a_connection_of_a_plugin_is_said_to_be_lost(
    pytester: pytest.Pytester, record: Record
) -> None:
    pytester.makepyfile(
        connecting_plugin="""
        import socket
        connection = None
        def pytest_runtest_call(item):
            global connection
            connection = socket.socket()
        def pytest_unconfigure():
            if connection is not None: connection.close()
        """,
        test_it="def test_one(): pass\ndef test_two(): pass",
    )
    recorded = record("--mountns", "-p", "connecting_plugin")
    assert recorded.status == 0
    lost = [one.message for one in recorded.warnings if "is lost" in one.message]
    assert len(lost) == 1
    assert "connecting_plugin.connection cannot be pickled" in lost[0]


GROWING = """
import pytest
from collections import OrderedDict, defaultdict, deque

names, seen, last = [], set(), deque(maxlen=3)
times, counts, kinds = {}, defaultdict(int), OrderedDict()
mixed, flags = [], [1, 2, 3]

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    key = item.name, report.when
    names.append((item.nodeid, call.start > 0, 1.5))
    seen.add(key)
    last.append(item.name)
    times[key] = report.outcome
    counts[report.outcome] += 1
    kinds.pop(report.when, None)
    kinds[report.when] = item.name
    # First of values that cannot change, then not, and changed in their inside.
    if len(mixed) < 4:
        mixed.append(item.name)
    else:
        mixed.append({"n": len(mixed)})
        if isinstance(mixed[4], dict):
            mixed[4]["n"] += 1
    # Equal, but not the same.
    flags[:2] = (True, 2.0) if flags[0] is not True else (1, 2)
    return report

def pytest_sessionfinish(session):
    everything = names, sorted(seen), last, times, dict(counts), list(kinds), mixed, flags
    with open("notes", "w") as file:
        print(*everything, sep="\\n", file=file)
"""


@pytest.mark.parametrize("process", ["fork", "module"])
def test_containers_that_grow(pytester: pytest.Pytester, record: Record, process: str) -> None:
    pytester.makeconftest(GROWING)
    for name in "ab":
        pytester.path.joinpath(f"test_{name}.py").write_text(
            "import pytest\n@pytest.mark.parametrize('n', range(6))\ndef test_it(n): assert n != 2"
        )
    same_notes(pytester, record)


SHARED = """
KEY = lambda: None

class Plugin:
    def __init__(self):
        self.active, self.names, self.count = {KEY: 1}, [], 0
        self.groups = {"all": [], "more": [[]]}
        self.current = self.log = self.groups["all"]
        self.inner = self.groups["more"][0]
        self.both, self.counts = {"n": 0}, [0]
        self.kind = [1, 2]

    def pytest_runtest_call(self, item):
        # Something that cannot be pickled is taken out.
        self.active.pop(KEY, None)
        self.names.append(item.name)
        self.count += 1
        # Two ways to one list, one of which ends.
        self.current = self.log
        self.current.append(item.name)
        self.inner.append(item.name)
        # Both processes count.
        self.both["n"] += 100
        self.counts[0] += 100
        if isinstance(self.kind, list):
            self.kind[0] = 5

    def pytest_runtest_teardown(self, item):
        self.current = None

    def pytest_runtest_logreport(self, report):
        self.both["n"] += 1
        self.counts[0] += 1
        self.kind = {7, 8}

    def pytest_exception_interact(self, node):
        self.names.append((self.both["n"], self.counts[0]))

    def pytest_sessionfinish(self):
        left = self.names, self.count, self.groups, self.log, self.both, self.counts, self.kind
        with open("notes", "w") as file:
            print(*left, sep="\\n", file=file)

def pytest_configure(config):
    config.pluginmanager.register(Plugin(), "noting")
"""


@pytest.mark.parametrize("process", ["fork", "module"])
def test_containers_that_both_processes_change(
    pytester: pytest.Pytester, record: Record, process: str
) -> None:
    pytester.makeconftest(SHARED)
    pytester.makepyfile("def test_a(): assert 0\ndef test_b(): pass\ndef test_c(): pass")
    runs = same_notes(pytester, record)
    # What cannot be pickled is said, and nothing else is lost with it.
    assert "noting.active cannot be pickled" in runs[1].out
    assert len(runs[1].warnings) == 1


GROWN_BY_A_THREAD = """
import threading, time
from collections import deque

class Plugin:
    def __init__(self):
        self.samples, self.last, self.done = {}, deque(maxlen=1000), threading.Event()

    def sample(self):
        while not self.done.is_set():
            for _ in range(100):
                self.samples[len(self.samples) % 5000] = time.monotonic()
                self.last.append(len(self.samples))
            time.sleep(0)

    def pytest_runtest_call(self, item):
        pass

    def pytest_sessionstart(self):
        self.thread = threading.Thread(target=self.sample)
        self.thread.start()

    def pytest_sessionfinish(self):
        self.done.set()
        self.thread.join()

def pytest_configure(config):
    config.pluginmanager.register(Plugin(), "sampling")
"""


@pytest.mark.parametrize("process", ["fork", "module"])
def test_containers_that_another_thread_changes(
    pytester: pytest.Pytester, record: Record, process: str
) -> None:
    pytester.makeconftest(GROWN_BY_A_THREAD)
    pytester.makepyfile(
        "import pytest\n@pytest.mark.parametrize('n', range(20))\ndef test_it(n): pass"
    )
    recorded = record("--mountns")
    assert recorded.status == 0


def test_containers_of_constants_are_not_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test costs must not grow with what plugins have noted of those before it."""
    pickled: list[object] = []

    def dump(value: object, names: Any, most: int) -> bytes | None:
        pickled.append(value)
        return dump_small(value, names, most)

    monkeypatch.setattr("pytest_mountns.plugin_state.notes.dump_small", dump)
    state = Notes()
    list_, dict_ = [("a", 1.0)], {"a": ("b", 1)}
    known = [state._look(list_), state._look(dict_)]
    list_.append(("b", 2.0))
    dict_["b"] = ("c", 2)
    known = [state._look(one.value, one) for one in known]
    assert [one.copy for one in known] == [list_, dict_]
    assert not pickled
    state._look([[]])
    assert pickled
