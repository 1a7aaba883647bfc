"""The built-in occluders: one idea, one file."""
