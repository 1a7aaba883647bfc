"""Time and memory of medviz, beside one inference and beside its peers: `python -m benchmarks`."""
