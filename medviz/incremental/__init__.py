"""Exact inference for images that differ from a clean one inside of a patch: only what it can reach is run."""

from medviz.incremental.engine import Incremental

__all__ = ["Incremental"]
