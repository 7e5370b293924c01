"""Plugins with items of their own: checks of sources, documents, other languages."""

from __future__ import annotations

from tests.plugins.case import Case

SOURCES = {
    "good.py": '"""Good."""\n\nA = 1\n',
    "bad.py": "import sys, os\ndef f( a ):\n    return b\nx: int = 'text'\n",
}

DOCUMENT = """
    # Title

    ```python
    x = 1
    assert x == 1
    ```

    ```python
    assert 1 == 2
    ```
"""

CASES = [
    Case(
        "pytest-black",
        (),
        SOURCES,
        uses="`--black`",
        options=("--black",),
        requires=("black", "pytest<9"),
    ),
    Case(
        "pytest-flake8",
        (),
        SOURCES,
        uses="`--flake8`",
        options=("--flake8",),
        requires=("pytest<9",),
    ),
    Case(
        "pytest-mypy",
        (),
        SOURCES,
        uses="`--mypy`",
        options=("--mypy",),
        said="keeps its results in a temporary file",
    ),
    Case(
        "pytest-pylint",
        (),
        SOURCES,
        uses="`--pylint`",
        options=("--pylint",),
        requires=("pytest<9",),
    ),
    Case("pytest-isort", (), SOURCES, uses="`--isort`", options=("--isort",)),
    Case("pytest-pycodestyle", (), SOURCES, uses="`--pycodestyle`", options=("--pycodestyle",)),
    Case(
        "pytest-mypy-plugins",
        (),
        {
            "test_it.yml": """
                - case: good
                  main: |
                    x: int = 1
                - case: bad
                  main: |
                    y: int = "text"
            """
        },
        uses="cases in YAML",
    ),
    Case(
        "pytest-markdown-docs",
        (),
        {"a.md": DOCUMENT},
        uses="`--markdown-docs`",
        options=("--markdown-docs",),
    ),
    Case(
        "xdoctest",
        (),
        {
            "product.py": '''
                def f():
                    """
                    Example:
                        >>> print(1 + 1)
                        2
                    """
                def g():
                    """
                    Example:
                        >>> print(1 + 1)
                        3
                    """
            '''
        },
        uses="`--xdoctest`",
        options=("--xdoctest",),
    ),
    Case(
        "pytest-remotedata",
        (),
        {
            "test_it.py": """
                import socket, pytest
                def test_a(): socket.create_connection(("192.0.2.1", 80))
                @pytest.mark.remote_data
                def test_b(): assert 0
                def test_c(): pass
            """
        },
        uses="no network without `--remote-data`",
    ),
    Case(
        "pytest-astropy-header",
        (),
        {
            "conftest.py": """
                def pytest_configure(config): config.option.astropy_header = True
            """,
            "test_it.py": "def test_a(): pass\ndef test_b(): assert 0\n",
        },
        uses="its header",
    ),
    Case(
        "pytest-openfiles",
        (),
        {
            "test_it.py": """
                kept = []
                def test_a():
                    with open(__file__) as file: file.read()
                def test_b(): kept.append(open("/etc/passwd"))
            """
        },
        uses="`--open-files`",
        options=("--open-files",),
        requires=("psutil",),
    ),
    Case(
        "pytest-antilru",
        (),
        {
            "test_it.py": """
                import functools
                @functools.lru_cache
                def f(n): return object()
                @functools.lru_cache
                def g(n): return object()
                def test_a(): assert f(1) is f(1)
                def test_b(): assert f.cache_info().currsize == 0
                def test_c(): assert g(1) is not g(1)
            """
        },
        uses="caches that are emptied between tests",
    ),
    Case(
        "typeguard",
        (),
        {
            "product.py": "def f(n: int) -> int:\n    return n\n",
            "test_it.py": """
                import product
                def test_a(): assert product.f(1) == 1
                def test_b(): product.f("text")
            """,
        },
        uses="`--typeguard-packages`",
        options=("--typeguard-packages=product",),
    ),
]
