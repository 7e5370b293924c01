"""Unified diffs of what a change was and is, within limits. Pure: bytes in, text out."""

from __future__ import annotations

import difflib
import re
from typing import Final

#: Bytes of one side, and lines of one side, beyond which no diff is made: difflib takes more than
#: linear time.
LARGEST: Final = 256 << 10
_MOST_LINES: Final = 5000
_NOTHING: Final = "/dev/null"
_NO_NEWLINE: Final = "\\ No newline at end of file"
# Whatever would move a terminal's cursor or change its colours, and lone surrogates, which no
# encoding takes.
_UNPRINTABLE: Final = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text: str) -> str:
    """``text`` on one line, with an escape for whatever is not for a terminal to see."""
    return _UNPRINTABLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    # Not by a codec: its module may lie where a sandbox shows nothing.
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:
        # os.fsdecode's way to carry a byte that is no UTF-8.
        code -= 0xDC00
    names = {0x0A: "\\n", 0x0D: "\\r", 0x1B: "\\x1b"}
    return names.get(code) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def unified(
    path: str, before: bytes | None, after: bytes | None, *, context: int = 3, source: str = ""
) -> str:
    """The unified diff of two contents, None where there is nothing; "" if they are the same.

    Every line ends in a newline and holds no control characters. What is no UTF-8 text, or above
    the limits, gets one line that says so. ``source``: the path before, if it was another.
    """
    if before == after:
        return ""
    shown = printable(path)
    for side in (before, after):
        if side is not None and len(side) > LARGEST:
            return f"File {shown} is too large for a diff\n"
    lines = [_lines(side) for side in (before, after)]
    old, new = lines
    if old is None or new is None:
        return f"Binary file {shown} differs\n"
    if max(len(old), len(new)) > _MOST_LINES:
        return f"File {shown} has too many lines for a diff\n"
    names = (
        _NOTHING if before is None else printable(source or path),
        _NOTHING if after is None else shown,
    )
    found = list(difflib.unified_diff(old, new, *names, lineterm="", n=context))
    if not found:
        # An empty file, made or deleted.
        found = [f"--- {names[0]}", f"+++ {names[1]}"]
    return "".join(
        f"{printable(line.removesuffix(_NO_NEWLINE))}\n{_NO_NEWLINE}\n"
        if line.endswith(_NO_NEWLINE)
        else f"{printable(line)}\n"
        for line in found
    )


def _lines(content: bytes | None) -> list[str] | None:
    """Without their newlines; a last line that has none is marked. None for what is no text."""
    if not content:
        return []
    if b"\0" in content:
        return None
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    lines = text.split("\n")
    if lines[-1]:
        lines[-1] += _NO_NEWLINE
    else:
        lines.pop()
    return lines
