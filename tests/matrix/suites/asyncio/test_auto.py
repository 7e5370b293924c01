import asyncio
import warnings

import pytest


@pytest.fixture
async def value():
    await asyncio.sleep(0)
    yield 1
    await asyncio.sleep(0)


@pytest.fixture(scope="module")
async def wide():
    yield 2
    await asyncio.sleep(0)


async def test_value(value, wide):
    assert value + wide == 3


async def test_warns():
    warnings.warn("from a coroutine")


async def test_leaves_a_task():
    asyncio.create_task(asyncio.sleep(30))


@pytest.mark.parametrize("number", range(3))
async def test_numbers(number):
    await asyncio.sleep(0)
    assert number != 1


class TestMethods:
    async def test_method(self, value):
        assert value == 1


async def test_timeout():
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(asyncio.sleep(30), 0.05)
