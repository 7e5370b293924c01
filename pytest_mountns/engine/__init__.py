"""Sandboxes for Linux: namespaces, an OverlayFS root, what changed in it.

Imports nothing of pytest and can be used without it.
"""
