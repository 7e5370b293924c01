"""Plugins that compare with files, read them, write them, or make data."""

from __future__ import annotations

import json

from tests.plugins.case import Case


def cassette(uri: str) -> str:
    """A recorded request of vcrpy."""
    return (
        "interactions:\n- request:\n    body: null\n    headers: {}\n    method: GET\n"
        f"    uri: {uri}\n  response:\n    body:\n      string: yes\n    headers: {{}}\n"
        "    status:\n      code: 200\n      message: OK\nversion: 1\n"
    )


#: A module with a server of its own, which cassettes are recorded from.
RECORDED = """
    import http.server, threading, urllib.request
    import pytest
    @pytest.fixture(scope="module")
    def server():
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200); self.end_headers(); self.wfile.write(b"yes")
            def log_message(self, *arguments): pass
        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown(); server.server_close()
    @pytest.mark.vcr
    def test_a(server):
        assert urllib.request.urlopen(f"http://127.0.0.1:{server}/a").read() == b"yes"
    @pytest.mark.vcr
    def test_b(server):
        assert urllib.request.urlopen(f"http://127.0.0.1:{server}/b").read() == b"no"
"""

CASES = [
    Case(
        "syrupy",
        (),
        {
            "test_it.py": """
                def test_a(snapshot): assert {"a": 1} == snapshot
                def test_b(snapshot): assert 2 == snapshot
            """
        },
        uses="`--snapshot-update`, then a run that compares",
        options=("--snapshot-update",),
        again=(),
        shown=("2 snapshots passed",),
    ),
    Case(
        "approvaltests",
        (),
        {
            "test_it.py": """
                from approvaltests import verify
                from approvaltests.reporters import PythonNativeReporter
                def test_a(): verify("text", reporter=PythonNativeReporter())
                def test_b(): verify("other", reporter=PythonNativeReporter())
            """,
            "test_it.test_a.approved.txt": "text\n",
        },
        uses="files that were approved, and that were not",
        said="wrote into the project",
    ),
    Case(
        "pytest-approvaltests",
        (),
        {
            "test_it.py": """
                from approvaltests import verify
                def test_a(): verify("text")
                def test_b(): verify("other")
            """,
            "test_it.test_a.approved.txt": "text\n",
        },
        uses="`--approvaltests-use-reporter`",
        said="wrote into the project",
        options=("--approvaltests-use-reporter=PythonNative",),
        requires=("approvaltests",),
    ),
    Case(
        "pytest-vcr",
        (),
        {"test_it.py": RECORDED},
        uses="`--vcr-record=once` writes cassettes",
        options=("--vcr-record=once",),
        requires=("vcrpy", "urllib3"),
    ),
    Case(
        "vcrpy",
        (),
        {
            "c.yaml": cassette("http://127.0.0.1:1/a"),
            "test_it.py": """
                import urllib.request, vcr
                def test_a():
                    with vcr.use_cassette("c.yaml", record_mode="none"):
                        assert urllib.request.urlopen("http://127.0.0.1:1/a").read() == b"yes"
                def test_b():
                    with vcr.use_cassette("c.yaml", record_mode="none"):
                        urllib.request.urlopen("http://127.0.0.1:1/b")
            """,
        },
        uses="cassettes that are there",
    ),
    Case(
        "pytest-datadir",
        (),
        {
            "test_it/a.txt": "text",
            "data/b.txt": "shared",
            "test_it.py": """
                def test_a(datadir):
                    assert (datadir / "a.txt").read_text() == "text"
                    (datadir / "a.txt").write_text("other")
                def test_b(datadir, shared_datadir):
                    assert (datadir / "a.txt").read_text() == "text"
                    assert (shared_datadir / "b.txt").read_text() == "other"
            """,
        },
        uses="`datadir`, `shared_datadir`",
    ),
    Case(
        "pytest-datafiles",
        (),
        {
            "a.txt": "text",
            "test_it.py": """
                import pytest
                @pytest.mark.datafiles("a.txt")
                def test_a(datafiles): assert (datafiles / "a.txt").read_text() == "text"
                @pytest.mark.datafiles("a.txt")
                def test_b(datafiles): assert (datafiles / "a.txt").read_text() == "other"
            """,
        },
        uses="copies of files",
    ),
    Case(
        "pytest-image-diff",
        (),
        {
            "test_it.py": """
                from PIL import Image
                def test_a(image_regression):
                    image_regression(Image.new("RGB", (8, 8), "red"), threshold=0.1)
            """
        },
        uses="`image_regression` writes references",
        requires=("Pillow",),
        said="wrote into the project",
    ),
    Case(
        "pytest-arraydiff",
        (),
        {
            "test_it.py": """
                import numpy, pytest
                @pytest.mark.array_compare
                def test_a(): return numpy.arange(3)
            """
        },
        uses="`--arraydiff-generate-path` writes arrays",
        options=("--arraydiff-generate-path=reference",),
        requires=("numpy",),
    ),
    Case(
        "pytest-accept",
        (),
        {"product.py": 'def f():\n    """\n    >>> 1 + 1\n    3\n    """\n'},
        uses="`--accept` changes sources",
        options=("--doctest-modules", "--accept"),
    ),
    Case(
        "hypothesis",
        (),
        {
            "test_it.py": """
                from hypothesis import given, strategies as st
                @given(st.integers())
                def test_a(n): assert n < 1000
                @given(st.integers())
                def test_b(n): assert n == n
            """
        },
        uses="a failing example; `--hypothesis-show-statistics`",
        options=("--hypothesis-show-statistics", "--hypothesis-seed=1"),
        drop=r"runtimes|\d+ passing|~ ",
    ),
    Case(
        "faker",
        ("faker",),
        {
            "test_it.py": """
                def test_a(faker): print(faker.name())
                def test_b(faker): assert faker.name() == ""
            """
        },
        uses="`faker`: the same names",
    ),
    Case(
        "pytest-factoryboy",
        (),
        {
            "conftest.py": """
                import factory
                from pytest_factoryboy import register
                class Book:
                    def __init__(self, title): self.title = title
                @register
                class BookFactory(factory.Factory):
                    class Meta: model = Book
                    title = factory.Sequence(lambda n: f"book {n}")
            """,
            "test_it.py": """
                def test_a(book): assert book.title.startswith("book")
                def test_b(book, book_factory): assert book_factory().title == book.title
            """,
        },
        uses="factories as fixtures",
        drop=r"book \d",
    ),
    Case(
        "mimesis",
        (),
        {
            "test_it.py": """
                import mimesis
                def test_a(): assert mimesis.Person(seed=1).full_name()
                def test_b(): print(mimesis.Person(seed=1).full_name()); assert 0
            """
        },
        uses="names by a seed",
    ),
    Case(
        "pytest-cookies",
        (),
        {
            "t/cookiecutter.json": json.dumps({"name": "it"}),
            "t/{{cookiecutter.name}}/a.txt": "{{cookiecutter.name}}",
            "test_it.py": """
                from pathlib import Path
                T = str(Path(__file__).with_name("t"))
                def test_a(cookies):
                    result = cookies.bake(template=T, extra_context={"name": "other"})
                    assert result.exception is None
                    assert (result.project_path / "a.txt").read_text() == "other"
                def test_b(cookies): assert cookies.bake(template=T).project_path.name == "b"
            """,
        },
        uses="`cookies.bake`",
    ),
    Case(
        "pytest-copie",
        (),
        {
            "t/copier.yaml": "name:\n  type: str\n  default: it\n",
            "t/a.txt.jinja": "{{ name }}",
            "test_it.py": """
                from pathlib import Path
                import pytest
                T = Path(__file__).with_name("t")
                def test_a(copie):
                    result = copie.copy(template_dir=T, extra_answers={"name": "other"})
                    assert result.exception is None
                    assert (result.project_dir / "a.txt").read_text() == "other"
                def test_b(copie): assert copie.copy(template_dir=T).exit_code == 5
            """,
        },
        uses="`copie.copy`",
    ),
    Case(
        "pytest-tmp-files",
        (),
        {
            "test_it.py": """
                import pytest
                @pytest.mark.parametrize("tmp_files", [{"a.txt": "text"}], indirect=True)
                def test_a(tmp_files): assert (tmp_files / "a.txt").read_text() == "text"
                def test_b(): assert 0
            """
        },
        uses="files by parameters",
    ),
    Case(
        "pyfakefs",
        (),
        {
            "test_it.py": """
                import os
                def test_a(fs):
                    fs.create_file("/etc/it", contents="text")
                    assert open("/etc/it").read() == "text"
                def test_b(fs): assert os.path.exists("/etc/it")
                def test_c(): assert not os.path.exists("/etc/it")
            """
        },
        uses="`fs`",
    ),
]
