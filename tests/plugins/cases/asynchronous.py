"""Plugins that run asynchronous tests."""

from __future__ import annotations

from tests.plugins.case import Case

CASES = [
    Case(
        "pytest-asyncio",
        (),
        {
            "test_it.py": """
                import asyncio, pytest, pytest_asyncio
                @pytest_asyncio.fixture(scope="module", loop_scope="module")
                async def queue():
                    queue = asyncio.Queue()
                    await queue.put(1)
                    yield queue
                @pytest.mark.asyncio(loop_scope="module")
                async def test_a(queue): assert await queue.get() == 1
                @pytest.mark.asyncio
                async def test_b(): assert await asyncio.to_thread(lambda: 1) == 2
            """
        },
        uses="a loop of the module, threads",
    ),
    Case(
        "anyio",
        (),
        {
            "test_it.py": """
                import anyio, pytest
                pytestmark = pytest.mark.anyio
                @pytest.fixture(scope="module", params=["asyncio", "trio"])
                def anyio_backend(request): return request.param
                @pytest.fixture(scope="module")
                async def wide(): yield 1
                async def test_a(wide): await anyio.sleep(0); assert wide == 1
                async def test_b(wide): assert await anyio.to_thread.run_sync(lambda: 1) == 2
            """
        },
        uses="asyncio and trio; wider fixtures",
        requires=("trio",),
    ),
    Case(
        "pytest-aiohttp",
        ("aiohttp", "asyncio"),
        {
            "pytest.ini": "[pytest]\nasyncio_mode = auto\n",
            "test_it.py": """
                from aiohttp import web
                async def answer(request): return web.Response(text="yes")
                async def test_a(aiohttp_client):
                    app = web.Application()
                    app.router.add_get("/", answer)
                    client = await aiohttp_client(app)
                    assert await (await client.get("/")).text() == "yes"
                async def test_b(aiohttp_client):
                    client = await aiohttp_client(web.Application())
                    assert (await client.get("/")).status == 200
            """,
        },
        uses="`aiohttp_client`",
    ),
    Case(
        "pytest-trio",
        (),
        {
            "test_it.py": """
                import pytest, trio
                @pytest.mark.trio
                async def test_a(autojump_clock): await trio.sleep(100)
                @pytest.mark.trio
                async def test_b(nursery):
                    async def fails(): raise ValueError("in a task")
                    nursery.start_soon(fails)
                    await trio.sleep(1)
            """
        },
        uses="nurseries, clocks",
    ),
    Case(
        "pytest-tornado",
        (),
        {
            "test_it.py": """
                import pytest, tornado.web
                class Handler(tornado.web.RequestHandler):
                    def get(self): self.write("yes")
                @pytest.fixture
                def app(): return tornado.web.Application([("/", Handler)])
                @pytest.mark.gen_test
                def test_a(http_client, base_url):
                    response = yield http_client.fetch(base_url)
                    assert response.body == b"yes"
                @pytest.mark.gen_test
                def test_b(http_client, base_url):
                    response = yield http_client.fetch(base_url + "/none")
            """
        },
        uses="`http_client`, `gen_test`",
        requires=("tornado", "setuptools<81", "pytest<8.4"),
    ),
    Case(
        "pytest-twisted",
        (),
        {
            "test_it.py": """
                import pytest, pytest_twisted
                from twisted.internet import defer, reactor, task
                @pytest_twisted.ensureDeferred
                async def test_a(): await task.deferLater(reactor, 0, lambda: None)
                @pytest_twisted.inlineCallbacks
                def test_b():
                    yield task.deferLater(reactor, 0, lambda: None)
                    assert 0
            """
        },
        uses="deferred results",
        requires=("twisted",),
        options=("--reactor=default",),
    ),
]
