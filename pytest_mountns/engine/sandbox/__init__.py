"""Sandboxes: made, entered, reset, read, and saved."""
