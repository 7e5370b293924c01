"""Supervises the system calls of a process tree: crashes it, cuts its power, makes calls fail."""
