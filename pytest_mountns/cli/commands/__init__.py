"""The commands of ``pytest-mountns`` that need more than a few lines, a module each."""
