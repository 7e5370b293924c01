"""nginx and Apache httpd from Debian's packages, or Python's http.server in their place."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NAMES = ("nginx", "httpd")

_SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
_APACHE_MODULES = Path("/usr/lib/apache2/modules")

# Every path is below the scratch directory: the defaults are root's. As root, nginx is told to
# stay root; Apache refuses that.
_NGINX = """
daemon off;
{user}
worker_processes 1;
pid {scratch}/pid;
error_log {scratch}/log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {scratch}/body;
    proxy_temp_path {scratch}/proxy;
    fastcgi_temp_path {scratch}/fastcgi;
    uwsgi_temp_path {scratch}/uwsgi;
    scgi_temp_path {scratch}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {volume};
    }}
}}
"""
_HTTPD = """
{user}
ServerRoot {scratch}
ServerName localhost
Listen 127.0.0.1:{port}
DefaultRuntimeDir {scratch}
PidFile {scratch}/pid
ErrorLog {scratch}/log
LoadModule mpm_prefork_module {modules}/mod_mpm_prefork.so
LoadModule authz_core_module {modules}/mod_authz_core.so
StartServers 1
MinSpareServers 1
DocumentRoot {volume}
"""


@dataclass(frozen=True)
class Server:
    """``name`` is the part it plays; ``software`` how it begins to call itself in its answers."""

    name: str
    program: str
    software: str

    @property
    def stands_in(self) -> bool:
        return self.software == "SimpleHTTP"

    def command(self, volume: Path, port: int, scratch: Path) -> list[str]:
        """Runs in the foreground and serves ``volume``. All it writes goes to ``scratch``."""
        if self.stands_in:
            where = ["--bind", "127.0.0.1", "--directory", str(volume), str(port)]
            return [self.program, "-m", "http.server", *where]
        template, user = _NGINX, "user root root;"
        if self.name == "httpd":
            template, user = _HTTPD, "User www-data\nGroup www-data"
        configuration = scratch / "conf"
        configuration.write_text(
            template.format(
                user=user if os.geteuid() == 0 else "",
                scratch=scratch,
                port=port,
                volume=volume,
                modules=_APACHE_MODULES,
            )
        )
        if self.name == "nginx":
            return [self.program, "-c", str(configuration), "-e", str(scratch / "log")]
        return [self.program, "-D", "FOREGROUND", "-f", str(configuration)]

    @contextmanager
    def running(self, volume: Path, scratch: Path) -> Iterator[int]:
        """Serve ``volume`` for a while; gives the port."""
        port = _free_port()
        with open(scratch / "output", "w+") as output:
            process = subprocess.Popen(
                self.command(volume, port, scratch),
                cwd=scratch,
                # Apache, told to stop, signals its whole process group: not to be ours.
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
            try:
                _wait_until_it_listens(port, process, scratch)
                yield port
            finally:
                process.terminate()
                process.wait(timeout=10)


@dataclass(frozen=True)
class Site:
    """A server that runs in the test's sandbox, and the volume it serves."""

    server: Server
    volume: Path
    port: int


def find(name: str) -> Server:
    """What is installed here for the part of ``name``."""
    if name == "nginx" and (program := shutil.which("nginx", path=_SEARCH)):
        return Server(name, program, "nginx")
    if name == "httpd" and (program := shutil.which("apache2", path=_SEARCH)):
        return Server(name, program, "Apache")
    return Server(name, sys.executable, "SimpleHTTP")


def fetch(port: int, path: str) -> tuple[str, str]:
    """The name of the server and the body of its answer. Raises OSError if nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode()
        assert answer.status == 200, body
        return answer.headers["Server"], body
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_until_it_listens(port: int, process: subprocess.Popen[bytes], scratch: Path) -> None:
    deadline = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
    said = [(scratch / name).read_text() for name in ("output", "log") if (scratch / name).exists()]
    raise AssertionError(f"the server does not answer; it said: {''.join(said) or 'nothing'}")
