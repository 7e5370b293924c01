"""Not collected here: unittest classes that ``test_outcomes`` runs plainly and isolated."""

import asyncio
import unittest


class TestCase(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.wide = 1

    def setUp(self):
        self.narrow = 1

    def tearDown(self):
        assert self.narrow

    def test_passes(self):
        self.assertEqual(self.wide, 1)

    def test_fails(self):
        self.assertEqual(1, 2)

    @unittest.skip("by unittest")
    def test_skipped(self):
        pass

    @unittest.expectedFailure
    def test_expected_failure(self):
        self.fail()

    @unittest.expectedFailure
    def test_unexpected_success(self):
        pass

    def test_cleanup_fails(self):
        self.addCleanup(lambda: 1 / 0)


class TestSkippedClass(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        raise unittest.SkipTest("whole class")

    def test_it(self):
        pass


class TestBrokenClass(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        raise ValueError("whole class")

    def test_it(self):
        pass


class TestBrokenEnd(unittest.TestCase):
    @classmethod
    def tearDownClass(cls):
        raise ValueError("at the end")

    def test_it(self):
        pass


class TestAsync(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.value = 1

    async def test_it(self):
        await asyncio.sleep(0)
        assert self.value
