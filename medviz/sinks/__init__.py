"""The sinks that come with medviz: pictures, movies, TensorBoard logs and maps in the scan's own space."""
