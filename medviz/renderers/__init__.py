"""Renderers: one attribution in, one picture or a row of frames out."""
