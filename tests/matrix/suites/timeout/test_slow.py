import threading
import time

import pytest


def deep():
    time.sleep(30)


@pytest.mark.timeout(0.5)
def test_slow():
    print("began")
    deep()


@pytest.mark.timeout(0.5)
def test_with_thread():
    stop = threading.Event()

    def waiting_in_thread():
        stop.wait(30)

    thread = threading.Thread(target=waiting_in_thread, name="waiting", daemon=True)
    thread.start()
    try:
        time.sleep(30)
    finally:
        stop.set()


@pytest.mark.timeout(20)
def test_fast():
    pass


def test_next():
    pass
