"""System calls, namespaces, descriptors, processes, and errors with their remedies.

The lowest package: it imports nothing else of ours.
"""
