"""The doctor: what works on this machine, what does not, and why."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final

from ..engine.planning.planner import Planner
from ..engine.probe.features import PID_NAMESPACE, ProbeResult, probe_optional, probe_pid_namespace
from ..engine.probe.guard import GUARD, probe_guard
from ..engine.probe.subordinate_ids import SUBORDINATE_IDS, probe_subordinate_ids
from ..engine.probe.trials import Trial

#: The version of what :func:`facts` returns. It grows when a name changes its meaning or goes.
FACTS_VERSION: Final = 1


def examine(places: Sequence[str] = ()) -> ProbeResult:
    """Try every step of a sandbox, in helper processes that leave nothing behind.

    ``places`` are directories that a run needs to write to, besides the home directory, the
    temporary directory and the working directory.
    """
    planner = Planner([*places, sys.prefix])
    try:
        findings = planner.findings
        if findings.features is not None:
            trial = probe_pid_namespace(findings, planner.places)
            findings = probe_optional(findings._replace(trials=(*findings.trials, trial)))
        more = [probe_guard().trial]
        if findings.user_namespace:
            more.insert(0, probe_subordinate_ids()[0])
        return findings._replace(trials=(*findings.trials, *more))
    finally:
        planner.close()


def facts(findings: ProbeResult) -> dict[str, Any]:
    """What was found, as data for JSON.

    * ``version`` (int)
    * ``possible`` (bool): whether tests can be isolated
    * ``here``: what is known of this machine: kernel, uid, container, sysctls, ...
    * ``trials``: what was tried, in order: ``name``, ``works``, ``needed`` and, if it has failed,
      ``errno``, ``kernel``, ``cause``, ``remedy`` and ``without``
    * ``modes``: the ways in which tests can be run here, in words
    * ``capabilities``: the kernel's features that sandboxes are made with; null if none are made
    * ``read_only``: directories that are shown read-only because OverlayFS refuses them
    """
    features = findings.features
    works = {trial.name for trial in findings.trials if trial.works}
    return {
        "version": FACTS_VERSION,
        "possible": features is not None,
        "here": findings.environment.as_data(),
        "trials": [trial._asdict() for trial in findings.trials],
        "modes": modes(findings),
        "capabilities": None
        if features is None
        else {**features._asdict(), "pid_namespace": PID_NAMESPACE in works},
        "read_only": sorted(findings.unlayerable),
    }


def lines(findings: ProbeResult) -> Iterator[str]:
    """What was found, as lines for a person."""
    yield findings.environment.describe()
    for trial in findings.trials:
        yield from _lines_of(trial)
    for path in sorted(findings.unlayerable):
        yield f"no     overlay of {path}"
        yield "         without it: it is shown read-only"
    features = findings.features
    if given := modes(findings):
        yield f"modes  {', '.join(given)}"
    if features is None:
        guarded = "guard" in given
        yield "tests cannot be isolated here" + (
            "; with --mountns-unavailable=guard they are kept from writing" if guarded else ""
        )
        return
    how = "in a user namespace" if features.user_namespace else "as root"
    yield f"tests can be isolated here, {how}"


def modes(findings: ProbeResult) -> list[str]:
    """The ways in which tests can be run here, in words, the best first."""
    works = {trial.name for trial in findings.trials if trial.works}
    found = []
    if findings.features is not None:
        how = "in a user namespace" if findings.user_namespace else "as root"
        found.append(f"sandbox {how}")
    if findings.user_namespace:
        others = "with other users" if SUBORDINATE_IDS in works else "with one user"
        found.append(f'user="root" {others}')
    return [*found, *["guard"] * (GUARD in works)]


def _lines_of(trial: Trial) -> Iterator[str]:
    mark = "ok    " if trial.works else "FAILED" if trial.needed else "no    "
    yield f"{mark} {trial.name}"
    if not trial.works:
        for label, text in (
            ("the kernel said", trial.kernel),
            ("likely cause", trial.cause),
            ("remedy", trial.remedy),
            ("without it", trial.without),
        ):
            if text:
                yield f"         {label}: {text}"


def report(places: Sequence[str] = (), *, as_json: bool = False) -> int:
    """Examine and print. Returns the exit status: 0 if tests can be isolated here, 1 if not."""
    findings = examine(places)
    if as_json:
        print(json.dumps(facts(findings), indent=2))
    else:
        print("\n".join(lines(findings)))
    return 0 if findings.features is not None else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status as :func:`report` does; 2 for a wrong argument."""
    parser = argparse.ArgumentParser(
        prog="pytest-mountns doctor",
        description="Try every step of a sandbox on this machine. Say which steps fail, why, and"
        " which command helps. Exit status 0: tests can be isolated here. 1: they cannot.",
    )
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    options = parser.parse_args(argv)
    return report([os.getcwd()], as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
