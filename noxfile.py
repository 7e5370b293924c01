"""What developers run, each in an environment of its own: ``nox -l`` lists it.

Sandboxes are made differently for root and for an ordinary user, so run the tests as both.
"""

from __future__ import annotations

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.error_on_missing_interpreters = False

PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14", "3.15"]


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests and the examples; arguments after -- go to pytest."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)
    session.run("pytest", "examples")


@nox.session
def plugins(session: nox.Session) -> None:
    """Run suites of other plugins with and without isolation; takes an hour."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "tests.plugins", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, names, docstrings and imports."""
    session.install("-e", ".[lint]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Check types."""
    session.install("-e", ".[dev]")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into build/docs."""
    session.install("-e", ".[docs]")
    session.run("sphinx-build", "-W", "--keep-going", "-n", "-q", "docs", "build/docs")


@nox.session
def conformance(session: nox.Session) -> None:
    """Run test suites of other projects, plain and isolated; takes hours."""
    session.install("-e", ".[dev]")
    session.run("python", "-m", "tests.conformance", *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure what a sandbox costs; arguments after -- go to the benchmarks."""
    session.install("-e", ".[dev]")
    session.run("python", "-m", "benchmarks", *session.posargs)
