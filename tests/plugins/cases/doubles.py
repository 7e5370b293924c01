"""Plugins that stand in for something: objects, servers, databases, the time, programs."""

from __future__ import annotations

from tests.plugins.case import Case

CASES = [
    Case(
        "pytest-mock",
        (),
        {
            "test_it.py": """
                import os
                def test_a(mocker):
                    mocker.patch("os.getcwd", return_value="/nowhere")
                    assert os.getcwd() == "/nowhere"
                def test_b(mocker):
                    stub = mocker.stub(name="s")
                    stub(1)
                    stub.assert_called_once_with(2)
                def test_c(): assert os.getcwd() != "/nowhere"
                def test_d(session_mocker, mocker):
                    spy = mocker.spy(os, "stat")
                    os.stat("/")
                    assert spy.call_count == 1
            """
        },
        uses="patches, spies, stubs; messages of assertions",
    ),
    Case(
        "pytest-socket",
        (),
        {
            "test_it.py": """
                import socket, pytest
                def test_a(): socket.socket()
                @pytest.mark.enable_socket
                def test_b(): socket.socket().close()
            """
        },
        uses="`--disable-socket`",
        options=("--disable-socket",),
    ),
    Case(
        "pytest-httpx",
        (),
        {
            "test_it.py": """
                import httpx
                def test_a(httpx_mock):
                    httpx_mock.add_response(text="yes")
                    assert httpx.get("http://a").text == "yes"
                def test_b(httpx_mock): httpx_mock.add_response(text="never asked for")
            """
        },
        uses="answers, and one that is not asked for",
    ),
    Case(
        "respx",
        (),
        {
            "test_it.py": """
                import httpx
                def test_a(respx_mock):
                    respx_mock.get("http://a/").respond(text="yes")
                    assert httpx.get("http://a/").text == "yes"
                def test_b(respx_mock): respx_mock.get("http://b/").respond(text="never")
            """
        },
        uses="routes, and one that is not used",
        requires=("httpx",),
    ),
    Case(
        "requests-mock",
        (),
        {
            "test_it.py": """
                import requests
                def test_a(requests_mock):
                    requests_mock.get("http://a", text="yes")
                    assert requests.get("http://a").text == "yes"
                def test_b(requests_mock): requests.get("http://b")
            """
        },
        uses="answers, and none",
        requires=("requests",),
    ),
    Case(
        "pytest-responses",
        (),
        {
            "test_it.py": """
                import pytest, requests
                def test_a(responses):
                    responses.add("GET", "http://a", body="yes")
                    assert requests.get("http://a").text == "yes"
                def test_b(): requests.get("http://b")
            """
        },
        uses="answers, and none",
        requires=("responses", "requests"),
    ),
    Case(
        "pytest-localserver",
        (),
        {
            "test_it.py": """
                import urllib.request
                def test_a(httpserver):
                    httpserver.serve_content("yes", 200)
                    assert urllib.request.urlopen(httpserver.url).read() == b"yes"
                    assert len(httpserver.requests) == 1
                def test_b(httpserver): assert len(httpserver.requests) == 1
            """
        },
        uses="`httpserver`",
    ),
    Case(
        "pytest-sftpserver",
        (),
        {
            "conftest.py": """
                import logging
                # When a thread of the server finds a connection closed, it logs that: during one
                # test or the next one.
                logging.getLogger("paramiko").addHandler(logging.NullHandler())
                logging.getLogger("paramiko").propagate = False
            """,
            "test_it.py": """
                import paramiko
                def test_a(sftpserver):
                    with sftpserver.serve_content({"a": "text"}):
                        transport = paramiko.Transport((sftpserver.host, sftpserver.port))
                        transport.connect(username="u", password="p")
                        with paramiko.SFTPClient.from_transport(transport) as client:
                            assert client.open("/a").read() == b"text"
                        transport.close()
                def test_b(): assert 0
            """,
        },
        uses="`sftpserver`, a thread of the session",
        said_forked="tests were forked beside threads of wider fixtures",
        requires=("paramiko<4", "pytest<9"),
    ),
    Case(
        "pytest-flask",
        (),
        {
            "conftest.py": """
                import flask, pytest
                @pytest.fixture(scope="session")
                def app():
                    app = flask.Flask("it")
                    @app.route("/")
                    def top(): return {"a": 1}
                    return app
            """,
            "test_it.py": """
                def test_a(client): assert client.get("/").json == {"a": 1}
                def test_b(client): assert client.get("/none").status_code == 200
                def test_c(config): assert config["TESTING"]
            """,
        },
        uses="`client`, `config`",
    ),
    Case(
        "pytest-django",
        (),
        {
            "settings.py": """
                SECRET_KEY = "x"
                ROOT_URLCONF = "urls"
                ENGINE = "django.db.backends.sqlite3"
                DATABASES = {"default": {"ENGINE": ENGINE, "NAME": ":memory:"}}
                INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth"]
            """,
            "urls.py": """
                from django.http import HttpResponse
                from django.urls import path
                urlpatterns = [path("", lambda request: HttpResponse("yes"))]
            """,
            "test_it.py": """
                import pytest
                from django.contrib.auth.models import User
                @pytest.mark.django_db
                def test_a(): User.objects.create(username="u")
                @pytest.mark.django_db
                def test_b(): assert User.objects.count() == 1
                def test_c(client): assert client.get("/").content == b"yes"
                def test_d(): User.objects.count()
                def test_e(settings, mailoutbox):
                    from django.core.mail import send_mail
                    send_mail("s", "b", "f@a", ["t@a"])
                    assert len(mailoutbox) == 1
            """,
        },
        uses="`django_db`, `client`, `settings`, `mailoutbox`",
        said_forked="noted in this test's process is lost",
        options=("--ds=settings",),
        requires=("django",),
    ),
    Case(
        "pytest-alembic",
        ("pytest_alembic",),
        {
            "migrations/env.py": """
                from alembic import context
                connectable = context.config.attributes.get("connection")
                with connectable.connect() as connection:
                    context.configure(connection=connection, target_metadata=None)
                    with context.begin_transaction(): context.run_migrations()
            """,
            "migrations/versions/one.py": """
                import sqlalchemy as sa
                from alembic import op
                revision = "one"
                down_revision = None
                def upgrade(): op.create_table("t", sa.Column("n", sa.Integer))
                def downgrade(): op.drop_table("t")
            """,
            "test_it.py": """
                import pytest, sqlalchemy
                from pytest_alembic.config import Config
                from pytest_alembic.tests import test_single_head_revision, test_upgrade
                from pytest_alembic.tests import test_up_down_consistency
                @pytest.fixture
                def alembic_config():
                    return Config(config_options={"script_location": "migrations"})
                @pytest.fixture
                def alembic_engine():
                    return sqlalchemy.create_engine(
                        "sqlite://", poolclass=sqlalchemy.pool.StaticPool
                    )
            """,
        },
        uses="its own tests, database in memory",
        requires=("sqlalchemy", "alembic"),
    ),
    Case(
        "fakeredis",
        (),
        {
            "test_it.py": """
                import fakeredis, pytest
                server = fakeredis.FakeServer()
                @pytest.fixture(scope="module")
                def client(): return fakeredis.FakeRedis(server=server)
                def test_a(client):
                    client.set("a", 1)
                    assert client.get("a") == b"1"
                def test_b(): assert fakeredis.FakeRedis().get("a") == b"1"
            """
        },
        uses="a server in memory",
    ),
    Case(
        "moto",
        (),
        {
            "test_it.py": """
                import boto3, pytest
                from moto import mock_aws
                @pytest.fixture
                def client():
                    with mock_aws():
                        yield boto3.client(
                            "s3", "us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
                        )
                def test_a(client):
                    client.create_bucket(Bucket="b")
                    assert len(client.list_buckets()["Buckets"]) == 1
                def test_b(client): assert client.list_buckets()["Buckets"]
            """
        },
        uses="`mock_aws`",
        requires=("boto3",),
    ),
    Case(
        "pytest-postgresql",
        (),
        {
            "test_it.py": """
                def test_a(postgresql):
                    with postgresql.cursor() as cursor:
                        cursor.execute("create table t (n integer)")
                def test_b(): assert 0
            """
        },
        uses="a server of its own",
        requires=("psycopg[binary]",),
        program="pg_ctl",
    ),
    Case(
        "pytest-redis",
        (),
        {
            "test_it.py": """
                def test_a(redisdb):
                    redisdb.set("a", 1)
                    assert redisdb.get("a") == b"1"
                def test_b(redisdb): assert redisdb.get("a") == b"1"
            """
        },
        uses="a server of its own",
        program="redis-server",
    ),
    Case(
        "pytest-docker",
        (),
        {
            "test_it.py": """
                def test_a(docker_ip): assert docker_ip
                def test_b(): assert 0
            """
        },
        uses="the address of services",
        program="docker",
    ),
    Case(
        "pytest-freezer",
        (),
        {
            "test_it.py": """
                import datetime, time, pytest
                @pytest.mark.freeze_time("2020-01-01")
                def test_a(): assert datetime.date.today() == datetime.date(2020, 1, 1)
                def test_b(freezer):
                    freezer.move_to("2021-01-01")
                    assert datetime.date.today().year == 2020
                def test_c(): assert datetime.date.today().year > 2021
            """
        },
        uses="`freeze_time`, `freezer`",
    ),
    Case(
        "pytest-freezegun",
        (),
        {
            "test_it.py": """
                import datetime, pytest
                @pytest.mark.freeze_time("2020-01-01")
                def test_a(): assert datetime.date.today() == datetime.date(2020, 1, 1)
                def test_b(freezer):
                    freezer.move_to("2021-01-01")
                    assert datetime.date.today().year == 2020
            """
        },
        uses="`freeze_time`, `freezer`",
        requires=("setuptools<81",),
    ),
    Case(
        "time-machine",
        (),
        {
            "test_it.py": """
                import datetime as dt, time
                def test_a(time_machine):
                    time_machine.move_to(dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc))
                    assert dt.date.today().year == 2020
                def test_b(time_machine):
                    time_machine.move_to(dt.datetime(2021, 1, 1, tzinfo=dt.timezone.utc))
                    assert dt.date.today().year == 2020
                def test_c(): assert time.time() > 1.6e9
            """
        },
        uses="`time_machine`",
    ),
    Case(
        "pytest-subprocess",
        (),
        {
            "test_it.py": """
                import subprocess
                def test_a(fp):
                    fp.register(["rm", "-rf", "/nothing"], stdout="removed")
                    assert subprocess.check_output(["rm", "-rf", "/nothing"]) == b"removed\\n"
                def test_b(fp): subprocess.check_output(["unknown"])
                def test_c(): assert subprocess.check_output(["echo", "a"]) == b"a\\n"
            """
        },
        uses="programs that are not run",
        drop="Process finished|bufsize|Popen|self = ",
    ),
    Case(
        "pytest-console-scripts",
        (),
        {
            "test_it.py": """
                def test_a(script_runner):
                    assert script_runner.run(["py.test", "--version"]).success
                def test_b(script_runner):
                    assert script_runner.run(["py.test", "--nothing"]).success
            """
        },
        uses="a script in process, one that fails",
        options=("--script-launch-mode=both",),
        drop="elapsed|# ",
    ),
    Case(
        "pytest-shell-utilities",
        (),
        {
            "test_it.py": """
                def test_a(shell):
                    assert shell.run("echo", "a").stdout == "a\\n"
                def test_b(shell): assert shell.run("false").returncode == 0
            """
        },
        uses="`shell.run`",
        requires=("pytest<9",),
        drop="PID|pid",
    ),
    Case(
        "pytest-testinfra",
        (),
        {
            "test_it.py": """
                def test_a(host): assert host.file("/etc/passwd").exists
                def test_b(host): assert host.file("/etc/none").exists
                def test_c(host): assert host.run("echo a").stdout == "a\\n"
            """
        },
        uses="`host`, local",
    ),
    Case(
        "pytest-ansible",
        (),
        {
            "test_it.py": """
                def test_a(ansible_module):
                    (one,) = ansible_module.ping().contacted.values()
                    assert one["ping"] == "pong"
                def test_b(localhost):
                    localhost.copy(content="x", dest="/etc/written-by-a-test")
                    assert 0
            """
        },
        uses="`ansible_module`, `localhost`",
        said_forked="sets up Ansible in each forked test anew",
        options=("--ansible-host-pattern=localhost", "--ansible-connection=local"),
        requires=("ansible-core",),
    ),
    Case(
        "pytest-xprocess",
        (),
        {
            "conftest.py": """
                import sys, pytest
                from xprocess import ProcessStarter
                @pytest.fixture(scope="session")
                def server(xprocess):
                    class Starter(ProcessStarter):
                        pattern = "ready"
                        program = "print('ready'); import time; time.sleep(60)"
                        args = [sys.executable, "-uc", program]
                        terminate_on_interrupt = True
                    xprocess.ensure("server", Starter)
                    yield xprocess.getinfo("server")
                    xprocess.getinfo("server").terminate()
            """,
            "test_it.py": """
                def test_a(server): assert server.isrunning()
                def test_b(server): assert not server.isrunning()
            """,
        },
        uses="a process of the session",
        requires=("psutil",),
        xdist=False,
    ),
    Case(
        "pytest-qt",
        (),
        {
            "test_it.py": """
                from PySide6 import QtCore, QtWidgets
                def test_a(qtbot):
                    label = QtWidgets.QLabel("a")
                    qtbot.addWidget(label)
                    label.show()
                    assert label.text() == "a"
                def test_b(qtbot):
                    timer = QtCore.QTimer()
                    with qtbot.waitSignal(timer.timeout, timeout=200): pass
                def test_c(qtbot, qtlog):
                    QtCore.QTimer.singleShot(0, lambda: 1 / 0)
                    qtbot.wait(50)
            """
        },
        uses="`qtbot`, signals, exceptions of slots; offscreen",
        environment={"QT_QPA_PLATFORM": "offscreen", "XDG_RUNTIME_DIR": "/tmp"},
        requires=("PySide6-Essentials",),
    ),
    Case(
        "pytest-xvfb",
        (),
        {
            "test_it.py": """
                import os
                def test_a(): assert os.environ["DISPLAY"]
                def test_b(xvfb): assert xvfb is None
            """
        },
        uses="a display for the session",
        program="Xvfb",
        drop=r":\d|at 0x|display",
    ),
    Case(
        "pytest-selenium",
        (),
        {"test_it.py": "def test_a(selenium): selenium.get('about:blank')\n"},
        uses="`selenium`",
        program="chromedriver",
    ),
]
