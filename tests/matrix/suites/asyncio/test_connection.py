"""The tests talk over a connection that was made before them, from the loop of the module."""
import asyncio

import pytest
import pytest_asyncio

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def echo(reader, writer):
    while line := await reader.readline():
        writer.write(b"echo " + line)
        await writer.drain()
    writer.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()
    server.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def connection(server):
    reader, writer = await asyncio.open_connection(*server)
    writer.write(b"hello\n")
    assert await asyncio.wait_for(reader.readline(), 5) == b"echo hello\n"
    yield reader, writer
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("number", range(3))
async def test_talks(connection, number):
    reader, writer = connection
    writer.write(b"%d\n" % number)
    await writer.drain()
    assert await asyncio.wait_for(reader.readline(), 5) == b"echo %d\n" % number


async def test_new_connection(server):
    reader, writer = await asyncio.open_connection(*server)
    writer.write(b"new\n")
    assert await asyncio.wait_for(reader.readline(), 5) == b"echo new\n"
    writer.close()
    await writer.wait_closed()


async def test_again(connection):
    reader, writer = connection
    writer.write(b"again\n")
    assert await asyncio.wait_for(reader.readline(), 5) == b"echo again\n"
