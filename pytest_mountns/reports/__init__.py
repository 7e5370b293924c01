"""What the terminal, reports and files say about what tests have changed."""

from typing import Final

#: The name of the section of a report that lists what a test has changed.
SECTION: Final = "filesystem changes"
