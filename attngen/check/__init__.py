"""Checking a spec on this machine: formula, graph, passes and kernel must say the same; the first that differs is named."""
