"""Passes: each takes a valid graph and returns a valid graph."""
