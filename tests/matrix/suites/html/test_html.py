import pytest
import pytest_html


def test_passes():
    """It passes."""
    print("some output")


def test_fails():
    """It fails."""
    print("output of a failing test")
    assert 1 == 2


def test_skips():
    pytest.skip("today")


@pytest.mark.xfail(reason="known")
def test_xfails():
    assert 0


@pytest.fixture
def broken():
    raise ValueError("broken")


def test_error(broken):
    pass


def test_extras(extras):
    extras.append(pytest_html.extras.url("https://example.org"))
    extras.append(pytest_html.extras.html("<b>bold</b>"))


def test_image(extras):
    extras.append(pytest_html.extras.png("iVBORw0KGgo="))


@pytest.mark.flaky(reruns=1)
def test_rerun(request):
    assert request.node.execution_count == 2


def test_metadata(metadata):
    assert "Python" in metadata
