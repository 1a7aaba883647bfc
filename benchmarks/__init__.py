"""Measurements: each module is run with `python -m benchmarks.<name>` and prints a table in Markdown."""
