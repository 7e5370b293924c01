"""Unified diffs of the content before and after a change, within limits."""

from __future__ import annotations

import difflib
import re
from typing import Final

#: The most bytes and lines of one side that a diff is made of: difflib takes more than linear time.
LARGEST: Final = 256 << 10
_MOST_LINES: Final = 5000
_NOTHING: Final = "/dev/null"
_NO_NEWLINE: Final = "\\ No newline at end of file"
# What would move a terminal's cursor or change its colours, and lone surrogates, which cannot be
# encoded.
_UNPRINTABLE: Final = "[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"


def printable(text: str) -> str:
    """Returns ``text`` on one line, with escapes for what a terminal must not receive."""
    return re.sub(_UNPRINTABLE, _escape, text)


def _escape(match: re.Match[str]) -> str:
    # Not by a codec, whose module might have to be imported in a sandbox that does not show it.
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:
        # os.fsdecode() makes these of bytes that are not UTF-8.
        code -= 0xDC00
    names = {0x0A: "\\n", 0x0D: "\\r", 0x1B: "\\x1b"}
    return names.get(code) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def unified(
    path: str, before: bytes | None, after: bytes | None, *, context: int = 3, source: str = ""
) -> str:
    """The unified diff of two contents; "" if they are the same. None stands for no file.

    Every line ends in a newline and contains no control characters. For what is not UTF-8 text or
    is too large, one line says so. ``source`` is the path before the change, if it was another.
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
    """Returns the lines without newlines, or None if it is not text. A cut last line is marked."""
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
