import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import pytest_asyncio

pytestmark = pytest.mark.asyncio(loop_scope="module")


def name():
    return threading.current_thread().name.rpartition("_")[0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def warm():
    """The default executor has threads before the first test."""
    return await asyncio.to_thread(name)


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(2, thread_name_prefix="own") as pool:
        pool.submit(name).result()
        yield pool


@pytest.mark.parametrize("number", range(2))
async def test_to_thread(warm, number):
    assert await asyncio.wait_for(asyncio.to_thread(name), 5)


async def test_run_in_executor(warm):
    loop = asyncio.get_running_loop()
    assert await asyncio.wait_for(loop.run_in_executor(None, name), 5)


async def test_getaddrinfo(warm):
    loop = asyncio.get_running_loop()
    assert await asyncio.wait_for(loop.getaddrinfo("localhost", 80), 5)


def test_pool_of_a_fixture(pool):
    assert pool.submit(name).result(5) == "own"
