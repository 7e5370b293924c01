"""`overlay_root.export()`: what a test has changed, as the layer of an image."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable

import pytest

from .conftest import Recorded

pytestmark = pytest.mark.sandboxes


@pytest.fixture(params=["fork", "inline"])
def process(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def members(data: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {one.name: one.type.decode() for one in tar}


def test_changes_become_a_layer(
    pytester: pytest.Pytester, record: Callable[..., Recorded], process: str
) -> None:
    keep = pytester.mkdir("keep")
    work = pytester.mkdir("work")
    (work / "old").write_text("old")
    (work / "same").write_text("same")
    pytester.makepyfile(
        f"""
        import hashlib, os, pytest, shutil

        @pytest.mark.mountns(volumes=["{keep}"])
        def test_it(overlay_root):
            os.chdir("{work}")
            os.unlink("old")
            open("new", "w").write("new")
            for name in ("layer.tar", "layer.tar.gz"):
                written = overlay_root.export("{keep}/" + name)
                with open("{keep}/" + name, "rb") as file:
                    data = file.read()
                assert written.size == len(data)
                assert written.digest == "sha256:" + hashlib.sha256(data).hexdigest()
            # Into its own root as well: the file is not part of itself.
            overlay_root.export("inner.tar")
            shutil.copy("inner.tar", "{keep}")
        """
    )
    recorded = record()
    assert recorded["status"] == 0, recorded["out"]
    plain = (keep / "layer.tar").read_bytes()
    packed = gzip.decompress((keep / "layer.tar.gz").read_bytes())
    assert hashlib.sha256(plain).digest() == hashlib.sha256(packed).digest()
    place = str(work)[1:]
    expected = {f"{place}/.wh.old": "0", f"{place}/new": "0"}
    for name in ("layer.tar", "inner.tar"):
        found = members((keep / name).read_bytes())
        assert {path: kind for path, kind in found.items() if path.startswith(f"{place}/")} == (
            expected
        )
    assert sorted(path.name for path in work.iterdir()) == ["old", "same"]


def test_what_cannot_be_written(pytester: pytest.Pytester, record: Callable[..., Recorded]) -> None:
    keep = pytester.mkdir("keep")
    pytester.makepyfile(
        f"""
        import os, pytest

        @pytest.mark.mountns(volumes=["{keep}"])
        def test_it(overlay_root):
            open(".wh.name", "w").close()
            overlay_root.export("{keep}/layer.tar")
        """
    )
    recorded = record()
    assert recorded["status"] == 1
    assert "begins with '.wh.'" in recorded["out"]
    assert list(keep.iterdir()) == []
