"""What is hard to bring from one process to another: reports and what hangs on them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.recording import Record, Recorded

pytestmark = pytest.mark.sandboxes

PLAIN, ISOLATED = "-pno:mountns", "--mountns"


def _events(recorded: Recorded) -> list[str]:
    events = recorded.without("keywords", "context", "properties")
    return [re.sub(r"0x[0-9a-f]+", "0x", str(event)) for event in events]


def test_reports_that_cannot_be_pickled(pytester: pytest.Pytester, record: Record) -> None:
    """By what a plugin hangs on them, or puts in the place of a failure's text."""
    pytester.makeconftest(
        """
        import pytest

        class Text:
            def __init__(self, longrepr):
                self.longrepr = longrepr
                self.hold = lambda: 1
            def __str__(self):
                return f"with a preface: {self.longrepr}"

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            report.own = lambda: item
            if report.failed and "text" in item.name:
                report.longrepr = Text(report.longrepr)
            return report
        """
    )
    pytester.makepyfile(
        """
        import pytest
        def test_passes(): print("some output")
        def test_fails():
            print("some output")
            assert [1, 2] == [1, 3]
        def test_skips(): pytest.skip("a reason")
        @pytest.mark.xfail(reason="known")
        def test_xfails(): assert 0
        def test_text(): assert 0
        """
    )
    runs = []
    for option in (PLAIN, ISOLATED):
        recorded = record(option, "-rA", "--junitxml=out.xml")
        xml = (pytester.path / "out.xml").read_text()
        xml = re.sub(r'(time|timestamp|hostname)="[^"]*"', "", xml)
        # In the isolated run a text stands in for the object.
        events = [event.replace("'Text'", "'str'") for event in _events(recorded)]
        summary = re.sub(r"in [\d.]+s", "", recorded.out.partition("short test summary")[2])
        # pytest shows the beginning of a text there, and nothing of another object.
        lines = [line for line in summary.splitlines() if "::test_text" not in line]
        runs.append((events, xml, lines))
    assert runs[1] == runs[0]


def test_properties_that_cannot_be_pickled(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        class Odd:
            def __repr__(self): return "odd"
            def __reduce__(self): raise TypeError("not me")

        def test_it(record_property):
            record_property("plain", 1)
            record_property("odd", Odd())
            record_property("function", test_it)

        def test_buffers(record_property):
            import array
            record_property("bytes", bytearray(b"b"))
            record_property("numbers", array.array("d", [0.5]))
        """
    )
    properties = []
    for option in (PLAIN, ISOLATED):
        assert record(option, "--junitxml=out.xml").status == 0
        xml = (pytester.path / "out.xml").read_text()
        xml = re.sub(' time="[^"]*"', "", xml[xml.index("<properties>") :])
        properties.append(re.sub("0x[0-9a-f]+", "0x", xml))
    assert properties[1] == properties[0]
    assert "bytearray" in properties[1]
    assert 'value="odd"' in properties[1]


def test_reports_of_tests_that_do_not_fail_and_cannot_be_loaded(
    pytester: pytest.Pytester, record: Record
) -> None:
    """What a plugin hangs on them is left out, and the tests that follow are run."""
    pytester.makeconftest(
        """
        import pytest

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            if call.when == "call":
                report.error = call.excinfo.value if call.excinfo else item.module.Bad(1, 2)
            return report
        """
    )
    pytester.makepyfile(
        """
        import pytest

        class Bad(Exception):
            def __init__(self, a, b):
                super().__init__(f"{a}{b}")

        @pytest.mark.xfail(reason="known")
        def test_xfails(): raise Bad(1, 2)
        def test_passes(): pass
        def test_skips(): pytest.skip("a reason")
        """
    )
    plain, isolated = (record(option) for option in (PLAIN, ISOLATED))
    assert isolated.status == plain.status == 0
    assert _events(isolated) == _events(plain)


def test_what_only_the_test_process_can_load(pytester: pytest.Pytester, record: Record) -> None:
    """Its module is known, but the test has added the class: that test fails, not the session."""
    pytester.makeconftest(
        """
        def pytest_exception_interact(node, report):
            report.late = node.module.make()()
        """
    )
    pytester.makepyfile(
        """
        import warnings

        def make():
            global Made
            class Made(UserWarning): pass
            Made.__qualname__ = "Made"
            return Made

        def test_property(record_property): record_property("made", make()())
        def test_warning(): warnings.warn("text", make())
        def test_interact(): assert 0, "as it was"
        def test_passes(): pass
        """
    )
    recorded = record(ISOLATED, "-Wdefault")
    assert recorded.status == 1, recorded.out
    outcomes: dict[str, list[tuple[str, str]]] = {}
    for one in recorded.reports:
        name = one.nodeid.rpartition(":")[2]
        outcomes.setdefault(name, []).append((one.when, one.outcome))
    passed = [("setup", "passed"), ("call", "passed"), ("teardown", "passed")]
    assert outcomes == {
        # A property is in the report of the teardown as well.
        "test_property": [("setup", "passed"), ("call", "failed"), ("teardown", "failed")],
        "test_warning": passed,
        "test_interact": [("setup", "passed"), ("call", "failed"), ("teardown", "passed")],
        "test_passes": passed,
    }
    texts = [one.text for one in recorded.reports if (one.when, one.outcome) == ("call", "failed")]
    assert "cannot be loaded in the pytest process" in texts[0]
    assert "Made" in texts[0]
    assert "as it was" in texts[1]
    (warned,) = recorded.warnings
    assert "cannot be loaded in the pytest process" in warned.message


def test_one_directory_for_temporary_files(pytester: pytest.Pytester, record: Record) -> None:
    """Chosen in the parent: a number of its own for each test would be seen in its paths."""
    pytester.makepyfile(
        """
        import pytest

        def test_one(tmp_path): print("BASE", tmp_path.parent)
        def test_two(tmp_path_factory): print("BASE", tmp_path_factory.getbasetemp())

        @pytest.fixture(scope="module")
        def wide(tmp_path_factory): return tmp_path_factory.mktemp("wide")

        def test_three(wide, tmp_path):
            assert wide.is_dir()
            print("BASE", wide.parent)
        """
    )
    out = record(ISOLATED, "-s").out
    bases = set(re.findall("BASE (.*)", out))
    assert len(bases) == 1, out
    # The directory of the parent, which stays there as after a plain run.
    assert Path(bases.pop()).is_dir()


def test_another_plugin_that_forks(pytester: pytest.Pytester, record: Record) -> None:
    """As pytest-forked does: who owns the protocol of a test must not make it run bare."""
    pytester.makeconftest(
        """
        import os, pickle, pytest
        from _pytest.runner import runtestprotocol

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_protocol(item, nextitem):
            item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    reports = runtestprotocol(item, log=False)
                    os.write(writer, pickle.dumps(reports))
                finally:
                    os._exit(0)
            os.close(writer)
            with open(reader, "rb") as file:
                data = file.read()
            os.waitpid(child, 0)
            if data:
                reports = pickle.loads(data)
            else:
                call = pytest.CallInfo.from_call(lambda: pytest.fail("it died"), "call")
                reports = [pytest.TestReport.from_item_and_call(item, call)]
            for report in reports:
                item.ihook.pytest_runtest_logreport(report=report)
            return True
        """
    )
    pytester.makepyfile(
        """
        import os
        HOME = os.readlink("/proc/self/ns/mnt")
        PLACE = os.path.dirname(__file__)

        def test_it():
            if os.readlink("/proc/self/ns/mnt") == HOME:
                open(os.path.join(PLACE, "bare"), "w").close()
        """
    )
    recorded = record(ISOLATED, "-Wignore")
    assert not (pytester.path / "bare").exists()
    assert recorded.reports, recorded.out
