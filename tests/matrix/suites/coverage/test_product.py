import os
import subprocess
import sys
import threading

import pytest

import product


@pytest.fixture(scope="module")
def wide():
    yield product.wide()
    product.in_wide_teardown()


@pytest.fixture
def narrow():
    yield product.narrow(1)
    product.torn_down()


def test_fixtures(wide, narrow):
    assert (wide, narrow) == ("wide", "small")


@pytest.mark.parametrize("number", [1, 2, 3])
def test_parameters(number):
    assert product.narrow(number) in ("big", "small")


def test_thread():
    found = []
    thread = threading.Thread(target=product.in_thread, args=(found,))
    thread.start()
    thread.join()
    assert found == [1]


def test_fails():
    product.failing()


def test_skips():
    product.looped([])
    pytest.skip("halfway")


def test_loops():
    assert product.looped(range(5)) == 6


def test_by_program():
    done = subprocess.run(
        [sys.executable, "-m", "product", "7"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "big\n"


def test_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert product.narrow(9) == "big"


def test_late_import():
    from product import late

    assert late.LATE


def test_template():
    import engine

    template = os.path.join(os.path.dirname(__file__), "page.tpl")
    assert engine.render(template, lambda number: number % 2) == ["ONE", "THREE", "FIVE"]


def test_template_again():
    import engine

    template = os.path.join(os.path.dirname(__file__), "page.tpl")
    assert engine.render(template, lambda number: number == 2) == ["TWO"]
