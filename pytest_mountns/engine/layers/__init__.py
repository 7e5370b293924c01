"""Layers from directories, archives and images: unpacked, cached, and written."""
