"""The way of one test: in a forked process, or inline."""
