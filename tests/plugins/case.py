"""What a case of a plugin is: a suite that uses it, and what isolated runs may differ in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One plugin, and a suite that uses it.

    An isolated run has the same outcomes, exit status, output and files as a run without isolation,
    unless it is refused or something is said.
    """

    #: What pip installs, without version; the row of the table begins with it.
    name: str
    #: The entry points or modules that are loaded; with none, all entry points of ``name``.
    plugins: tuple[str, ...]
    #: Files of the suite, by their paths.
    files: Mapping[str, str]
    #: What the suite uses, for the table.
    uses: str
    options: tuple[str, ...] = ()
    #: Options of a second run in the same directory.
    again: tuple[str, ...] | None = None
    #: What is written between the two.
    edited: Mapping[str, str] = field(default_factory=dict)
    #: What is compared besides.
    digest: Callable[[Path], object] | None = None
    #: What is on the terminal of a plain run; else the suite does not use the plugin.
    shown: tuple[str, ...] = ()
    #: Words with which a forked, or any other isolated run stops.
    refused_forked: str = ""
    refused: str = ""
    #: Words that a forked, or any other isolated run says where something differs.
    said_forked: str = ""
    said: str = ""
    #: What pip installs besides.
    requires: tuple[str, ...] = ()
    #: Variables of the environment.
    environment: Mapping[str, str] = field(default_factory=dict)
    #: The program without which it is not run.
    program: str = ""
    #: Lines of the terminal and of files that are left out: a regular expression.
    drop: str = ""
    #: Whether runs with -n2 are made.
    xdist: bool = True
    #: Whether the order of tests is compared.
    ordered: bool = True

    def words(self, *, forked: bool) -> str:
        """What an isolated run has to say where something differs."""
        return (forked and (self.refused_forked or self.said_forked)) or self.refused or self.said
