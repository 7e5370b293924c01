"""The sequence of changes: its order, its likes, its globs."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence

import pytest

from pytest_mountns.engine.changes.changes import Change, Changes

SOME = Changes(
    [
        Change("/var/log/a b", "added"),
        Change("/etc/hosts", "modified"),
        Change("/etc/new\n", "deleted"),
    ]
)


def test_changes_are_ordered_and_indexed() -> None:
    assert SOME.paths() == ["/etc/hosts", "/etc/new\n", "/var/log/a b"]
    assert SOME.paths("deleted") == ["/etc/new\n"]
    assert SOME.paths("renamed") == []
    assert SOME[0] == Change("/etc/hosts", "modified")
    assert SOME[1:] == Changes([Change("/etc/new\n", "deleted"), Change("/var/log/a b", "added")])
    assert Change("/etc/hosts", "modified") in SOME
    assert next(reversed(SOME)).path == "/var/log/a b"


def test_changes_equal_mappings_and_their_like() -> None:
    plain = {"/etc/hosts": "modified", "/var/log/a b": "added", "/etc/new\n": "deleted"}
    assert plain == SOME
    assert plain == SOME.as_dict()
    assert SOME != {"/etc/hosts": "modified"}
    assert Changes(reversed(SOME)) == SOME
    assert Changes([]) == {}
    assert list(SOME) != SOME
    assert Changes([Change("/b", "renamed", "/a")]) != Changes([Change("/b", "renamed", "/c")])
    assert pickle.loads(pickle.dumps(SOME)) == SOME
    with pytest.raises(TypeError, match="unhashable"):
        hash(SOME)


def test_repr_has_a_line_for_each_of_several() -> None:
    assert repr(Changes([])) == "Changes()"
    assert repr(Changes([Change("/b", "added")])) == "Changes('/b': added)"
    assert repr(SOME) == (
        "Changes(\n"
        "    '/etc/hosts': modified\n"
        "    '/etc/new\\n': deleted\n"
        "    '/var/log/a b': added\n"
        ")"
    )


@pytest.mark.parametrize(
    ("glob", "hits", "misses"),
    [
        ("/etc", ["/etc", "/etc/hosts", "/etc/a/b"], ["/etcetera", "/", "/usr/etc"]),
        ("/etc/", ["/etc", "/etc/hosts"], ["/etcetera"]),
        ("/", ["/", "/etc"], []),
        ("/etc/*", ["/etc/hosts", "/etc/.x"], ["/etc", "/etc/a/b"]),
        ("/etc/**", ["/etc/hosts", "/etc/a/b"], ["/etc", "/usr"]),
        ("/**/x", ["/x", "/a/x", "/a/b/x"], ["/ax", "/x/y"]),
        ("**/*.pyc", ["/a.pyc", "/a/b.pyc"], ["/a.py", "/a.pyc/b"]),
        ("/a**b", ["/ab", "/a/c/b"], ["/a/c"]),
        ("/a**/b", ["/a/b", "/a/c/b", "/ac/b"], ["/ab"]),
        ("**", ["/", "/a/b"], []),
        ("/a?c", ["/abc", "/a\nc"], ["/a/c", "/ac"]),
        ("/[a-c]x", ["/ax", "/cx"], ["/dx", "/-x"]),
        ("/a[!b]c", ["/aac"], ["/abc", "/a/c"]),
        ("/[]-]", ["/]", "/-"], ["/a"]),
        ("/[[]", ["/["], ["/[[]"]),
        ("/[&&~~||[+--]", ["/&", "/-", "/,"], ["/a", "/."]),
        ("/[^a]", ["/^", "/a"], ["/b"]),
        ("/[\\]", ["/\\"], ["/a"]),
        ("/[", ["/["], ["/a"]),
        ("/[]", ["/[]"], ["/"]),
        ("/a.c", ["/a.c"], ["/abc"]),
        ("/(a|b)", ["/(a|b)"], ["/a"]),
        (os.fsdecode(b"/\xff*"), [os.fsdecode(b"/\xffx")], ["/x"]),
    ],
)
def test_globs(glob: str, hits: Sequence[str], misses: Sequence[str]) -> None:
    changes = Changes(Change(path, "added") for path in [*hits, *misses])
    assert changes.matching(glob).paths() == sorted(hits)


def test_any_glob_suffices_and_none_means_all() -> None:
    assert SOME.matching("/var", "/etc/h*").paths() == ["/etc/hosts", "/var/log/a b"]
    assert SOME.matching() is SOME


@pytest.mark.parametrize("glob", ["etc/hosts", "*.pyc", "", "/[z-a]"])
def test_a_glob_that_cannot_match_is_an_error(glob: str) -> None:
    with pytest.raises(ValueError, match="glob"):
        SOME.matching("/fine", glob)
