"""Carries a plan out: mounts the root filesystem, with the new mount API or with mount(2)."""
