"""Clocks that run while a test is set up go on in its process."""

from __future__ import annotations

import pytest

from tests.helpers.recording import Record

pytestmark = pytest.mark.sandboxes


@pytest.mark.parametrize("method", ["signal", "thread"])
def test_timeout_ends_the_test_and_not_the_session(
    pytester: pytest.Pytester, record: Record, method: str
) -> None:
    pytest.importorskip("pytest_timeout")
    pytester.makepyfile(
        """
        import pytest, time

        def the_line_that_waits(): time.sleep(60)

        # What a session does once can take longer than the others have.
        def test_first(overlay_root): pass

        @pytest.mark.timeout(2)
        def test_slow(overlay_root): the_line_that_waits()

        @pytest.mark.timeout(1, func_only=True)
        def test_slow_function(overlay_root): the_line_that_waits()

        @pytest.mark.timeout(60)
        def test_next(overlay_root): pass
        """
    )
    recorded = record(f"--timeout-method={method}")
    assert recorded.outcomes["test_slow", "call"] == "failed"
    assert recorded.outcomes["test_slow_function", "call"] == "failed"
    assert recorded.outcomes["test_next", "call"] == "passed"
    said = recorded.out + recorded.err
    assert said.count("def the_line_that_waits(): time.sleep(60)") >= 2, said


def test_a_timeout_counts_from_the_begin_of_the_test(
    pytester: pytest.Pytester, record: Record
) -> None:
    """Setting up a wider fixture takes from it."""
    pytest.importorskip("pytest_timeout")
    pytester.makepyfile(
        """
        import pytest, threading, time

        @pytest.fixture(scope="module")
        def slow(): time.sleep(1)

        @pytest.mark.timeout(60, method="thread")
        def test_it(slow, overlay_root):
            (timer,) = [t for t in threading.enumerate() if isinstance(t, threading.Timer)]
            assert 40 < timer.interval < 59.1
        """
    )
    assert record().status == 0


def test_the_timer_of_a_wider_fixture(pytester: pytest.Pytester, record: Record) -> None:
    """Waited for in pytest's process, where the timer is until there is a test process."""
    pytest.importorskip("pytest_timeout")
    pytester.makepyfile(
        """
        import pytest, time

        @pytest.fixture(scope="module")
        def slow(): time.sleep(60)

        @pytest.mark.timeout(1)
        def test_it(slow, overlay_root): pass
        """
    )
    recorded = record("--timeout-method=signal")
    assert "Timeout" in recorded.out
    assert recorded.status == 1


@pytest.mark.parametrize("method", ["signal", "thread"])
def test_a_timeout_ends_the_teardown_of_a_wider_fixture(
    pytester: pytest.Pytester, method: str
) -> None:
    """With the thread's method that is the end of pytest, as without the plugin."""
    pytest.importorskip("pytest_timeout")
    pytester.makepyfile(
        """
        import pytest, threading

        @pytest.fixture(scope="module")
        def stuck():
            yield
            threading.Event().wait()

        def test_first(): pass

        @pytest.mark.timeout(2)
        def test_it(stuck): pass
        """
    )
    result = pytester.runpytest_subprocess(
        "--mountns", "--mountns-process=fork", f"--timeout-method={method}", timeout=60
    )
    said = result.stdout.str() + result.stderr.str()
    assert "threading.Event().wait()" in said
    assert "Timeout" in said
    assert result.ret == 1
    if method == "signal":
        result.assert_outcomes(passed=2, errors=1)


@pytest.mark.parametrize("method", ["signal", "thread"])
@pytest.mark.parametrize("process", ["fork", "module"])
def test_timers_in_the_teardown_of_wider_fixtures(
    pytester: pytest.Pytester, record: Record, method: str
) -> None:
    """They run as without the plugin: pytest-timeout cancels its own when a test has failed."""
    pytest.importorskip("pytest_timeout")
    pytester.makepyfile(
        conftest="",
        seen="""
        import pytest, signal, threading

        @pytest.fixture(scope="package")
        def wider(request):
            yield
            timers = [signal.getitimer(signal.ITIMER_REAL)[0]]
            timers += [one.interval for one in threading.enumerate()
                       if isinstance(one, threading.Timer)]
            with open("log", "a") as file:
                print(request.node.name, [round(one / 1000) for one in timers], file=file)
        """,
    )
    tests = {
        "fails": "def test_it(wider): assert 0",
        "function_only": (
            "import pytest\n@pytest.mark.timeout(5000, func_only=True)\ndef test_it(wider): pass"
        ),
        "passes": "def test_it(wider): pass",
        "two": "def test_one(wider): pass\ndef test_two(wider): pass",
    }
    for name, test in tests.items():
        package = pytester.mkpydir(name)
        (package / "conftest.py").write_text("from seen import wider")
        (package / f"test_{name}.py").write_text(test)
    logs = []
    for arguments in ["-pno:mountns"], ["--mountns"]:
        record(*arguments, "--timeout=5000", f"--timeout-method={method}")
        logs.append((pytester.path / "log").read_text().splitlines())
        (pytester.path / "log").unlink()
    assert logs[0] == logs[1]
    timers = [5] if method == "signal" else [0, 5]
    assert logs[0] == ["fails [0]", "function_only [0]", f"passes {timers}", f"two {timers}"]


def test_faulthandler_timeout(pytester: pytest.Pytester, record: Record) -> None:
    """The traceback is that of the test, and the next test has a watchdog of its own."""
    pytester.makeini("[pytest]\nfaulthandler_timeout = 2")
    pytester.makepyfile(
        """
        import time
        # What a session does once can take longer than the watchdog waits.
        def test_first(overlay_root): pass
        def test_one(overlay_root): wait_here()
        def test_two(overlay_root): wait_here()
        def test_three(overlay_root): pass
        def wait_here(): time.sleep(4)
        """
    )
    recorded = record()
    assert recorded.status == 0
    assert recorded.err.count("in wait_here") == 2
    assert "in test_one" in recorded.err
    until_the_test = recorded.err.partition("in test_one")[0].rpartition("Timeout (")[2]
    assert "pytest_mountns" not in until_the_test


@pytest.mark.parametrize("process", ["fork", "module"])
def test_faulthandler_timeout_in_the_teardown_of_a_wider_fixture(
    pytester: pytest.Pytester, record: Record
) -> None:
    pytester.makeini("[pytest]\nfaulthandler_timeout = 2")
    pytester.makepyfile(
        """
        import pytest, time

        @pytest.fixture(scope="session")
        def slow():
            yield
            wait_here()

        def test_one(slow): pass
        def test_two(slow): pass
        def wait_here(): time.sleep(4)
        """
    )
    recorded = record("--mountns")
    assert recorded.status == 0
    assert recorded.err.count("in wait_here") == 1


def test_thread_pools_of_wider_fixtures_work_in_tests(
    pytester: pytest.Pytester, record: Record
) -> None:
    """Their threads have stayed behind; the pool starts new ones and does not wait for those."""
    pytester.makepyfile(
        """
        import asyncio, pytest
        from concurrent.futures import ThreadPoolExecutor

        @pytest.fixture(scope="module")
        def loop():
            loop = asyncio.new_event_loop()
            assert loop.run_until_complete(loop.run_in_executor(None, sum, [1, 2])) == 3
            yield loop
            assert loop.run_until_complete(loop.run_in_executor(None, sum, [1, 2])) == 3
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

        @pytest.fixture(scope="module")
        def pool():
            with ThreadPoolExecutor(2) as pool:
                assert list(pool.map(abs, [1, -2, 3])) == [1, 2, 3]
                yield pool

        @pytest.mark.parametrize("number", [1, 2])
        def test_it(loop, pool, number, overlay_root):
            for _ in range(3):
                assert loop.run_until_complete(loop.run_in_executor(None, sum, [1, 2])) == 3
                assert list(pool.map(abs, [1, -2, 3])) == [1, 2, 3]
        """
    )
    assert record().status == 0


def test_garbage_collection_sees_what_a_plain_run_sees(
    pytester: pytest.Pytester, record: Record
) -> None:
    pytester.makepyfile(
        """
        import gc

        class Marker: pass

        marker = Marker()
        holder = [marker]

        # Python 3.12 has some of its own, and unfreeze() would let go of those, too.
        frozen = gc.get_freeze_count()

        def test_one(overlay_root):
            assert holder in gc.get_referrers(marker)
            assert any(thing is holder for thing in gc.get_objects())
            assert gc.get_freeze_count() == frozen
        """
    )
    assert record().status == 0
