import threading

import anyio
import pytest

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture(scope="module")
async def warm(anyio_backend):
    return await anyio.to_thread.run_sync(threading.get_ident)


@pytest.mark.parametrize("number", range(2))
async def test_thread(warm, number):
    with anyio.fail_after(5):
        assert await anyio.to_thread.run_sync(lambda: number) == number


async def test_from_thread(warm):
    def ask():
        return anyio.from_thread.run(give)

    async def give():
        return "given"

    with anyio.fail_after(5):
        assert await anyio.to_thread.run_sync(ask) == "given"
