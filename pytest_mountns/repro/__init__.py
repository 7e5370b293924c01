"""Bundles of tests: captured, stored, and run again."""
