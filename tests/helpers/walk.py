"""A page walked word for word: its files are written, its commands typed into one shell."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from tests.helpers.pages import Block, commands, matches

_MARK: Final = "--- that was it ---"


@final
@dataclass(frozen=True)
class Step:
    """A command that was typed. ``shown`` is what the page says that it prints."""

    where: str
    command: str
    shown: str
    output: str

    @property
    def as_shown(self) -> bool:
        return matches(self.shown, self.output)


def walk(
    blocks: Iterable[Block],
    directory: Path,
    environment: Mapping[str, str],
    *,
    home: str,
    shell: Iterable[str] = ("bash",),
    skipped: bool = False,
) -> Iterator[Step]:
    """Do what the page says, in ``directory``; the shell's own ``cd`` is followed.

    ``home`` is shown as the page shows it. ``skipped`` takes the blocks, too, that need a machine
    of their own.
    """
    with subprocess.Popen(
        [*shell],
        cwd=directory,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def enter(command: str) -> str:
            stdin.write(f"{command}\necho; echo '{_MARK}'\n")
            stdin.flush()
            lines = []
            for line in stdout:
                if line.strip() == _MARK:
                    break
                lines.append(line)
            else:
                raise AssertionError(f"the shell has ended: {command}: {''.join(lines)}")
            return "".join(lines).removesuffix("\n")

        for block in blocks:
            if "skip" in block.words and not skipped:
                continue
            if name := block.words.get("file"):
                how = ">>" if "append" in block.words else ">"
                # Typed as well: where the shell is, another root may be.
                enter(f"cat {how} {name} <<'END OF FILE'\n{block.text}\nEND OF FILE")
            elif block.language == "console":
                for command, shown in commands(block.text):
                    output = enter(f"{{ {command}\n}} </dev/null")
                    yield Step(block.name, command, shown, output.replace(home, "/home/you"))
        stdin.close()
