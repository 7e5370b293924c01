import anyio
import pytest

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture(scope="module")
async def server(anyio_backend):
    async def echo(stream):
        async with stream:
            async for chunk in stream:
                await stream.send(b"echo " + chunk)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, echo)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.cancel_scope.cancel()
    await listener.aclose()


@pytest.fixture(scope="module")
async def connection(server):
    async with await anyio.connect_tcp("127.0.0.1", server) as stream:
        yield stream


async def test_sleeps():
    await anyio.sleep(0.01)


async def test_fails():
    await anyio.sleep(0)
    assert 0


@pytest.mark.parametrize("number", range(2))
async def test_talks(connection, number):
    with anyio.fail_after(5):
        await connection.send(b"%d" % number)
        assert await connection.receive() == b"echo %d" % number


async def test_new_connection(server):
    with anyio.fail_after(5):
        async with await anyio.connect_tcp("127.0.0.1", server) as stream:
            await stream.send(b"new")
            assert await stream.receive() == b"echo new"


async def test_task_group():
    done = []

    async def work(number):
        await anyio.sleep(0.01)
        done.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(work, number)
    assert sorted(done) == [0, 1, 2]


async def test_process():
    with anyio.fail_after(10):
        done = await anyio.run_process(["echo", "hello"])
    assert done.stdout == b"hello\n"


async def test_thread():
    with anyio.fail_after(5):
        assert await anyio.to_thread.run_sync(lambda: 7) == 7
