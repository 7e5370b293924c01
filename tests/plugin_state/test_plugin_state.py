"""What plugins keep in memory until the session ends, and what they keep on disk for the next."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.helpers.recording import Record
from tests.helpers.terminals import without_summary

pytestmark = pytest.mark.sandboxes


@pytest.fixture(params=["fork", "module", "inline"])
def process(request: pytest.FixtureRequest) -> str:
    return str(request.param)


PLAIN, ISOLATED = "-pno:mountns", "--mountns"


#: With all but fd, the report of a teardown is logged while the test process still runs.
CAPTURES = pytest.mark.parametrize("capture", ["--capture=fd", "--capture=sys"])


@CAPTURES
def test_junit_properties_and_attributes(
    pytester: pytest.Pytester, record: Record, capture: str
) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture(scope="module", autouse=True)
        def wide(record_testsuite_property):
            record_testsuite_property("begin", "wide")
            yield
            record_testsuite_property("end", "wide")

        def test_one(record_testsuite_property, record_property, record_xml_attribute):
            record_testsuite_property("one", "a<b")
            record_property("own", 1)
            record_xml_attribute("assertions", "REQ-1")

        def test_two(record_testsuite_property):
            record_testsuite_property("two", 2)
            assert 0

        @pytest.fixture
        def broken(record_xml_attribute, record_testsuite_property):
            yield
            record_testsuite_property("late", 3)
            record_xml_attribute("late", "REQ-3")
            assert 0

        @pytest.mark.parametrize("number", [0, 1])
        def test_three(broken, record_xml_attribute, number):
            record_xml_attribute("assertions", f"REQ-3.{number}")
            assert number

        def test_four(record_xml_attribute):
            record_xml_attribute("assertions", "REQ-4")
            pytest.skip()
        """
    )
    found = []
    for option in (PLAIN, ISOLATED):
        record(option, capture, "--junitxml=out.xml", "-o", "junit_family=xunit1", "-Wdefault")
        root = ElementTree.parse(pytester.path / "out.xml")
        found.append(
            (
                [p.attrib for p in root.iter("property")],
                [{k: v for k, v in c.attrib.items() if k != "time"} for c in root.iter("testcase")],
            )
        )
    assert found[0] == found[1]
    assert {"name": "end", "value": "wide"} in found[0][0]
    assert "REQ-1" in str(found[0][1])


@CAPTURES
def test_a_test_that_ends_the_session_tears_down_wider_fixtures(
    pytester: pytest.Pytester, record: Record, capture: str
) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture(scope="session")
        def wide():
            yield
            assert 0, "not torn down"

        def test_one(wide): pass

        def test_two(wide, request):
            request.session.shouldstop = "that is enough"

        def test_three(wide): pass
        """
    )
    plain, isolated = (record(option, capture) for option in (PLAIN, ISOLATED))
    assert isolated.status == plain.status
    assert isolated.outline == plain.outline
    assert "that is enough" in isolated.out
    assert "1 error" in isolated.out


def test_benchmarks(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_benchmark")
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("number", [1, 2])
        def test_it(benchmark, number):
            benchmark.extra_info["number"] = number
            benchmark.pedantic(sum, args=([number],), rounds=3, iterations=2)

        def test_other(benchmark):
            with pytest.raises(ZeroDivisionError):
                benchmark(lambda: 1 / 0)
        """
    )
    found = []
    for option in (PLAIN, ISOLATED):
        result = pytester.runpytest_subprocess(option, "--benchmark-json=out.json")
        assert result.ret == 0, result.stdout.str()
        assert "test_it[2]" in result.stdout.str()
        benchmarks = json.loads((pytester.path / "out.json").read_text())["benchmarks"]
        for benchmark in benchmarks:
            assert len(benchmark["stats"].pop("data")) == 3
            benchmark["stats"] = sorted(benchmark["stats"])
        found.append(benchmarks)
    assert found[0] == found[1]


SNAPSHOTS = """
import pytest

def test_one(snapshot): assert {"a": 1} == snapshot
def test_two(snapshot):
    assert "text" == snapshot
    assert "named" == snapshot(name="a name")
def test_matched(snapshot): assert [1.5] == snapshot(matcher=lambda data, path: data)
@pytest.mark.skip
def test_skipped(snapshot): assert 3 == snapshot
"""


def _snapshots(pytester: pytest.Pytester) -> dict[str, str]:
    directory = pytester.path / "__snapshots__"
    return {path.name: path.read_text() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_snapshots(pytester: pytest.Pytester) -> None:
    """Missing, made, compared, changed and unused snapshots, as in a plain run."""
    pytest.importorskip("syrupy")
    stages = []
    for option in (PLAIN, ISOLATED):
        for path in pytester.path.rglob("*.ambr"):
            path.unlink()
        stage: list[object] = []

        def run(*options: str, option: str = option, stage: list[object] = stage) -> None:
            result = pytester.runpytest_subprocess(option, "-p", "no:cacheprovider", *options)
            tail = without_summary(result.stdout.str()).partition("snapshot report summary")[2]
            stage.append((result.ret, re.sub(r"in [\d.]+s", "", tail), _snapshots(pytester)))

        pytester.makepyfile(test_snap=SNAPSHOTS)
        run()
        run("--snapshot-update")
        run("--snapshot-update")
        run()
        pytester.makepyfile(test_snap=SNAPSHOTS.replace('"a": 1', '"a": 2').replace("two", "new"))
        run()
        run("--snapshot-update")
        stages.append(stage)
    assert stages[0] == stages[1]
    assert "test_one" in str(stages[1])


def test_snapshots_written_at_once(pytester: pytest.Pytester) -> None:
    pytest.importorskip("syrupy")
    pytester.makepyfile(
        """
        import pytest
        from syrupy.extensions.single_file import SingleFileSnapshotExtension

        @pytest.fixture
        def snapshot(snapshot): return snapshot.use_extension(SingleFileSnapshotExtension)

        def test_one(snapshot): assert b"bytes" == snapshot
        """
    )
    pytester.runpytest_subprocess("--mountns", "--snapshot-update").assert_outcomes(passed=1)
    assert "bytes" in _snapshots(pytester).values()
    pytester.runpytest_subprocess("--mountns").assert_outcomes(passed=1)


def test_a_crash_deletes_no_snapshot(pytester: pytest.Pytester) -> None:
    pytest.importorskip("syrupy")
    pytester.makepyfile(test_snap="def test_one(snapshot): assert 1 == snapshot")
    pytester.runpytest_subprocess("--mountns", "--snapshot-update").assert_outcomes(passed=1)
    before = _snapshots(pytester)
    assert before
    pytester.makepyfile(test_snap="import os\ndef test_one(snapshot): os.abort()")
    options = ("--mountns", "--mountns-process=fork", "--snapshot-update")
    result = pytester.runpytest_subprocess(*options)
    result.assert_outcomes(failed=1)
    assert _snapshots(pytester) == before


@pytest.mark.parametrize("process", ["fork"])
def test_state_that_cannot_be_pickled_is_said(pytester: pytest.Pytester, record: Record) -> None:
    pytest.importorskip("pytest_benchmark")
    pytester.makepyfile(
        """
        def test_it(benchmark):
            benchmark.extra_info["odd"] = lambda: 1
            benchmark.pedantic(sum, args=([1],), rounds=1)
        """
    )
    recorded = record("--mountns", "-Werror")
    assert recorded.status == 0, recorded.out
    (warning,) = recorded.warnings
    assert "pytest-benchmark" in warning.message
    assert "test_it" in warning.nodeid


def test_the_cache_is_a_way_through(pytester: pytest.Pytester, record: Record) -> None:
    """Also where the cache did not exist yet, with the files that pytest puts into it."""
    pytester.makeini("[pytest]\ncache_dir = the-cache")
    pytester.makepyfile(
        """
        def test_set(request, cache):
            cache.set("own/key", {"a": [1]})
            (cache.mkdir("own-directory") / "file").write_text("content")
        def test_get(cache):
            assert cache.get("own/key", None) == {"a": [1]}
            assert (cache.mkdir("own-directory") / "file").read_text() == "content"
        def test_fails(): assert 0
        """
    )
    made = []
    for option in (PLAIN, ISOLATED):
        recorded = record(option)
        assert recorded.status == 1
        cache = pytester.path / "the-cache"
        made.append(
            {
                str(path.relative_to(cache)): path.read_text() if path.is_file() else None
                for path in cache.rglob("*")
            }
        )
        assert "1 failed" in record(option, "--lf").out
        if option == PLAIN:
            cache.rename(pytester.path / "the-cache-of-a-plain-run")
    assert made[0] == made[1]


def test_without_a_cache_there_is_none(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile("def test_it(): pass")
    assert record("--mountns", "-p", "no:cacheprovider").status == 0
    assert not (pytester.path / ".pytest_cache").exists()


def test_a_mark_may_cover_the_cache(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        f"""
        import os, pytest
        @pytest.mark.mountns(tmpfs=[{str(pytester.path / ".pytest_cache")!r}])
        def test_covered(): assert os.listdir(".pytest_cache") == []
        def test_not_covered(): assert "README.md" in os.listdir(".pytest_cache")
        """
    )
    assert record("--mountns").status == 0


def test_examples_of_hypothesis_survive(pytester: pytest.Pytester, record: Record) -> None:
    pytest.importorskip("hypothesis")
    pytester.makepyfile(
        """
        from hypothesis import given, settings, strategies as st

        @settings(max_examples=200)
        @given(st.integers())
        def test_it(number):
            with open("/tmp/mountns-seen-by-hypothesis", "a") as file:
                file.write(f"{number}\\n")
            print("SEEN", number)
            assert number < 1000
        """
    )
    assert record("--mountns").status == 1
    examples = pytester.path / ".hypothesis"
    assert (examples / "examples").is_dir()
    out = record("--mountns", "-p", "no:randomly").out
    # The second run begins with the smallest failing example that the first has found.
    first = out.partition("SEEN ")[2].splitlines()[0]
    assert int(first) == 1000
    assert not Path("/tmp/mountns-seen-by-hypothesis").exists()


def test_no_examples_no_directory(pytester: pytest.Pytester, record: Record) -> None:
    pytest.importorskip("hypothesis")
    pytester.makepyfile(
        """
        from hypothesis import given, settings, strategies as st
        def test_plain(): pass
        @settings(max_examples=3, database=None)
        @given(st.booleans())
        def test_drawing(value): pass
        """
    )
    plain, isolated = (
        (record(option).status, sorted(path.name for path in pytester.path.glob(".hypo*/*")))
        for option in (PLAIN, ISOLATED)
    )
    assert plain == isolated
