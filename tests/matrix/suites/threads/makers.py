"""Libraries that start threads: ``start`` has them do so, ``use`` gives these a file to write."""

import asyncio
import functools
import ftplib
import io
import logging
import os
import tempfile
import threading
import urllib.request
from concurrent import futures
from pathlib import Path

import duckdb
import fsspec.asyn
import grpc
import joblib
import lightgbm
import numba
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset
from asgiref.sync import async_to_sync, sync_to_async
from flask import Flask
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import ThreadedFTPServer
from sklearn.cluster import KMeans
from sklearn.ensemble import HistGradientBoostingClassifier
from werkzeug.serving import make_server

PLACE = Path(tempfile.gettempdir())
TABLE = np.random.RandomState(0).rand(500, 4)
logging.getLogger("werkzeug").disabled = True
logging.getLogger("pyftpdlib").setLevel(logging.CRITICAL)


@functools.cache
def executor():
    pool = futures.ThreadPoolExecutor(4)
    list(pool.map(int, "12345678"))
    return pool


@functools.cache
def loop():
    made = asyncio.new_event_loop()
    made.run_until_complete(asyncio.to_thread(int))
    return made


@functools.cache
def database():
    connection = duckdb.connect()
    connection.execute("select count(*) from range(1000000)").fetchall()
    return connection


@functools.cache
def channel():
    class Handler(grpc.GenericRpcHandler):
        def service(self, details):
            return grpc.unary_unary_rpc_method_handler(self.write)

        def write(self, request, context):
            Path(request.decode()).write_text("text")
            return b"done"

    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    made = grpc.insecure_channel(f"127.0.0.1:{port}")
    made.server = server
    return made


@functools.cache
def web():
    app = Flask("app")

    @app.route("/write/<path:path>")
    def write(path):
        Path("/", path).write_text("text")
        return "done"

    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


@functools.cache
def ftp():
    authorizer = DummyAuthorizer()
    authorizer.add_user("user", "password", str(PLACE), perm="elradfmw")
    FTPHandler.authorizer = authorizer
    server = ThreadedFTPServer(("127.0.0.1", 0), FTPHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.socket.getsockname()


async def _write(path):
    path.write_text("text")


@numba.njit(parallel=True)
def total(values):
    found = 0.0
    for index in numba.prange(values.shape[0]):
        found += values[index]
    return found


class Executor:
    start = staticmethod(executor)

    def use(path):
        executor().submit(path.write_text, "text").result()


class ToThread:
    start = staticmethod(loop)

    def use(path):
        loop().run_until_complete(asyncio.to_thread(path.write_text, "text"))


class Asgiref:
    def start():
        async_to_sync(sync_to_async(int, thread_sensitive=False))()

    def use(path):
        async_to_sync(sync_to_async(path.write_text, thread_sensitive=False))("text")


class Fsspec:
    start = staticmethod(fsspec.asyn.get_loop)

    def use(path):
        fsspec.asyn.sync(fsspec.asyn.get_loop(), _write, path)


class Polars:
    def start():
        pl.DataFrame({"a": [1, 2] * 50000}).group_by("a").sum()

    def use(path):
        assert pl.DataFrame({"a": [1, 2] * 50000}).group_by("a").sum().height == 2
        pl.DataFrame({"a": [1]}).lazy().sink_csv(path)
        assert pl.read_csv(path).height == 1


class Arrow:
    def start():
        pa.table({"a": [1]}).to_pandas if False else pa.cpu_count()

    def use(path):
        table = pa.table({"a": list(range(1000))})
        pa.dataset.write_dataset(table, path, format="parquet")
        assert pa.dataset.dataset(path).to_table(use_threads=True).num_rows == 1000


class DuckDB:
    start = staticmethod(database)

    def use(path):
        database().execute(f"copy (select * from range(100000)) to '{path}' (format csv)")


class Sklearn:
    def start():
        KMeans(3, n_init=1).fit(TABLE)

    def use(path):
        KMeans(3, n_init=1).fit(TABLE)
        HistGradientBoostingClassifier(max_iter=5).fit(TABLE, TABLE[:, 0] > 0.5)
        path.write_text("text")


class LightGBM:
    def start():
        lightgbm.train({"verbose": -1}, lightgbm.Dataset(TABLE, TABLE[:, 0]), 3)

    def use(path):
        data = lightgbm.Dataset(TABLE, TABLE[:, 0])
        lightgbm.train({"verbose": -1}, data, 3).save_model(path)


class Numba:
    def start():
        total(np.ones(100000))

    def use(path):
        assert total(np.ones(100000)) == 100000
        path.write_text("text")


class OpenBLAS:
    def start():
        np.ones((600, 600)) @ np.ones((600, 600))

    def use(path):
        assert (np.ones((600, 600)) @ np.ones((600, 600)))[0, 0] == 600
        path.write_text("text")


class Grpc:
    start = staticmethod(channel)

    def use(path):
        assert channel().unary_unary("/a/b")(os.fsencode(path), timeout=20) == b"done"


class Web:
    start = staticmethod(web)

    def use(path):
        url = f"http://127.0.0.1:{web()}/write{path}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert answer.read() == b"done"


class Ftp:
    start = staticmethod(ftp)

    def use(path):
        client = ftplib.FTP()
        client.connect(*ftp(), timeout=20)
        client.login("user", "password")
        client.storbinary(f"STOR {path.name}", io.BytesIO(b"text"))
        client.quit()


class Joblib:
    def start():
        joblib.Parallel(2)(joblib.delayed(abs)(number) for number in range(4))

    def use(path):
        joblib.Parallel(2)(joblib.delayed(abs)(number) for number in range(4))
        joblib.Parallel(2, backend="threading")([joblib.delayed(path.write_text)("text")])


MAKERS = [
    *(Executor, ToThread, Asgiref, Fsspec, Polars, Arrow, DuckDB, Sklearn, LightGBM, Numba),
    *(OpenBLAS, Grpc, Web, Ftp, Joblib),
]


def check(maker, number):
    """Nobody has written the file before, and now it is there."""
    path = PLACE / f"mountns-{maker.__name__}-{number}"
    assert not path.exists()
    maker.use(path)
    assert path.exists()
