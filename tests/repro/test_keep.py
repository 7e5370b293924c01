"""--mountns-keep: of which tests bundles are saved, and what is in them."""

from __future__ import annotations

import os
import signal
import stat
import sys
from pathlib import Path

import pytest

from tests.helpers.kept import bundles, document, members
from tests.helpers.recording import Record

pytestmark = pytest.mark.sandboxes

SUITE = """
import os, pytest

HERE = os.path.dirname(__file__)


@pytest.fixture
def left(overlay_root):
    with open(HERE + "/data", "a") as file:
        file.write("more\\n")
    os.mkdir(HERE + "/made")
    with open(HERE + "/made/file", "w") as file:
        file.write("content")
    os.remove(HERE + "/gone")
    yield
    with open(HERE + "/torn-down", "w"):
        pass


def test_fails(left):
    print("said")
    assert 0, "for a reason"


def test_passes(left):
    pass


def test_bare():
    assert 0
"""


@pytest.fixture(params=["fork", "module", "inline"])
def process(request: pytest.FixtureRequest) -> str:
    way: str = request.param
    return way


@pytest.fixture
def suite(pytester: pytest.Pytester) -> Path:
    pytester.makepyfile(test_it=SUITE)
    (pytester.path / "data").write_text("data\n")
    (pytester.path / "gone").write_text("gone\n")
    return pytester.path


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments)


@pytest.mark.parametrize(
    ("policy", "names"),
    [("none", []), ("failed", ["test_fails"]), ("all", ["test_fails", "test_passes"])],
)
def test_policy(
    suite: Path, pytester: pytest.Pytester, process: str, policy: str, names: list[str]
) -> None:
    result = run(pytester, f"--mountns-keep={policy}", f"--mountns-process={process}")
    result.assert_outcomes(passed=1, failed=2)
    kept = bundles(suite / ".mountns")
    assert [document(one)["name"] for one in kept] == [f"test_it.py::{name}" for name in names]
    if not kept:
        assert not (suite / ".mountns").exists()
        result.stdout.no_fnmatch_line("kept:*")
        return
    noun = "repro" if len(kept) == 1 else "repros"
    result.stdout.fnmatch_lines(
        [
            f"kept: {len(kept)} {noun} in .mountns",
            *(f"  pytest-mountns replay .mountns/{one.name}" for one in kept),
        ]
    )


def test_a_bundle(
    suite: Path, pytester: pytest.Pytester, process: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("API_TOKEN", "MySecret", "DB_PASSWORD", "SSH_KEY"):
        monkeypatch.setenv(name, "hidden-value")
    monkeypatch.setenv("PROXY_URL", "http://user:hidden-value@proxy/")
    monkeypatch.setenv("COLOUR", "green")
    run(pytester, "--mountns-keep=failed", "-q", f"--mountns-process={process}")
    (bundle,) = bundles(suite / ".mountns")
    assert stat.S_IMODE((suite / ".mountns").stat().st_mode) == 0o700
    assert "*" in (suite / ".mountns/.gitignore").read_text().splitlines()
    # The state when the test failed, before its fixture had ended.
    here = str(suite).strip("/")
    layer = members(bundle)
    assert layer[f"{here}/data"] == b"data\nmore\n"
    assert layer[f"{here}/made/file"] == b"content"
    assert layer[f"{here}/.wh.gone"] == b""
    assert f"{here}/torn-down" not in layer
    report = (bundle / "report.txt").read_text()
    for text in ("test_it.py::test_fails", "call: failed", "for a reason", "said\n"):
        assert text in report
    assert report.count("said\n") == 1
    changes = (bundle / "changes.txt").read_text()
    for text in (f"{suite}/\n", "modified    data", "+more", "deleted     gone"):
        assert text in changes
    about = document(bundle)
    assert about["outcome"] == "failed"
    assert about["cwd"] == about["root"] == str(suite)
    assert about["argv"][-3:] == ["--mountns-keep=failed", "-q", f"--mountns-process={process}"]
    assert about["spec"]["process"] == process
    assert about["environment"]["COLOUR"] == "green"
    assert {"API_TOKEN", "MySecret", "DB_PASSWORD", "SSH_KEY", "PROXY_URL"} <= {*about["left_out"]}
    assert about["python"]["version"] == ".".join(map(str, sys.version_info[:3]))
    assert about["packages"]["pytest"] == pytest.__version__
    assert about["kernel"] == os.uname().release
    assert any(line.startswith("overlay ") for line in about["plan"])
    assert about["notes"] == []
    for file in bundle.iterdir():
        assert b"hidden-value" not in file.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "ini", "place"),
    [
        (["--mountns-dir=elsewhere/deep"], "", "elsewhere/deep"),
        ([], "mountns_dir = from-ini", "from-ini"),
        (["--mountns-dir=option"], "mountns_dir = from-ini", "option"),
    ],
)
def test_where(
    suite: Path, pytester: pytest.Pytester, arguments: list[str], ini: str, place: str
) -> None:
    pytester.makeini(f"[pytest]\nmountns_keep = failed\n{ini}")
    result = run(pytester, *arguments)
    assert len(bundles(suite / place)) == 1
    assert not (suite / ".mountns").exists()
    result.stdout.fnmatch_lines([f"kept: 1 repro in {place}"])


def test_from_a_directory_below(suite: Path, pytester: pytest.Pytester) -> None:
    (suite / "below").mkdir()
    os.chdir(suite / "below")
    result = run(pytester, "--mountns-keep=failed", "..")
    assert len(bundles(suite / ".mountns")) == 1
    result.stdout.fnmatch_lines(["kept: 1 repro in ../.mountns"])


def test_asked_for_wrongly(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--mountns-keep=some")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--mountns-keep*'some' is not valid*failed, all, none*"])


@pytest.mark.parametrize("pid", [False, True])
def test_a_process_that_dies(pytester: pytest.Pytester, pid: bool) -> None:
    pytester.makepyfile(
        f"""
        import os, pytest, signal

        @pytest.mark.mountns(pid={pid})
        def test_dies():
            with open({str(pytester.path / "written")!r}, "w") as file:
                file.write("last words")
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    run(pytester, "--mountns-keep=failed").assert_outcomes(failed=1)
    (bundle,) = bundles(pytester.path / ".mountns")
    assert members(bundle)[str(pytester.path / "written").strip("/")] == b"last words"
    assert "SIGKILL (signal 9) during call" in (bundle / "report.txt").read_text()
    assert "written" in (bundle / "changes.txt").read_text()


def test_phases(pytester: pytest.Pytester, process: str) -> None:
    pytester.makepyfile(
        """
        import os, pytest

        HERE = os.path.dirname(__file__)

        def write(name):
            with open(os.path.join(HERE, name), "w"):
                pass

        @pytest.fixture
        def bad_setup():
            write("setup")
            assert 0

        @pytest.fixture
        def bad_teardown():
            yield
            write("teardown")
            assert 0

        @pytest.fixture(scope="class")
        def bad_class():
            assert 0

        pytestmark = pytest.mark.mountns

        def test_setup(bad_setup): pass

        def test_teardown(bad_teardown): write("call")

        def test_both(bad_teardown):
            write("call")
            assert 0

        class TestWider:
            def test_wider(self, bad_class): pass

        @pytest.mark.xfail
        def test_expected(): assert 0

        @pytest.mark.xfail(strict=True)
        def test_unexpected(): write("call")

        def test_skipped(): pytest.skip("no")
        """
    )
    run(pytester, "--mountns-keep=failed", f"--mountns-process={process}")
    found = {}
    for bundle in bundles(pytester.path / ".mountns"):
        name = document(bundle)["name"].rpartition("::")[2]
        layers = document(bundle)["layers"]
        written = {path.rpartition("/")[2] for path in members(bundle)} if layers else set()
        found[name] = written & {"setup", "call", "teardown"}
        if not layers:
            assert "not fail in its sandbox" in document(bundle)["notes"][0]
    assert found == {
        "test_setup": {"setup"},
        "test_teardown": {"call", "teardown"},
        "test_both": {"call"},
        "test_wider": set(),
        "test_unexpected": {"call"},
    }


def test_attempts(pytester: pytest.Pytester, process: str) -> None:
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(
        f"""
        import os, pytest

        COUNT = {str(pytester.mkdir("count"))!r}

        @pytest.mark.mountns(volumes=[COUNT])
        @pytest.mark.parametrize("needed", [2, 9])
        def test_it(needed):
            number = len(os.listdir(COUNT)) + 1
            with open(f"{{COUNT}}/{{needed}}-{{number}}", "w"):
                pass
            with open(f"{{os.path.dirname(__file__)}}/attempt-{{number}}", "w"):
                pass
            assert number == needed
        """
    )
    result = run(pytester, "--mountns-keep=failed", "--reruns=2", f"--mountns-process={process}")
    assert result.parseoutcomes() == {"passed": 1, "failed": 1, "rerun": 3}
    (bundle,) = bundles(pytester.path / ".mountns")
    assert document(bundle)["name"].endswith("test_it[9]")
    names = {path.rpartition("/")[2] for path in members(bundle)}
    assert {name for name in names if name.startswith("attempt")} == {"attempt-5"}


@pytest.mark.layered
def test_what_wider_fixtures_have_written(pytester: pytest.Pytester, process: str) -> None:
    pytester.makepyfile(
        """
        import os, pytest

        HERE = os.path.dirname(__file__)

        def write(name):
            with open(os.path.join(HERE, name), "w") as file:
                file.write(name)

        @pytest.fixture(scope="module")
        def wide(): write("wide")

        @pytest.fixture(scope="class")
        def middle(wide):
            write("middle")
            os.remove(HERE + "/wide")

        @pytest.mark.mountns(scope="module")
        class TestIt:
            def test_it(self, middle):
                write("own")
                os.remove(HERE + "/middle")
                assert 0
        """
    )
    result = run(
        pytester,
        "--mountns-keep=failed",
        f"--mountns-process={process}",
        # It starts a thread, and an ordinary user's process with two threads stays on the host.
        "-pno:rerunfailures",
    )
    result.assert_outcomes(failed=1)
    (bundle,) = bundles(pytester.path / ".mountns")
    names = [
        {
            name.rpartition("/")[2]
            for name, content in members(bundle, layer).items()
            if content is not None
        }
        for layer in ("wider-1", "wider-2", "layer")
    ]
    assert names == [{"wide"}, {"middle", ".wh.wide"}, {"own", ".wh.middle"}]


def test_workers(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.mountns
        @pytest.mark.parametrize("number", range(12))
        def test_it(number): assert number % 2
        """
    )
    result = run(pytester, "--mountns-keep=failed", "-n3")
    result.assert_outcomes(passed=6, failed=6)
    kept = bundles(pytester.path / ".mountns")
    assert {document(one)["name"][-3:] for one in kept} == {
        "[0]",
        "[2]",
        "[4]",
        "[6]",
        "[8]",
        "10]",
    }
    assert len({document(one)["run"] for one in kept}) == 1
    # The arguments are those of the whole run.
    assert document(kept[0])["argv"][-2:] == ["--mountns-keep=failed", "-n3"]
    result.stdout.fnmatch_lines(["kept: 6 repros in .mountns"])


MANY = """
import pytest

@pytest.mark.mountns
@pytest.mark.parametrize("number", range(4))
def test_it(number): assert 0
"""


def test_no_more_than_so_many(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_old=MANY.replace("range(4)", "range(2)"))
    pytester.makepyfile(test_new=MANY)
    pytester.makeconftest("import pytest_mountns.repro.store as b\nb.MOST = 3")
    run(pytester, "--mountns-keep=failed", "test_old.py").assert_outcomes(failed=2)
    result = run(pytester, "--mountns-keep=failed", "test_new.py")
    # The exit status is still that of the tests.
    result.assert_outcomes(failed=4)
    names = {document(one)["name"] for one in bundles(pytester.path / ".mountns")}
    assert names == {f"test_new.py::test_it[[]{n}]".replace("[[]", "[") for n in range(3)}
    result.stdout.fnmatch_lines(["kept: 3 repros in .mountns", "*test_it-3*", "*3 bundles*"])


def test_a_layer_that_is_too_big(pytester: pytest.Pytester, process: str) -> None:
    pytester.makepyfile(
        f"""
        def test_it(overlay_root):
            with open({str(pytester.path / "big")!r}, "wb") as file:
                file.write(bytes(2000))
            assert 0
        """
    )
    pytester.makeconftest("import pytest_mountns.repro.capture as s\ns.LARGEST_LAYER = 1000")
    run(pytester, "--mountns-keep=failed", f"--mountns-process={process}").assert_outcomes(failed=1)
    (bundle,) = bundles(pytester.path / ".mountns")
    assert document(bundle)["layers"] == []
    assert "more than 1000 bytes" in document(bundle)["notes"][0]
    assert "big" in (bundle / "changes.txt").read_text()
    assert not list(bundle.glob("*.tar*"))


def test_a_directory_that_cannot_be_written(suite: Path, pytester: pytest.Pytester) -> None:
    (suite / "file").write_text("no directory")
    result = run(pytester, "--mountns-keep=failed", "--mountns-dir=file")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        ["*save */file/test_it.py-test_fails-*", "*EEXIST*", "*remedy:*--mountns-dir"]
    )


def test_the_next_run_replaces_it(suite: Path, pytester: pytest.Pytester) -> None:
    run(pytester, "--mountns-keep=failed")
    (before,) = bundles(suite / ".mountns")
    first = document(before)
    run(pytester, "--mountns-keep=failed", "-q")
    assert bundles(suite / ".mountns") == [before]
    assert document(before)["run"] != first["run"]
    assert {path.name for path in (suite / ".mountns").iterdir()} == {
        ".gitignore",
        ".lock",
        before.name,
    }


def test_pytest_killed_while_it_writes(suite: Path, pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import os, signal
        import pytest_mountns.repro.store as bundles

        if os.environ.get("DIE"):
            bundles.shutil.copyfileobj = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIE", "1")
        result = run(pytester, "--mountns-keep=failed")
    assert result.ret == -signal.SIGKILL
    assert bundles(suite / ".mountns") == []
    assert len(list((suite / ".mountns").glob(".partial-*"))) == 1
    run(pytester, "--mountns-keep=failed")
    assert len(bundles(suite / ".mountns")) == 1
    assert list((suite / ".mountns").glob(".partial-*")) == []


def test_nothing_else_differs(
    suite: Path, pytester: pytest.Pytester, record: Record, process: str
) -> None:
    pytester.makeini("[pytest]\nfilterwarnings = error")
    plain, kept = record(), record("--mountns-keep=all")
    assert plain.status == kept.status
    # Texts have addresses in tracebacks.
    assert plain.without("text") == kept.without("text")
