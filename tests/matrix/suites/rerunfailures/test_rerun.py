import pytest


@pytest.mark.flaky(reruns=2)
def test_third_time(request):
    print(f"attempt {request.node.execution_count}")
    assert request.node.execution_count == 3


@pytest.mark.flaky(reruns=1)
def test_never():
    assert 0


@pytest.mark.flaky(reruns=2, condition="False")
def test_not_again():
    assert 0


@pytest.mark.flaky(reruns=2, only_rerun=["ValueError"])
def test_only_for():
    raise KeyError("other")


@pytest.mark.flaky(reruns=1, reruns_delay=0.1)
def test_after_a_while(request, tmp_path):
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert request.node.execution_count == 2


seen = []


@pytest.fixture(scope="module")
def wide():
    seen.append("wide")
    yield seen
    print(f"wide was set up {seen.count('wide')} times")


@pytest.fixture
def fails_at_first(wide):
    wide.append("narrow")
    if wide.count("narrow") == 1:
        raise ValueError("setup of the first attempt")
    yield
    print("teardown of an attempt")


@pytest.mark.flaky(reruns=1)
def test_setup_fails(fails_at_first):
    pass


@pytest.fixture
def teardown_fails():
    yield
    raise ValueError("teardown")


@pytest.mark.flaky(reruns=1)
def test_teardown_fails(teardown_fails):
    pass


@pytest.fixture(scope="class")
def broken_for_class():
    raise ValueError("class")


class TestInClass:
    @pytest.mark.flaky(reruns=1)
    def test_one(self, broken_for_class):
        pass


def test_value_error():
    raise ValueError


def test_passes():
    pass
