"""Fits a cluster's numbers to its owner's own measurements, and writes them as an overlay."""
