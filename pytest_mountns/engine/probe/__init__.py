"""What this machine can do, found by trying it; and, where something fails, why."""
