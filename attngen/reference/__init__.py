"""References in float64: the oracle (from the spec) and the interpreter (from the graph). Neither imports the other."""
