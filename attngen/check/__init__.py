"""Checking a spec on this machine: formula, graphs and kernel must agree; the first that differs is named."""
