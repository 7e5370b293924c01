"""Other plugins, above all those that run the protocol of a test themselves."""

from __future__ import annotations

import re

import pytest

from tests.helpers.recording import TEXTS, Record

pytestmark = pytest.mark.sandboxes


@pytest.fixture(params=["fork", "module", "inline"])
def process(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_rerunfailures_gives_each_attempt_a_fresh_root(
    pytester: pytest.Pytester, record: Record
) -> None:
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(
        """
        import os, pytest
        from pathlib import Path

        @pytest.mark.flaky(reruns=2)
        def test_passes_at_last(request, overlay_root):
            assert overlay_root.changes() == {}
            (Path.home() / "of an attempt").write_text("x")
            assert request.node.execution_count == 3

        @pytest.mark.flaky(reruns=1)
        def test_never_passes(overlay_root):
            assert overlay_root.changes() == {}
            (Path.home() / "of an attempt").write_text("x")
            assert 0

        def test_other(overlay_root): pass
        """
    )
    recorded = record()
    assert "1 failed, 2 passed, 3 rerun" in recorded.out


def test_rerunfailures_reports_what_it_does_plainly(
    pytester: pytest.Pytester, record: Record
) -> None:
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.flaky(reruns=2)
        def test_one(request): assert request.node.execution_count == 2
        @pytest.mark.flaky(reruns=1)
        def test_two(): assert 0
        @pytest.fixture(scope="module")
        def wide(): raise ValueError
        @pytest.mark.flaky(reruns=1)
        def test_three(wide): pass
        """
    )
    runs = [record(option) for option in ("-pno:mountns", "--mountns")]
    plain, isolated = (run.without(*TEXTS) for run in runs)
    assert isolated == plain
    assert runs[0].status == runs[1].status


@pytest.mark.skipif(pytest.version_tuple < (9,), reason="subtests came with pytest 9")
def test_subtests_of_an_attempt_that_is_repeated(pytester: pytest.Pytester, record: Record) -> None:
    """Their subtests do not count: newer releases of pytest-rerunfailures withdraw them."""
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.flaky(reruns=2)
        def test_passes_at_last(subtests, request):
            for number in range(3):
                with subtests.test(number=number):
                    assert number != 1 or request.node.execution_count == 3

        @pytest.mark.flaky(reruns=1)
        def test_never_passes(subtests):
            with subtests.test("one"): assert 0
            with subtests.test("two"): pass
        """
    )
    plain, isolated = (record(option) for option in ("-pno:mountns", "--mountns"))
    assert isolated.without(*TEXTS) == plain.without(*TEXTS)
    assert isolated.status == plain.status
    counts = [re.sub("in .*", "", run.out.splitlines()[-1]) for run in (plain, isolated)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("xdist", ["-pxdist", "-pno:xdist"])
def test_reruns_of_the_whole_suite_are_counted(
    pytester: pytest.Pytester, record: Record, process: str, xdist: str
) -> None:
    """With pytest-xdist, its workers ask the process that counts; without workers none is asked."""
    rerunfailures = pytest.importorskip("pytest_rerunfailures")
    if not hasattr(rerunfailures.StatusDB, "try_increment_suite_reruns"):
        pytest.skip("this release has no --max-suite-reruns")
    if xdist == "-pxdist":
        pytest.importorskip("xdist")
    for module in ("one", "two"):
        pytester.makepyfile(
            **{
                f"test_{module}": """
                import pytest

                @pytest.mark.parametrize("number", range(2))
                def test_passes_at_last(request, number):
                    assert request.node.execution_count == 2

                @pytest.mark.mountns(hostname="box")
                def test_has_its_own_process(request):
                    assert request.node.execution_count == 2

                def test_passes(): pass
                """
            }
        )
    options = ("--reruns=1", "--max-suite-reruns=4", xdist)
    plain = record("-pno:mountns", "-Wignore", *options)
    isolated = record("--mountns", f"--mountns-process={process}", *options)
    assert plain.status == isolated.status == 1
    assert isolated.without(*TEXTS) == plain.without(*TEXTS)
    assert [one.outcome for one in plain.reports].count("rerun") == 4


def test_wider_fixtures_of_repeated_tests_end_where_they_began(
    pytester: pytest.Pytester, record: Record, process: str
) -> None:
    """An attempt that a wider fixture fails ends before there is a test process."""
    pytest.importorskip("pytest_rerunfailures")
    pytester.makeconftest(
        """
        import os, pytest
        from pathlib import Path

        ENDED = Path(__file__).with_name("ended")

        @pytest.fixture(scope="session")
        def server():
            alive = []
            yield alive
            with ENDED.open("a") as file:
                file.write("server\\n")
            alive.append("has ended")
        """
    )
    body = """
        import pytest
        from conftest import ENDED
        ATTEMPTS = []

        @pytest.fixture(scope=SCOPE)
        def before(): yield

        @pytest.fixture(scope=SCOPE)
        def login(before):
            ATTEMPTS.append(1)
            if len(ATTEMPTS) == 1: raise ValueError
            yield
            with ENDED.open("a") as file:
                file.write(f"{__name__}\\n")

        def test_one(server): assert not server
        def test_two(server, login): assert not server
        def test_three(server): assert not server
        """
    pytester.makepyfile(
        test_a=body.replace("SCOPE", "'module'"),
        test_b=body.replace("SCOPE", "'session'"),
        test_c="def test_last(server): assert not server",
    )
    ended = pytester.path / "ended"
    for option in ("-pno:mountns", "--mountns"):
        recorded = record(option, "--reruns=1")
        assert recorded.status == 0, recorded.out
        assert [one.outcome for one in recorded.reports].count("rerun") == 2
        assert ended.read_text().split() == ["test_a", "test_b", "server"]
        ended.unlink()


@pytest.mark.layered
def test_captured_fixtures_of_repeated_tests_end_in_their_sandbox(
    pytester: pytest.Pytester, record: Record, process: str
) -> None:
    pytest.importorskip("pytest_rerunfailures")
    body = """
        import os, pytest
        from pathlib import Path

        HOME = os.readlink("/proc/self/ns/mnt")
        TREE = Path(__file__).with_name("tree")
        ATTEMPTS = []
        pytestmark = pytest.mark.mountns(scope="module")

        def isolated(): return os.readlink("/proc/thread-self/ns/mnt") != HOME

        def attempt():
            ATTEMPTS.append(1)
            if len(ATTEMPTS) == 1: raise ValueError

        @pytest.fixture(scope="session")
        def wider():
            if WHERE == "wider": attempt()

        @pytest.fixture(scope="module")
        def narrower(wider):
            if WHERE == "narrower": attempt()
            yield
            assert isolated()
            (TREE / "file").unlink()
            TREE.rmdir()

        def test_it(narrower): assert isolated()
        def test_other(narrower): assert isolated()
        """
    for where in ("wider", "narrower"):
        pytester.makepyfile(**{f"test_{where}": body.replace("WHERE ==", f"{where!r} ==")})
    tree = pytester.path / "tree"
    tree.mkdir()
    (tree / "file").touch()
    recorded = record("--mountns", "--reruns=1", "-pno:xdist")
    assert (tree / "file").exists()
    assert recorded.status == 0, recorded.out
    assert [one.outcome for one in recorded.reports].count("rerun") == 2


@pytest.mark.parametrize("dist", ["load", "loadscope", "worksteal"])
def test_xdist(pytester: pytest.Pytester, record: Record, dist: str) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile(
        """
        import os, pytest, warnings
        def place(): return os.readlink("/proc/thread-self/ns/mnt")
        HOME = place()

        @pytest.fixture(scope="module")
        def wide(): return place()

        @pytest.mark.parametrize("number", range(20))
        def test_it(number, wide):
            assert place() != HOME == wide
            warnings.warn(f"number {number}")
            assert number != 7
            if number == 8: pytest.skip("eight")
        """
    )
    recorded = record("--mountns", "-n2", f"--dist={dist}", "-Wdefault")
    assert recorded.status == 1
    outcomes = [report.outcome for report in recorded.reports if report.when == "call"]
    assert sorted(outcomes) == ["failed"] + ["passed"] * 18 + ["skipped"]
    assert len(recorded.warnings) == 20


def test_hypothesis(pytester: pytest.Pytester, record: Record) -> None:
    pytest.importorskip("hypothesis")
    pytester.makepyfile(
        """
        from hypothesis import HealthCheck, given, settings, strategies as st

        @settings(max_examples=10, database=None, derandomize=True)
        @given(st.integers())
        def test_one(number): assert isinstance(number, int)

        @settings(max_examples=10, database=None, derandomize=True)
        @given(st.integers())
        def test_two(number): assert number < 5
        """
    )
    runs = [record(option) for option in ("-pno:mountns", "--mountns")]
    plain, isolated = (run.without(*TEXTS) for run in runs)
    assert isolated == plain


@pytest.mark.no_mountns(reason="nests as deep as it goes")
def test_pytester_in_a_sandbox(pytester: pytest.Pytester, record: Record) -> None:
    """A suite that runs pytest with this plugin itself. A third level says why it is impossible."""
    pytester.makeconftest("pytest_plugins = ['pytester']")
    pytester.makepyfile(
        """
        DEEP = "def test_deep(overlay_root): pass"
        NESTED = (
            "pytest_plugins = ['pytester']\\n"
            "def test_inner(overlay_root, pytester):\\n"
            f"    pytester.makepyfile({DEEP!r})\\n"
            "    result = pytester.runpytest_subprocess('-rs', '-vv')\\n"
            "    outcomes = result.parseoutcomes()\\n"
            "    assert set(outcomes) <= {'passed', 'skipped'}, result.outlines\\n"
            "    if 'skipped' in outcomes:\\n"
            "        assert 'nest' in result.stdout.str()\\n"
        )

        def test_outer(overlay_root, pytester):
            pytester.makepyfile(NESTED)
            pytester.runpytest_subprocess("-vv").assert_outcomes(passed=1)
        """
    )
    recorded = record()
    assert recorded.status == 0, recorded.out


def test_a_suite_that_forbids_sockets(pytester: pytest.Pytester, record: Record) -> None:
    """pytest-socket replaces the class in its module before a test is set up."""
    pytester.makeconftest(
        """
        import socket, pytest

        class Guarded(socket.socket):
            def __new__(cls, *arguments, **keywords):
                raise RuntimeError("no sockets here")

        @pytest.fixture(autouse=True, scope="session")
        def forbidden():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(socket, "socket", Guarded)
                yield
        """
    )
    pytester.makepyfile(
        """
        import socket, pytest
        def test_it():
            with pytest.raises(RuntimeError): socket.socket()
        """
    )
    assert record("--mountns").status == 0
