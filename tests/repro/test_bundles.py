"""Bundles from elsewhere: malformed or malicious ones are refused, and nothing is written."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_mountns.cli.main import main
from pytest_mountns.repro.bundle import environment, interpreter, load
from tests.helpers.kept import command


def layer(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def described(data: bytes, file: str = "layer.tar") -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    media = "application/vnd.oci.image.layer.v1.tar"
    return {
        "file": file,
        "media_type": media,
        "digest": digest,
        "diff_id": digest,
        "size": len(data),
    }


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A small bundle that is sound."""
    place = tmp_path / "bundle"
    place.mkdir()
    data = layer(("srv/file", b"content"))
    (place / "layer.tar").write_bytes(data)
    (place / "changes.txt").write_text("          /srv/\nadded       file  (7 bytes)\n")
    (place / "changes.json").write_text('{"format": 1, "changes": []}\n')
    about = {
        "format": 1,
        "kind": "test",
        "name": "test_it.py::test_it",
        "outcome": "failed",
        "written": "2026-01-01T00:00:00+00:00",
        "run": "1",
        "interpreter": ["-m", "pytest"],
        "argv": ["-q"],
        "cwd": str(tmp_path),
        "root": str(tmp_path),
        "environment": dict(os.environ),
        "left_out": [],
        "python": {"version": "3.11.2", "implementation": "CPython", "executable": "/python"},
        "packages": {"pytest": "9.0"},
        "kernel": "6.1",
        "machine": "x86_64",
        "system": "Debian",
        "uid": os.getuid(),
        "gid": os.getgid(),
        "seeds": {"random": [3, [1] * 624 + [624], None], "hypothesis": None, "randomly": None},
        "spec": {"process": "fork"},
        "plan": ["overlay /"],
        "layers": [described(data)],
        "notes": [],
    }
    (place / "repro.json").write_text(json.dumps(about))
    return place


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    about = json.loads((bundle / "repro.json").read_text())
    change(about)
    (bundle / "repro.json").write_text(json.dumps(about))


def everything(place: Path) -> list[Path]:
    return sorted(place.rglob("*"))


def test_a_sound_one(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(bundle)]) == 0
    assert capsys.readouterr().out == (bundle / "changes.txt").read_text()
    assert main(["diff", "--json", str(bundle)]) == 0
    assert json.loads(capsys.readouterr().out) == {"format": 1, "changes": []}
    assert main(["export", str(bundle), str(tmp_path / "out.tar")]) == 0
    assert (tmp_path / "out.tar").exists()


def test_a_terminal_is_not_told_what_to_do(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle / "changes.txt").write_text("added       a\x1b]0;owned\x07b\n")
    edit(bundle, lambda about: about.update(notes=["\x1b[2J"]))
    assert main(["diff", str(bundle)]) == 0
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert "a\\x1b]0;owned" in shown.out


def test_what_is_there_is_not_written_over(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.tar"
    out.write_text("mine")
    assert main(["export", str(bundle), str(out)]) == 1
    assert out.read_text() == "mine"
    assert "remedy: choose another name" in capsys.readouterr().err


MALFORMED: dict[str, Callable[[dict[str, Any]], object]] = {
    "format": lambda about: about.update(format=2),
    "missing": lambda about: about.pop("argv"),
    "type": lambda about: about.update(argv="-q"),
    "argument": lambda about: about.update(argv=["-q", 1]),
    "nul": lambda about: about.update(argv=["a\0b"]),
    "variable": lambda about: about.update(environment={"A=B": "c"}),
    "no-name": lambda about: about.update(environment={"": "c"}),
    "value": lambda about: about.update(environment={"A": None}),
    "kind": lambda about: about.update(kind="other"),
    "empty-command": lambda about: about.update(kind="command", argv=[]),
    "relative-cwd": lambda about: about.update(cwd="here"),
    "cwd-upwards": lambda about: about.update(cwd="/srv/../etc"),
    "layer": lambda about: about.update(layers=["layer.tar"]),
    "layer-more": lambda about: about["layers"][0].update(more=1),
    "layer-parent": lambda about: about["layers"][0].update(file="../layer.tar"),
    "layer-absolute": lambda about: about["layers"][0].update(file=f"{about['cwd']}/layer.tar"),
    "layer-below": lambda about: about["layers"][0].update(file="layer.tar/x"),
    "layer-newline": lambda about: about["layers"][0].update(file="layer.tar\n"),
    "layer-other": lambda about: about["layers"][0].update(file="repro.json"),
    "digest": lambda about: about["layers"][0].update(digest="sha256:" + "../" * 30),
    "size": lambda about: about["layers"][0].update(size=True),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    edit(bundle, MALFORMED[name])
    # The file that the name might lead to is a sound one.
    shutil.copy(bundle / "layer.tar", tmp_path / "layer.tar")
    before = everything(tmp_path)
    for words in (["diff", str(bundle)], ["export", str(bundle), str(tmp_path / "out.tar")]):
        assert main(words) == 1
        shown = capsys.readouterr()
        assert shown.out == ""
        assert f"read the bundle {bundle}" in shown.err
        assert "remedy:" in shown.err
    assert everything(tmp_path) == before


def _link_document(bundle: Path) -> None:
    (bundle / "repro.json").rename(bundle.parent / "elsewhere.json")
    (bundle / "repro.json").symlink_to("../elsewhere.json")


def _link_layer(bundle: Path) -> None:
    (bundle / "layer.tar").rename(bundle.parent / "elsewhere.tar")
    (bundle / "layer.tar").symlink_to("../elsewhere.tar")


def _fifo(bundle: Path) -> None:
    (bundle / "layer.tar").unlink()
    os.mkfifo(bundle / "layer.tar")


def _changed(bundle: Path) -> None:
    data = (bundle / "layer.tar").read_bytes()
    (bundle / "layer.tar").write_bytes(data.replace(b"content", b"CONTENT"))


def _truncated(bundle: Path) -> None:
    os.truncate(bundle / "layer.tar", 700)


def _other_diff_id(bundle: Path) -> None:
    edit(bundle, lambda about: about["layers"][0].update(diff_id="sha256:" + "0" * 64))


def _no_json(bundle: Path) -> None:
    (bundle / "repro.json").write_text('{"format": 1')


def _deep(bundle: Path) -> None:
    (bundle / "repro.json").write_text("[" * 100_000)


def _huge(bundle: Path) -> None:
    os.truncate(bundle / "repro.json", 1 << 30)


def _gone(bundle: Path) -> None:
    (bundle / "repro.json").unlink()


TRICKS = [
    _link_document,
    _link_layer,
    _fifo,
    _changed,
    _truncated,
    _other_diff_id,
    _no_json,
    _deep,
    _huge,
    _gone,
]


@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: trick.__name__.strip("_"))
def test_tricks(
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    trick: Callable[[Path], object],
) -> None:
    trick(bundle)
    before = everything(tmp_path)
    assert main(["export", str(bundle), str(tmp_path / "out.tar")]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("mountns: ")
    assert "likely cause:" in shown
    assert "remedy:" in shown
    assert everything(tmp_path) == before


@pytest.mark.parametrize("words", [["diff"], ["replay"], ["shell"]], ids=lambda words: words[0])
@pytest.mark.parametrize("what", ["nothing", "file"])
def test_no_bundle(tmp_path: Path, words: list[str], what: str) -> None:
    if what == "file":
        (tmp_path / what).write_text("no bundle")
    shown = command(*words, str(tmp_path / what))
    assert (shown.returncode, shown.stdout) == (1, "")
    assert "remedy: name a directory in .mountns" in shown.stderr


SPECS: dict[str, dict[str, Any]] = {
    "unknown": {"nonsense": 1},
    "volume": {"volumes": [{"source": "/srv", "target": "/proc", "read_only": False}]},
    "upwards": {"volumes": [{"source": "/srv", "target": "/srv/../..", "read_only": False}]},
    "shape": {"volumes": ["/srv"]},
    "unhashable": {"process": {}},
}


@pytest.mark.sandboxes
@pytest.mark.parametrize("words", [["replay"], ["shell"]], ids=lambda words: words[0])
@pytest.mark.parametrize("name", SPECS)
def test_specs(bundle: Path, words: list[str], name: str) -> None:
    edit(bundle, lambda about: about.update(spec=SPECS[name]))
    shown = command(*words, str(bundle))
    # pytest's own exit status for a wrong usage.
    assert shown.returncode == (4 if words == ["replay"] else 1)
    assert "mountns: " in shown.stderr
    assert "Traceback" not in shown.stderr


@pytest.mark.sandboxes
@pytest.mark.parametrize("seeds", [{}, {"random": [3, [1], None]}, {"random": 5}])
def test_seeds(bundle: Path, seeds: dict[str, Any]) -> None:
    edit(bundle, lambda about: about.update(seeds=seeds))
    shown = command("replay", str(bundle))
    assert shown.returncode == 4
    assert "its seeds are not valid" in shown.stderr


@pytest.mark.sandboxes
@pytest.mark.layered
@pytest.mark.parametrize(
    "members",
    [
        [("../outside", b"")],
        [("/srv/outside", b"")],
        [(".wh..wh..opq", b"")],
        [("srv/.wh..", b"")],
        [("srv", b"file"), ("srv/below", b"")],
    ],
)
def test_layers(bundle: Path, tmp_path: Path, members: list[tuple[str, bytes]]) -> None:
    data = layer(*members)
    (bundle / "layer.tar").write_bytes(data)
    edit(bundle, lambda about: about.update(layers=[described(data)]))
    before = everything(tmp_path)
    shown = command("shell", str(bundle), text="echo ran\n", SHELL="/bin/sh")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert "likely cause:" in shown.stderr
    assert everything(tmp_path) == before


@pytest.mark.sandboxes
@pytest.mark.layered
def test_a_link_to_the_host(bundle: Path) -> None:
    """It replaces a directory that may have an overlay of its own; no lower is found through it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        info = tarfile.TarInfo("tmp")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(info)
    data = file.getvalue()
    (bundle / "layer.tar").write_bytes(data)
    edit(bundle, lambda about: about.update(layers=[described(data)], cwd="/"))
    text = "readlink /tmp; cat /tmp/passwd > /dev/null && echo ran\n"
    shown = command("shell", str(bundle), text=text, SHELL="/bin/sh")
    if shown.returncode:
        assert "/tmp, which has a layer of its own here" in shown.stderr
    else:
        # One overlay for all: it is a link of the sandbox, to the sandbox's own /etc.
        assert shown.stdout == "/etc\nran\n"


def test_a_command_is_not_replayed(bundle: Path) -> None:
    edit(bundle, lambda about: about.update(kind="command", name="make install", argv=["make"]))
    shown = command("replay", str(bundle))
    assert shown.returncode == 1
    assert "remedy: pytest-mountns run -- make install" in shown.stderr


def test_environment() -> None:
    kept, left_out = environment(
        {
            "PATH": "/bin",
            "aws_secret": "1",
            "GITHUB_TOKEN": "1",
            "PGPASSWORD": "1",
            "KEYBOARD": "1",
            "GOOGLE_CREDENTIALS": "1",
            "DATABASE": "postgres://me:word@host/db",
            "HOST": "https://host:80/",
            "PYTEST_CURRENT_TEST": "x",
            "PYTEST_XDIST_WORKER": "gw0",
            "PYTEST_ADDOPTS": "-q",
        }
    )
    assert kept == {"PATH": "/bin", "HOST": "https://host:80/", "PYTEST_ADDOPTS": "-q"}
    assert left_out == [
        "DATABASE",
        "GITHUB_TOKEN",
        "GOOGLE_CREDENTIALS",
        "KEYBOARD",
        "PGPASSWORD",
        "aws_secret",
    ]


@pytest.mark.parametrize(
    ("whole", "seen", "options"),
    [
        (["python", "-m", "pytest", "-q"], ["/x/pytest/__main__.py", "-q"], ["-m", "pytest"]),
        (["python", "-m", "pytest"], ["/x/pytest/__main__.py"], ["-m", "pytest"]),
        (["py", "-X", "dev", "/bin/pytest", "a"], ["/bin/pytest", "a"], ["-X", "dev", "-c"]),
        (["py", "/bin/tox", "a"], ["/bin/tox", "a"], ["-c"]),
        (["py", "-c", "x", "a"], ["-c", "a"], ["-c"]),
        ([], [], ["-c"]),
    ],
)
def test_interpreter(whole: list[str], seen: list[str], options: list[str]) -> None:
    found = interpreter(whole, seen)
    assert found[: len(options)] == options
    assert len(found) == len(options) + (options[-1] == "-c")


def test_read_back(bundle: Path) -> None:
    found = load(str(bundle))
    assert json.loads(found.repro.to_json()) == json.loads((bundle / "repro.json").read_text())
