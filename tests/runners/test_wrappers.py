"""Wrappers of other plugins around the protocol and phases of a forked test begin and end once."""

from __future__ import annotations

import textwrap

import pytest

from tests.helpers.recording import Record

pytestmark = [pytest.mark.sandboxes, pytest.mark.no_mountns]


@pytest.mark.parametrize("hookimpl", ["hookwrapper=True", "wrapper=True"])
def test_they_end_in_the_pytest_process(
    pytester: pytest.Pytester, record: Record, hookimpl: str
) -> None:
    pytester.makeconftest(
        f"""
        import os, pytest
        ends = []

        @pytest.hookimpl({hookimpl})
        def pytest_runtest_protocol(item):
            item.extra = {{}}
            result = yield
            ends.append((item.name, os.getpid(), sorted(item.extra)))
            del item.extra
            return result

        def pytest_runtest_call(item): item.extra["seen"] = 1

        def pytest_sessionfinish():
            expected = [(n, os.getpid(), ["seen"]) for n in ("test_a", "test_b")]
            print("\\nENDS", ends == expected, len(ends))
        """
    )
    pytester.makepyfile("def test_a(): pass\ndef test_b(): assert 0")
    recorded = record("--mountns", "-s")
    assert recorded.status == 1
    assert recorded.outcomes["test_a", "call"] == "passed"
    assert recorded.outcomes["test_b", "call"] == "failed"
    assert "ENDS True 2" in recorded.out


#: What it counts, it notes in its module, in an object of a class, of the item and of the config.
COUNTING = textwrap.dedent("""
    import collections, os, pytest

    counts = collections.Counter()
    ends = []

    class Measures:
        def __init__(self):
            self.durations = {{"setup": {{}}, "call": {{}}, "teardown": {{}}}}
            self.now = None
            self.total = 0.1

    def wrapped(phase, item):
        config = item.config
        item.began = phase
        config.phases = getattr(config, "phases", []) + [phase]
        measures.now = [phase]
        os.environ["PHASE_OF_A_WRAPPER"] = phase
        try:
            return (yield)
        finally:
            del os.environ["PHASE_OF_A_WRAPPER"]
            # What has no entry any more cannot be removed once more.
            del item.began
            measures.now.remove(phase)
            measures.durations[phase].setdefault(item.name, []).append(1)
            measures.total += 0.1
            counts[phase] += 1
            ends.append((item.name, phase))
            config.phases.append("end of " + phase)

    class Plugin:
        def __init__(self):
            self.measures = measures

        @pytest.hookimpl({hookimpl})
        def pytest_runtest_setup(self, item): return (yield from wrapped("setup", item))

        @pytest.hookimpl({hookimpl})
        def pytest_runtest_call(self, item): return (yield from wrapped("call", item))

        @pytest.hookimpl({hookimpl})
        def pytest_runtest_teardown(self, item): return (yield from wrapped("teardown", item))

    measures = Measures()

    def pytest_configure(config): config.pluginmanager.register(Plugin(), "counting")

    def pytest_sessionfinish(session):
        assert "PHASE_OF_A_WRAPPER" not in os.environ
        for one in (counts, ends, vars(measures), session.config.phases):
            print("\\nNOTED", one, end="")
        for item in session.items:
            print("\\nNOTED", hasattr(item, "began"), end="")
        print()
""")


@pytest.mark.parametrize("process", ["fork", "module"])
@pytest.mark.parametrize(
    "hookimpl", ["hookwrapper=True", "wrapper=True", "wrapper=True, tryfirst=True"]
)
def test_those_of_phases_count_once(
    pytester: pytest.Pytester, record: Record, hookimpl: str
) -> None:
    """The process that goes on from the middle of a setup ends its wrappers, and the other too."""
    pytester.makeconftest(COUNTING.format(hookimpl=hookimpl))
    pytester.makepyfile(
        """
        import pytest
        @pytest.fixture
        def broken(): raise ValueError
        @pytest.fixture(scope="module")
        def wide(): return 1
        def test_passes(wide): pass
        def test_fails(wide): assert 0
        def test_broken(broken): pass
        def test_skipped(): pytest.skip()
        """
    )
    plain, isolated = (record(option, "-s") for option in ("-pno:mountns", "--mountns"))
    noted = [
        [line for line in run.out.splitlines() if line.startswith("NOTED")]
        for run in (plain, isolated)
    ]
    assert len(noted[0]) == 8
    assert noted[1] == noted[0]
    assert isolated.outline == plain.outline


@pytest.mark.parametrize("process", ["fork", "module"])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param("yield\n    open('written').close()", id="looks for a file"),
        pytest.param("try: yield\n    except BaseException: pass", id="catches everything"),
    ],
)
@pytest.mark.parametrize("hookimpl", ["hookwrapper=True", "wrapper=True"])
def test_what_those_of_the_setup_make_of_the_fork(
    pytester: pytest.Pytester, record: Record, hookimpl: str, body: str
) -> None:
    """The pytest process has no file of the sandbox, and leaves the setup by an exception."""
    pytester.makeconftest(
        f"import pytest\n@pytest.hookimpl({hookimpl})\ndef pytest_runtest_setup():\n    {body}\n"
    )
    pytester.makepyfile(
        """
        import os, pytest
        @pytest.fixture(autouse=True)
        def written(overlay_root): open("written", "w").close()
        def test_a(): pass
        def test_b(): assert 0
        """
    )
    recorded = record("--mountns")
    found = [(each.name, each.when, each.outcome) for each in recorded.reports]
    assert found == [
        *(("test_a", when, "passed") for when in ("setup", "call", "teardown")),
        *(
            ("test_b", when, "failed" if when == "call" else "passed")
            for when in ("setup", "call", "teardown")
        ),
    ]
