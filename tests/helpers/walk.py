"""Follow a page word for word: write its files, and type its commands into one shell."""

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
    """A command that was typed."""

    #: Page and line of the block.
    where: str
    command: str
    #: What the page says that the command prints.
    shown: str
    #: What it has printed.
    output: str

    @property
    def as_shown(self) -> bool:
        """Whether it has printed what the page shows."""
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
    """Do what the page says. The shell starts in ``directory``, and its ``cd`` works.

    In outputs ``home`` is replaced by the home directory that the pages show. With ``skipped`` the
    blocks are taken as well that need a machine of their own.
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
                # By the shell, because it may have another root than this process.
                enter(f"cat {how} {name} <<'END OF FILE'\n{block.text}\nEND OF FILE")
            elif block.language == "console":
                for command, shown in commands(block.text):
                    output = enter(f"{{ {command}\n}} </dev/null")
                    yield Step(block.name, command, shown, output.replace(home, "/home/you"))
        stdin.close()
