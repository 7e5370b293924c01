"""pytest-mountns replay: a test is run again from its bundle."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.kept import bundles, command, document

pytestmark = pytest.mark.sandboxes


@pytest.fixture(params=["fork", "inline"])
def process(request: pytest.FixtureRequest) -> str:
    way: str = request.param
    return way


def keep(pytester: pytest.Pytester, *arguments: str) -> Path:
    """Run the suite, and return the one bundle that is saved of it."""
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "--mountns-keep=failed", *arguments)
    (bundle,) = bundles(pytester.path / ".mountns")
    return bundle


def edit(bundle: Path, **fields: object) -> None:
    about = {**document(bundle), **fields}
    (bundle / "repro.json").write_text(json.dumps(about))


def test_the_same_again(pytester: pytest.Pytester, process: str) -> None:
    pytester.makepyfile(
        """
        import os, random, pytest

        FILE = os.path.dirname(__file__) + "/data"
        random.random()

        @pytest.fixture(scope="module")
        def wide():
            return random.random()

        def test_before(overlay_root): random.random()

        def test_it(overlay_root, wide):
            with open(FILE, "a") as file:
                file.write("once")
            assert 0, (random.getrandbits(64), os.environ["COLOUR"], os.getcwd(), open(FILE).read())

        def test_after(overlay_root): pass
        """
    )
    (pytester.path / "below").mkdir()
    os.chdir(pytester.path / "below")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLOUR", "green")
        bundle = keep(pytester, "..", f"--mountns-process={process}", "-v")
    before = re.search(r"AssertionError: (\(.*\))", (bundle / "report.txt").read_text())
    assert before is not None
    os.chdir("/")
    shown = command("replay", str(bundle))
    assert shown.returncode == 1
    assert "1 failed in" in shown.stdout
    assert before[1] in shown.stdout
    assert f"{pytester.path}/below" in before[1]
    assert "'once'" in before[1]
    assert shown.stderr.splitlines()[0].startswith(
        "replay: test_the_same_again.py::test_it (failed "
    )
    # The bundle is as it was, and nothing was added to it.
    assert bundles(pytester.path / ".mountns") == [bundle]
    assert not (pytester.path / "data").exists()


def test_one_that_passes_now(pytester: pytest.Pytester) -> None:
    path = pytester.makepyfile("def test_it(overlay_root): assert 0")
    bundle = keep(pytester)
    path.write_text("def test_it(overlay_root): pass")
    shown = command("replay", str(bundle))
    assert (shown.returncode, "1 passed" in shown.stdout) == (0, True)
    path.write_text("")
    assert command("replay", str(bundle)).returncode == pytest.ExitCode.USAGE_ERROR


def test_hypothesis(pytester: pytest.Pytester, process: str) -> None:
    pytest.importorskip("hypothesis")
    pytester.makepyfile(
        """
        import pytest
        from hypothesis import HealthCheck, Phase, given, settings, strategies as st

        # None of what looks at the time, and nothing that Hypothesis takes from constants in the
        # modules that are loaded: a replay loads some more of the plugin's, which count as the
        # project's own where the plugin is installed in editable mode.
        @pytest.mark.mountns
        @settings(
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(st.booleans(), min_size=64, max_size=64))
        def test_it(bits):
            number = sum(bit << place for place, bit in enumerate(bits))
            print(number)
            assert number < 1000
        """
    )
    bundle = keep(pytester, f"--mountns-process={process}")
    drawn = re.findall(r"^\d+$", (bundle / "report.txt").read_text(), re.M)
    shown = command("replay", str(bundle))
    assert shown.returncode == 1
    assert len(drawn) > 2
    assert re.findall(r"^\d+$", shown.stdout, re.M) == drawn


def test_the_seed_of_randomly(pytester: pytest.Pytester) -> None:
    # The option as pytest-randomly has it. The plugin itself is not needed here.
    pytester.makeconftest(
        """
        def pytest_addoption(parser):
            parser.addoption("--seed", dest="randomly_seed", type=int, default=1234)
        """
    )
    pytester.makepyfile(
        """
        def test_it(overlay_root, request):
            assert 0, f"seed {request.config.option.randomly_seed}"
        """
    )
    bundle = keep(pytester)
    seeds = document(bundle)["seeds"]
    assert seeds["randomly"] == 1234
    edit(bundle, seeds={**seeds, "randomly": 77})
    assert "seed 77" in command("replay", str(bundle)).stdout


def test_the_spec_of_then(pytester: pytest.Pytester) -> None:
    text = """
        import os, pytest

        @pytest.mark.mountns({})
        def test_it():
            assert not os.path.ismount("/srv")
        """
    pytester.makepyfile(
        text.format("tmpfs=['/srv:mode=700'], size='9m', pid=True, writes=['/tmp']")
    )
    bundle = keep(pytester)
    pytester.makepyfile(text.format(""))
    shown = command("replay", str(bundle))
    assert (shown.returncode, "1 failed" in shown.stdout) == (1, True)


def test_options_of_the_run(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile(
        """
        import os

        def test_it(overlay_root, worker_id):
            assert 0, (worker_id, "PYTEST_XDIST_WORKER" in os.environ)

        def test_other(overlay_root): pass
        """
    )
    bundle = keep(pytester, "-n2", "-k", "it or other", "--junit-xml=out.xml", "-rA", "--tb=line")
    (pytester.path / "out.xml").write_text("of then")
    shown = command("replay", str(bundle))
    assert "('master', False)" in shown.stdout
    assert "1 failed in" in shown.stdout
    assert (pytester.path / "out.xml").read_text() == "of then"


@pytest.mark.parametrize("module", [True, False])
def test_how_python_was_started(pytester: pytest.Pytester, module: bool) -> None:
    # It is in sys.path by PYTHONPATH, and once more by "-m".
    times = 2 if module else 1
    pytester.makepyfile(
        """
        import sys

        def test_it(overlay_root):
            assert 0, (sys.flags.dev_mode, sys.path.count(FIRST))
        """.replace("FIRST", repr(str(pytester.path)))
    )
    pytester.makeini("[pytest]\naddopts = --import-mode=importlib")
    script = Path(sys.executable).with_name("pytest")
    how = ["-m", "pytest"] if module else [str(script)]
    if not module and not script.exists():
        pytest.skip("the command pytest is not installed")
    pytester.run(sys.executable, "-X", "dev", *how, "--mountns-keep=failed")
    (bundle,) = bundles(pytester.path / ".mountns")
    assert f"(True, {times})" in (bundle / "report.txt").read_text()
    assert f"(True, {times})" in command("replay", str(bundle)).stdout


def test_what_differs(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(overlay_root): assert 0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("API_TOKEN", "hidden")
        patch.setenv("OTHER_TOKEN", "hidden")
        bundle = keep(pytester)
    assert "  " not in command("replay", str(bundle), API_TOKEN="x", OTHER_TOKEN="x").stderr
    about = document(bundle)
    packages = {**about["packages"], "pytest": "1.2.3", "vanished": "4"}
    edit(
        bundle,
        kernel="2.4",
        system="Plan 9",
        python={**about["python"], "version": "1.5"},
        packages=packages,
    )
    lines = command("replay", str(bundle), API_TOKEN="x").stderr.splitlines()[1:]
    now = about["python"]["version"]
    assert lines == [
        f"  system: Plan 9 in the bundle, {about['system']} here",
        f"  kernel: 2.4 in the bundle, {about['kernel']} here",
        f"  Python version: 1.5 in the bundle, {now} here",
        f"  package pytest: 1.2.3 in the bundle, {pytest.__version__} here",
        "  package vanished: 4 in the bundle, none here",
        "  not in the bundle, and not set here: OTHER_TOKEN",
    ]


def test_secrets_of_now(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        'import os\ndef test_it(overlay_root): assert os.environ.get("API_TOKEN") == "right"'
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("API_TOKEN", "wrong")
        bundle = keep(pytester)
    assert command("replay", str(bundle), API_TOKEN="right").returncode == 0


@pytest.mark.layered
def test_from_the_end(pytester: pytest.Pytester, process: str) -> None:
    pytester.makepyfile(
        """
        import os, pytest, shutil

        HERE = os.path.dirname(__file__)

        @pytest.mark.mountns(pid=PID)
        def test_it(overlay_root):
            with open(HERE + "/log", "a") as file:
                file.write("x")
            if os.path.exists(HERE + "/gone"):
                os.remove(HERE + "/gone")
                # An ordinary user's overlay renames no directory.
                shutil.move(HERE + "/old", HERE + "/new")
                os.makedirs(HERE + "/tree/deep")
            found = open(HERE + "/log").read(), sorted(os.listdir(HERE + "/new"))
            kinds = overlay_root.changes(HERE + "/log").as_dict().values()
            assert 0, (*found, *kinds, os.path.exists(HERE + "/old"))
        """.replace("PID", str(process == "fork"))
    )
    (pytester.path / "gone").write_text("")
    (pytester.path / "old").mkdir()
    (pytester.path / "old/file").write_text("")
    bundle = keep(pytester, f"--mountns-process={process}")
    assert "('x', ['file'], 'added', False)" in (bundle / "report.txt").read_text()
    assert "('x', ['file'], 'added', False)" in command("replay", str(bundle)).stdout
    shown = command("replay", "--from-end", str(bundle))
    assert shown.returncode == 1
    # Its changes are relative to the state that it has begun with.
    assert "('xx', ['file'], 'modified', False)" in shown.stdout
    assert "FileNotFoundError" not in shown.stdout
    assert sorted(os.listdir(pytester.path / "old")) == ["file"]


def test_in_another_root(pytester: pytest.Pytester) -> None:
    path = pytester.makepyfile(
        """
        import os

        def test_it(overlay_root):
            assert not os.path.exists("/bin/sh")
        """
    )
    bundle = keep(pytester)
    shown = command("replay", "--root=minimal", str(bundle))
    assert (shown.returncode, "1 passed" in shown.stdout) == (0, True)
    assert command("replay", str(bundle)).returncode == 1
    missing = command("replay", "--root=nowhere", str(bundle), cwd=path.parent)
    assert missing.returncode != 0
    assert f"{path.parent}/nowhere" in missing.stdout


def test_no_layer_to_begin_on(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(overlay_root): assert 0")
    bundle = keep(pytester)
    edit(bundle, layers=[], notes=["it was too big"])
    shown = command("replay", "--from-end", str(bundle))
    assert (shown.returncode, shown.stdout) == (1, "")
    assert "it has none: it was too big" in shown.stderr


def test_a_directory_that_is_gone(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(overlay_root): assert 0")
    bundle = keep(pytester)
    edit(bundle, cwd="/nowhere/at/all")
    shown = command("replay", str(bundle))
    assert shown.returncode == 1
    assert "/nowhere/at/all is not there" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_machine_that_cannot_isolate(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(overlay_root): assert 0")
    bundle = keep(pytester)
    pytester.makeconftest(
        """
        from pytest_mountns.engine.planning import planner
        from pytest_mountns.engine.probe.features import ProbeResult

        planner.probe = lambda places: ProbeResult((), None)
        """
    )
    shown = command("replay", str(bundle))
    # Not skipped, as it might be in a run of the suite.
    assert (shown.returncode, "cannot isolate tests" in shown.stdout) == (1, True)


# It fails in a sandbox, so that a bundle is saved of it, and passes on the host.
WRITES = """
import os, pytest

HERE = os.path.dirname(__file__)

{mark}
def test_it({parameters}):
    with open(HERE + "/log", "a") as file:
        file.write("x")
    found = open(HERE + "/log").read()
    assert os.readlink("/proc/thread-self/ns/mnt") == {host!r}, f"isolated, {{found}} in the log"
"""


def writes(mark: str = "", parameters: str = "") -> str:
    """A module whose test writes a file beside itself, and says whether it is isolated."""
    host = os.readlink("/proc/thread-self/ns/mnt")
    return WRITES.format(mark=mark, parameters=parameters, host=host)


MARK = "@pytest.mark.mountns"


@pytest.mark.parametrize(
    ("mark", "option", "later", "addopts"),
    [
        pytest.param("", "--mountns-audit", "", "", id="audit"),
        pytest.param("", "--mountns", "@pytest.mark.no_mountns", "", id="excepted since"),
        pytest.param(MARK, "--mountns-process=fork", "", "", id="not marked any more"),
        pytest.param(MARK, "--mountns-process=inline", "", "", id="nor this inline one"),
        pytest.param(MARK, "-v", MARK, "--no-mountns", id="switched off since"),
    ],
)
def test_it_is_isolated_as_it_was(
    pytester: pytest.Pytester, mark: str, option: str, later: str, addopts: str
) -> None:
    path = pytester.makepyfile(writes(mark))
    bundle = keep(pytester, option)
    path.write_text(writes(later))
    pytester.makeini(f"[pytest]\naddopts = {addopts}")
    shown = command("replay", str(bundle))
    assert (shown.returncode, "isolated, x in the log" in shown.stdout) == (1, True)
    assert not (pytester.path / "log").exists()


@pytest.mark.layered
def test_from_the_end_of_an_audited_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(writes())
    bundle = keep(pytester, "--mountns-audit")
    shown = command("replay", "--from-end", str(bundle))
    assert (shown.returncode, "isolated, xx in the log" in shown.stdout) == (1, True)
    assert not (pytester.path / "log").exists()


def test_another_test_of_that_name_is_not_run(pytester: pytest.Pytester) -> None:
    path = pytester.makepyfile(writes(MARK))
    bundle = keep(pytester)
    path.write_text(writes("@pytest.mark.parametrize('number', [1, 2])", "number"))
    shown = command("replay", str(bundle))
    assert shown.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"{path.name}::test_it is not there any more" in shown.stderr
    assert f"{path.name}::test_it[1]" in shown.stderr
    assert not (pytester.path / "log").exists()


@pytest.mark.parametrize(
    "hook",
    [
        """
        def pytest_collection_finish(session):
            session.items[0].add_marker("no_mountns", append=False)
        """,
        """
        import dataclasses, pytest

        @pytest.hookimpl(wrapper=True)
        def pytest_mountns_spec(spec):
            yield
            return dataclasses.replace(spec, read_only=True)
        """,
    ],
    ids=["no sandbox", "another sandbox"],
)
def test_it_is_not_run_in_another_way(pytester: pytest.Pytester, hook: str) -> None:
    pytester.makepyfile(writes())
    bundle = keep(pytester, "--mountns")
    pytester.makeconftest(hook)
    shown = command("replay", str(bundle))
    assert shown.returncode == pytest.ExitCode.USAGE_ERROR
    assert "would not run in the sandbox that the bundle describes" in shown.stderr
    assert not (pytester.path / "log").exists()


def flat(pytester: pytest.Pytester) -> Path:
    """A project whose tests import a module from the working directory, its only place."""
    # Not the directory of pytester itself, which is in PYTHONPATH.
    project = pytester.mkdir("project")
    (project / "pytest.ini").write_text("[pytest]")
    (project / "product.py").write_text("VALUE = 'of the product'")
    (project / "tests").mkdir()
    (project / "tests/test_it.py").write_text(
        "import product\n\ndef test_it(): assert 0, product.VALUE\n"
    )
    return project


def run_in(project: Path, *arguments: str) -> Path:
    """Run Python in the project, and return the one bundle that is saved."""
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    (bundle,) = bundles(project / ".mountns")
    return bundle


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["one process", "workers"])
def test_how_the_run_was_started(pytester: pytest.Pytester, workers: list[str]) -> None:
    if workers:
        pytest.importorskip("xdist")
    given = [*workers, "--mountns", "--mountns-keep=failed", "-pno:cacheprovider"]
    how = ["-X", "dev", "-s", "-W", "default", "-m", "pytest"]
    bundle = run_in(flat(pytester), *how, *given)
    about = document(bundle)
    # Workers have the paths of the run, and none of its other options.
    expected = ["-s", "-m", "pytest"] if workers else how
    assert (about["interpreter"], about["argv"]) == (expected, given)
    shown = command("replay", str(bundle))
    assert (shown.returncode, "AssertionError: of the product" in shown.stdout) == (1, True)


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["one process", "workers"])
def test_arguments_that_a_program_has_given(pytester: pytest.Pytester, workers: list[str]) -> None:
    if workers:
        pytest.importorskip("xdist")
    project = flat(pytester)
    (project / "pytest.ini").write_text("[pytest]\npythonpath = .")
    given = [*workers, "--mountns", "--mountns-keep=failed", "-pno:cacheprovider", "tests"]
    (project / "run.py").write_text(f"import pytest, sys\nsys.exit(pytest.main({given!r}))")
    bundle = run_in(project, "run.py", "--of-the-program")
    assert document(bundle)["argv"] == given
    shown = command("replay", str(bundle))
    assert (shown.returncode, "AssertionError: of the product" in shown.stdout) == (1, True)
