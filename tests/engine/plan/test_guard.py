"""What a guard allows, and for which specs it is enough."""

from __future__ import annotations

import dataclasses

import pytest

from pytest_mountns.engine.plan.guard import (
    DEVICES,
    is_allowed,
    plan_guard,
    split_globs,
    why_sandbox,
)
from pytest_mountns.engine.plan.spec import SandboxSpec, Tmpfs, Volume

PLAIN = SandboxSpec(process="auto")


def test_places_are_those_of_the_run_and_of_the_spec() -> None:
    volumes = (Volume("/data", "/data"), Volume("/model", "/model", read_only=True))
    spec = dataclasses.replace(PLAIN, volumes=volumes, writes=("/srv/**", "/var/*.log"))
    plan = plan_guard(spec, ["/tmp/run"])
    assert plan.places == ("/tmp/run", "/data", "/srv", *DEVICES)
    assert plan.globs == ("/var/*.log",)
    assert not plan.no_network


@pytest.mark.parametrize(
    ("globs", "trees", "others"),
    [
        (["/a", "/b/", "/c/**"], ["/a", "/b", "/c"], []),
        (["/**"], ["/"], []),
        (["/a/*", "/a/?/**"], [], ["/a/*", "/a/?/**"]),
        # It stands for files anywhere, which no rule can say.
        (["**/x"], [], []),
    ],
)
def test_globs(globs: list[str], trees: list[str], others: list[str]) -> None:
    assert split_globs(globs) == (trees, others)


@pytest.mark.parametrize(
    "changed",
    [
        {"writes": ()},
        {"process": "fork"},
        {"upper": "disk"},
        {"volumes": (Volume("/data", "/data"),)},
        {"network": "none"},
        {"tmp_path": "own"},
    ],
    ids=str,
)
def test_what_a_guard_fulfils(changed: dict[str, object]) -> None:
    spec = dataclasses.replace(PLAIN, **changed)  # type: ignore[arg-type]
    assert why_sandbox(spec, network=True) == ""


@pytest.mark.parametrize(
    "changed",
    [
        {"pid": True},
        {"root": "minimal"},
        {"layers": ("/layer",)},
        {"tmpfs": (Tmpfs("/mnt"),)},
        {"read_only": True},
        {"hostname": "box"},
        {"user": "root"},
        {"size": 1},
        {"scope": "session"},
        {"volumes": (Volume("/data", "/elsewhere"),)},
    ],
    ids=str,
)
def test_what_needs_a_sandbox(changed: dict[str, object]) -> None:
    spec = dataclasses.replace(PLAIN, **changed)  # type: ignore[arg-type]
    assert next(iter(changed)).rstrip("s") in why_sandbox(spec, network=True)


def test_a_kernel_that_cannot_forbid_tcp() -> None:
    spec = dataclasses.replace(PLAIN, network="none")
    assert "Linux 6.7" in why_sandbox(spec, network=False)


@pytest.mark.parametrize(
    ("path", "allowed"), [("/a", True), ("/a/b", True), ("/ab", False), ("/", False)]
)
def test_is_allowed(path: str, allowed: bool) -> None:
    assert is_allowed(path, ["/a"]) is allowed
    assert is_allowed(path, ["/"])
