import pytest


def work(number=10):
    return sum(range(number))


def test_pedantic(benchmark):
    assert benchmark.pedantic(work, rounds=5, iterations=3) == 45


@pytest.mark.benchmark(group="numbers")
@pytest.mark.parametrize("number", [10, 20])
def test_parameters(benchmark, number):
    benchmark.extra_info["number"] = number
    benchmark.pedantic(work, args=(number,), rounds=2)


def test_fails_after(benchmark):
    benchmark.pedantic(work, rounds=2)
    assert 0


def test_without():
    assert work() == 45


def test_warns_unused(benchmark):
    pass
