"""Write what the doctor says in broken environments into docs/doctor.md: `-m tests.helpers.doctor`.

Run as root. Each environment is made in a process of its own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pytest_mountns.engine.probe.features import ProbeResult
from pytest_mountns.reports.doctor import examine, lines
from tests.conformance.fetch import CHECKOUT
from tests.helpers.environments import ENVIRONMENTS, Environment
from tests.matrix.page import write

PAGE: Final = CHECKOUT / "docs" / "doctor.md"


def said(environment: Environment) -> list[str]:
    """What the doctor prints in the environment, without what is true of this machine only."""
    findings = environment.run(examine)
    assert isinstance(findings, ProbeResult)
    first, *rest = lines(findings)
    first = re.sub(r"(Linux \d+\.\d+)[^, ]*", r"\1", first)
    if environment.name.startswith("docker"):
        return [first, *rest]
    # They come from what imitates the environment, or from the image of this machine.
    for trace in (", seccomp filter" * environment.imitates, ", in a docker container"):
        first = first.replace(trace, "")
    return [first, *rest]


def section() -> Iterator[str]:
    """The lines of the page's section, one heading and one block for each environment."""
    for environment in ENVIRONMENTS:
        yield f"### {environment.title}"
        yield ""
        yield "```"
        yield from said(environment)
        yield "```"
        yield ""


def main(page: Path = PAGE) -> int:
    """Print the section and write it into the page."""
    found = list(section())
    print("\n".join(found))
    write("environments", found[:-1], page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
