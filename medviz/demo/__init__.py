"""Real input with a known answer: a brain scan, a lesion planted in it, and a small network that finds it.

`medviz demo` runs it; `tools/train_demo.py` in the repository made the network's weights.
"""
