"""The readers that come with medviz: NIfTI, pictures and NumPy arrays."""
