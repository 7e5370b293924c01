"""What the plugin costs, beside what others cost: ``python -m benchmarks``."""
