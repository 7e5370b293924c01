"""Feed damaged and hostile layers to the readers: ``python -m tests.fuzz --seconds 600``.

Every case is made from the seed and its number alone, so ``--seed S --case N`` makes it again. A
case fails if the reader raises anything but LayerError, writes outside of its cache, or takes more
than half a minute. Exit status 1 if one did; its input is kept.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from pytest_mountns.engine.layers.cache import Cache
from pytest_mountns.engine.layers.limits import Limits
from pytest_mountns.engine.layers.resolve import resolve
from pytest_mountns.engine.layers.unpack import Form
from pytest_mountns.engine.linux.errors import LayerError

from . import corpus
from .corpus import Image, Pack, packs, saved, some_archive

_BLOCK = 512
_SECRET = b"nobody may write here"
_LIMITS = Limits(members=1000, bytes=32 << 20, ratio=50)
_SECONDS_OF_ONE = 30


class Hang(BaseException):
    """A case takes too long."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="only this one, with its traceback")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--work", help="where to work; default: a temporary directory")
    parser.add_argument("--keep", default="fuzz-failures", help="where inputs that fail are kept")
    options = parser.parse_args(arguments)
    # A reader must not be able to use up the machine's memory.
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    signal.signal(signal.SIGALRM, _alarm)
    with tempfile.TemporaryDirectory(dir=options.work) as place:
        run = Run(Path(place), options.seed, Path(options.keep))
        if options.case is not None:
            run.one(options.case)
        else:
            run.many(options.first, options.seconds)
    return 1 if run.failures else 0


def _alarm(*_: object) -> None:
    raise Hang


class Run:
    def __init__(self, place: Path, seed: int, keep: Path) -> None:
        self.seed = seed
        self.keep = keep
        self.place = place
        self.outside = place / "outside"
        self.outside.mkdir()
        (self.outside / "secret").write_bytes(_SECRET)
        self.file = place / "input"
        self.layout = place / "layout"
        self.form: Form = "trusted" if os.geteuid() == 0 else "user"
        self.packs: list[Pack] = packs()
        self.members = corpus.members()
        self.outcomes: Counter[str] = Counter()
        self.failures = 0

    def many(self, first: int, seconds: float) -> None:
        begin = time.monotonic()
        shown = begin
        number = first
        while (now := time.monotonic()) < begin + seconds:
            self.one(number)
            number += 1
            if now > shown + 60:
                shown = now
                print(f"{number - first} cases, {self.failures} failures", flush=True)
        spent = time.monotonic() - begin
        print(f"seed {self.seed}: {number - first} cases in {spent:.0f} s, ", end="")
        print(f"{self.outcomes['accepted']} accepted, {self.failures} failures")
        for outcome, count in self.outcomes.most_common(40):
            print(f"{count:9} {outcome}")

    def one(self, number: int) -> None:
        rng = random.Random(f"{self.seed}:{number}")
        source = self.make(rng)
        cache = self.place / "cache"
        signal.alarm(_SECONDS_OF_ONE)
        try:
            resolve(str(source), self.form, cache=Cache(str(cache)), limits=_LIMITS).close()
            self.outcomes["accepted"] += 1
        except LayerError as error:
            # Without what comes from the input.
            self.outcomes[re.sub(r"'.*'|[0-9a-f]{64}", "*", error.cause)[:70]] += 1
        except (Exception, Hang):  # noqa: BLE001  # any is a failure
            self.failed(number, source, traceback.format_exc())
        finally:
            signal.alarm(0)
        if problem := self.harm():
            self.failed(number, source, problem)
        if number % 50 == 0:
            Cache(str(cache)).prune(-1)

    def harm(self) -> str:
        """What was written outside of the cache."""
        secret = self.outside / "secret"
        if os.listdir(self.outside) != ["secret"] or secret.read_bytes() != _SECRET:
            return "the directory outside was written to"
        if os.lstat(secret).st_nlink != 1:
            return "there is a link to the file outside"
        extra = {path.name for path in self.place.iterdir()} - {
            "outside",
            "input",
            "layout",
            "cache",
        }
        if os.path.lexists("/absolute") or os.path.lexists("/tmp/fuzzed"):
            return "an absolute name was written"
        partial = self.place / "cache/partial"
        if partial.exists() and os.listdir(partial):
            return f"left in the cache: {os.listdir(partial)}"
        return f"written beside the cache: {extra}" if extra else ""

    def failed(self, number: int, source: Path, why: str) -> None:
        self.failures += 1
        print(f"--seed {self.seed} --case {number}: {why}", flush=True)
        self.keep.mkdir(exist_ok=True)
        kept = self.keep / f"{self.seed}-{number}"
        if source.is_dir():
            shutil.copytree(source, kept, dirs_exist_ok=True)
        else:
            shutil.copy(source, kept)

    def make(self, rng: random.Random) -> Path:
        """The input of a case: a file, or a directory with a layout."""
        kind = rng.random()
        if kind < 0.6:
            data = self.damaged(some_archive(rng), rng)
            data = rng.choice(self.packs)(data)
        else:
            layers = [self.damaged(some_archive(rng), rng) for _ in range(rng.randint(1, 2))]
            if kind < 0.75:
                data = rng.choice(self.packs)(saved(layers, rng))
            else:
                image = Image(rng)
                stored = [(rng.choice(self.packs)(layer), layer) for layer in layers]
                image.image(stored)
                shutil.rmtree(self.layout, ignore_errors=True)
                if kind < 0.85:
                    return image.write(self.layout)
                data = image.archive()
        if rng.random() < 0.3:
            data = flipped(data, rng)
        self.file.write_bytes(data)
        return self.file

    def damaged(self, data: bytes, rng: random.Random) -> bytes:
        """Changes that keep it an archive, mostly."""
        if rng.random() < 0.2:
            return data
        blocks = [data[at : at + _BLOCK] for at in range(0, len(data), _BLOCK)]
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(blocks))
            action = rng.random()
            if action < 0.55:
                blocks[at] = field_changed(blocks[at], rng)
            elif action < 0.65:
                blocks.insert(at, rng.choice(blocks))
            elif action < 0.75 and len(blocks) > 1:
                del blocks[at]
            elif action < 0.9:
                blocks.insert(at, rng.choice(self.members))
            else:
                blocks[at] = flipped(blocks[at], rng)
        return b"".join(blocks)


def flipped(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, or the end cut off."""
    if not data or rng.random() < 0.2:
        return data[: rng.randint(0, len(data))]
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


_FIELDS = [(0, 100), (100, 8), (108, 8), (116, 8), (124, 12), (136, 12), (156, 1), (157, 100)]
_FIELDS += [(257, 8), (329, 8), (337, 8), (345, 155), (508, 4)]
_VALUES = [
    b"",
    b"..",
    b"../../outside/secret",
    b"/absolute",
    b"link/secret",
    b"etc/link/tmp/fuzzed",
    b".wh..",
    b".wh.link",
    b"\xff" * 12,
    b"\x80" + b"\xff" * 11,
    b"77777777777",
    b"0000000000-",
    b"ustar  ",
    b"tar\0",
    *(bytes([kind]) for kind in b"01234567xgLKSMVDN\0"),
]


def field_changed(block: bytes, rng: random.Random) -> bytes:
    """A header with a field changed, and mostly the right checksum again."""
    if len(block) < _BLOCK:
        return block
    start, size = rng.choice(_FIELDS)
    value = rng.choice(_VALUES) if rng.random() < 0.8 else rng.randbytes(size)
    block = block[:start] + value[:size].ljust(size, b"\0") + block[start + size :]
    if rng.random() < 0.9:
        blank = block[:148] + b" " * 8 + block[156:]
        block = block[:148] + b"%06o\0 " % sum(blank) + block[156:]
    return block


if __name__ == "__main__":
    sys.exit(main())
