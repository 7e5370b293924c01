"""``overlay_root.checkpoint()``: what was written in it is dropped when it ends."""

from __future__ import annotations

import pytest

from tests.helpers.recording import Record, Recorded

pytestmark = [pytest.mark.sandboxes, pytest.mark.layered]


@pytest.fixture
def record(record: Record, process: str) -> Record:
    # pytest 8.0 does not see that the overridden `record` needs `process`, unless it is named here.
    # pytest-rerunfailures keeps a thread, and an ordinary user's process can enter and leave
    # sandboxes only while it has one thread.
    return lambda *arguments: record("-pno:rerunfailures", *arguments)


@pytest.fixture(params=["fork", "module", "inline"])
def process(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def passes(recorded: Recorded) -> None:
    failed = recorded.not_passed
    assert not failed, recorded.out
    assert recorded.status == 0


def test_nested_with_resets_and_errors(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import os, pytest

        def test_it(overlay_root, tmp_path):
            os.chdir(tmp_path)
            one = tmp_path / "one"
            one.write_text("1")
            with overlay_root.checkpoint():
                assert overlay_root.changes() == {}
                assert one.read_text() == "1" and os.getcwd() == str(tmp_path)
                one.write_text("2")
                (tmp_path / "two").mkdir()
                os.chdir("two")
                with overlay_root.checkpoint():
                    one.unlink()
                    assert overlay_root.changes() == {str(one): "deleted"}
                assert one.read_text() == "2" and os.getcwd() == str(tmp_path / "two")
                assert overlay_root.changes() == {
                    str(one): "modified", str(tmp_path / "two"): "added"}
                overlay_root.reset()
                assert not one.exists()
            assert one.read_text() == "1" and os.getcwd() == str(tmp_path)
            with pytest.raises(ZeroDivisionError), overlay_root.checkpoint():
                one.unlink()
                1 / 0
            assert one.read_text() == "1"
            for _ in range(20):
                with overlay_root.checkpoint():
                    assert not (tmp_path / "new").exists()
                    (tmp_path / "new").touch()
        """
    )
    passes(record())


def test_hypothesis_examples_and_state_machines(pytester: pytest.Pytester, record: Record) -> None:
    pytest.importorskip("hypothesis")
    pytester.makepyfile(
        """
        from hypothesis import HealthCheck, given, settings, strategies as st
        from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

        quick = settings(max_examples=15, database=None, deadline=None,
                         suppress_health_check=[HealthCheck.function_scoped_fixture])

        @quick
        @given(name=st.text("abc", min_size=1, max_size=3))
        def test_examples(overlay_root, tmp_path, name):
            with overlay_root.checkpoint():
                assert list(tmp_path.iterdir()) == []
                (tmp_path / name).touch()

        def test_machine(overlay_root, tmp_path):
            class Files(RuleBasedStateMachine):
                def __init__(self):
                    super().__init__()
                    self.checkpoint = overlay_root.checkpoint()
                    self.checkpoint.__enter__()
                    self.names = set()

                @rule(name=st.sampled_from("abc"))
                def write(self, name):
                    (tmp_path / name).touch()
                    self.names.add(name)
                    assert {p.name for p in tmp_path.iterdir()} == self.names

                def teardown(self):
                    self.checkpoint.__exit__(None, None, None)

            run_state_machine_as_test(Files, settings=quick)
            assert list(tmp_path.iterdir()) == []
        """
    )
    passes(record())


def test_reports_show_what_was_written_outside_of_them(
    pytester: pytest.Pytester, record: Record
) -> None:
    """Also if the root was dropped or something was mounted in one: that is gone with it."""
    volume = pytester.mkdir("volume")
    pytester.makepyfile(
        f"""
        from pathlib import Path
        import pytest

        @pytest.mark.parametrize("what", ["nothing", "reset", "bind"])
        def test_it(overlay_root, bind_volume, what):
            Path("outside").write_text(what)
            with overlay_root.checkpoint():
                if what == "reset":
                    overlay_root.reset()
                if what == "bind":
                    bind_volume({str(volume)!r}, Path("bound").absolute())
                Path("inside").write_text(what)
            assert 0
        """
    )
    recorded = record("--mountns-changes=failed")
    assert recorded.out.count("added       outside") == 3, recorded.out
    assert "added       inside" not in recorded.out


def test_no_helper_of_ours_is_left_in_a_sandbox(pytester: pytest.Pytester, record: Record) -> None:
    """What unmounts in the background may be needed for the first time when one ends."""
    pytester.makepyfile(
        """
        def test_it(overlay_root):
            with overlay_root.checkpoint():
                pass
        """
    )
    recorded = record("-v")
    passes(recorded)
    assert "still running" not in recorded.out


def test_uppers_on_disk(pytester: pytest.Pytester, record: Record) -> None:
    # An upper of before the checkpoint is a lower then, and may lie in another one of them.
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.mark.mountns(upper="disk")
        def test_it(overlay_root):
            for directory in ("/var/tmp", os.path.expanduser("~")):
                open(f"{directory}/before", "w").close()
            with overlay_root.checkpoint():
                for directory in ("/var/tmp", os.path.expanduser("~")):
                    os.unlink(f"{directory}/before")
                with overlay_root.checkpoint():
                    open("/var/tmp/inner", "w").close()
                assert not os.path.exists("/var/tmp/inner")
            for directory in ("/var/tmp", os.path.expanduser("~")):
                assert os.path.exists(f"{directory}/before")
        """
    )
    assert record().status == 0


def test_a_layer_that_is_added_once_more(pytester: pytest.Pytester, record: Record) -> None:
    pytester.mkdir("layer").joinpath("srv").mkdir()
    (pytester.path / "layer/srv/of-layer").touch()
    pytester.mkdir("other").joinpath("srv").mkdir()
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.mark.mountns(layers=["layer"], user="keep")
        def test_it(overlay_root):
            layer, other = os.path.abspath("layer"), os.path.abspath("other")
            os.unlink("/srv/of-layer")
            with overlay_root.checkpoint():
                overlay_root.add_layer(other)
                overlay_root.add_layer(layer)
                assert not os.path.exists("/srv/of-layer")
                overlay_root.reset()
                assert os.path.exists("/srv/of-layer")
            overlay_root.add_layer(layer)
            assert not os.path.exists("/srv/of-layer")

        @pytest.mark.mountns(layers=["layer", "link"])
        def test_another_path(): assert os.path.exists("/srv/of-layer")
        """
    )
    (pytester.path / "link").symlink_to("layer")
    assert record().status == 0


def test_a_layer_on_disk_below_a_test_in_memory(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.fixture(scope="module")
        def written():
            open("/var/tmp/of-fixture", "w").close()

        @pytest.mark.mountns(scope="module", upper="disk")
        def test_disk(written): assert os.path.exists("/var/tmp/of-fixture")

        @pytest.mark.mountns(scope="module", upper="memory")
        def test_memory(written): assert os.path.exists("/var/tmp/of-fixture")
        """
    )
    assert record().status == 0


def test_a_checkpoint_that_is_left_open_ends_with_the_test(
    pytester: pytest.Pytester, record: Record
) -> None:
    """Also if its generator is finished later, on the host or in the sandbox of another test."""
    pytester.makepyfile(
        """
        import os, pytest

        LEFT = []

        @pytest.fixture(scope="module", autouse=True)
        def of_the_module():
            host = os.readlink("/proc/thread-self/ns/mnt")
            yield
            LEFT.clear()
            assert os.readlink("/proc/thread-self/ns/mnt") == host

        @pytest.mark.parametrize("number", range(4))
        def test_it(overlay_root, tmp_path, number):
            inside = os.readlink("/proc/thread-self/ns/mnt")
            if number == 2:
                LEFT.clear()
            assert os.readlink("/proc/thread-self/ns/mnt") == inside
            (tmp_path / "file").touch()
            LEFT.append(overlay_root.checkpoint())
            LEFT[-1].__enter__()
            if number % 2:
                overlay_root.reset()
        """
    )
    passes(record())
