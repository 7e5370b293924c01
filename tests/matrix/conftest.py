"""The suites below are input of the matrix, not tests of this project."""

collect_ignore = ["suites"]
