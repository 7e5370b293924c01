import asyncio

import pytest
import pytest_asyncio


@pytest.mark.asyncio
async def test_function():
    await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_fails():
    await asyncio.sleep(0)
    assert 0


@pytest.mark.asyncio(loop_scope="class")
class TestClass:
    @pytest_asyncio.fixture(loop_scope="class", scope="class")
    async def loop_of_fixture(self):
        yield asyncio.get_running_loop()
        await asyncio.sleep(0)
        print("class fixture ends")

    async def test_one(self, loop_of_fixture):
        assert asyncio.get_running_loop() is loop_of_fixture

    async def test_two(self, loop_of_fixture):
        assert asyncio.get_running_loop() is loop_of_fixture


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def module_event():
    event = asyncio.Event()
    asyncio.get_running_loop().call_soon(event.set)
    await event.wait()
    yield event
    await asyncio.sleep(0)


@pytest.mark.asyncio(loop_scope="module")
async def test_module(module_event):
    assert module_event.is_set()
    await asyncio.wait_for(module_event.wait(), 1)


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def queue():
    queue = asyncio.Queue()
    await queue.put("from the fixture")
    yield queue


@pytest.mark.asyncio(loop_scope="session")
async def test_session(queue):
    assert await asyncio.wait_for(queue.get(), 1) == "from the fixture"


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def background():
    """A task that goes on while the tests run."""
    ticks = []

    async def tick():
        while True:
            ticks.append(1)
            await asyncio.sleep(0.01)

    task = asyncio.create_task(tick())
    yield ticks
    task.cancel()


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("attempt", [1, 2])
async def test_task_goes_on(background, attempt):
    before = len(background)
    await asyncio.sleep(0.1)
    assert len(background) > before


@pytest.mark.asyncio
async def test_subprocess():
    process = await asyncio.create_subprocess_exec(
        "echo", "hello", stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert (process.returncode, out) == (0, b"hello\n")


async def test_not_marked():
    pass
