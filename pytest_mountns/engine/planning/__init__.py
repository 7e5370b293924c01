"""Plans for a session: from the spec, the mount table, and what the machine can do."""
