"""Layouts: every way to split the model over the GPUs, as arrays, with the rules that bind them."""
