"""The serving model: the compiled environment, its closed forms, and the reference in plain Python."""
