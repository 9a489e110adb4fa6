"""Estimates: memory and exposed seconds of every layout, each formula a pure function of arrays."""
