"""Typed nodes, the graph they form, its verifiers and its one text form."""
