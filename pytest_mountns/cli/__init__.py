"""The command ``pytest-mountns``."""
