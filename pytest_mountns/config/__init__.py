"""Options, ini values, marker keys and profiles."""
