"""meshwright: plans how to split a model over a cluster, and writes the files that start it."""

__version__ = "0.1.0"
