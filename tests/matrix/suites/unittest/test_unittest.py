import asyncio
import unittest

import pytest

log = []


def setUpModule():
    log.append("module")
    print("setUpModule")


def tearDownModule():
    print("tearDownModule", log)


class TestWide(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.value = [1]
        cls.addClassCleanup(print, "class cleanup")

    @classmethod
    def tearDownClass(cls):
        print("tearDownClass", cls.value)

    def setUp(self):
        self.own = []
        self.addCleanup(print, "cleanup")

    def tearDown(self):
        print("tearDown", self.own)

    def test_one(self):
        self.own.append(1)
        self.assertEqual(log, ["module"])

    def test_fails(self):
        self.assertEqual([1, 2], [1, 3], "a message")

    def test_skips(self):
        self.skipTest("not now")

    @unittest.skip("never")
    def test_skipped(self):
        pass

    @unittest.expectedFailure
    def test_expected(self):
        self.fail("as expected")

    @unittest.expectedFailure
    def test_unexpected(self):
        pass

    def test_raises(self):
        with self.assertRaises(ValueError), self.assertWarns(UserWarning):
            import warnings

            warnings.warn("seen")
            raise ValueError

    def test_subtests(self):
        for number in range(4):
            with self.subTest("a subtest", number=number):
                self.assertNotEqual(number % 2, 1)


class TestBrokenClass(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        raise RuntimeError("class is broken")

    def test_never(self):
        pass


class TestBrokenTearDown(unittest.TestCase):
    @classmethod
    def tearDownClass(cls):
        raise RuntimeError("cannot end")

    def test_passes(self):
        pass

    def tearDown(self):
        raise ValueError("tearDown")


class TestAsync(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.queue = asyncio.Queue()

    async def asyncTearDown(self):
        print("asyncTearDown")

    async def test_queue(self):
        await self.queue.put(1)
        self.assertEqual(await self.queue.get(), 1)

    async def test_thread(self):
        self.assertEqual(await asyncio.to_thread(lambda: 7), 7)

    async def test_fails(self):
        await asyncio.sleep(0)
        self.fail("in a coroutine")


class TestWithFixtures(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def fixture(self, tmp_path):
        self.path = tmp_path

    def test_path(self):
        (self.path / "file").write_text("x")
        self.assertTrue((self.path / "file").exists())
